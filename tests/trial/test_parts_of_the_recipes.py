"""What the five recipes ask of older stages: texts that are gone on with, one stream of documents, a notice on top."""

from pathlib import Path

import numpy as np
import pytest
from tests.evaluate.test_stages import House, answer, conversation, read
from tests.report.fake_run import one_contender

import fakes
from metier.core.errors import InputError
from metier.core.events import Events
from metier.core.store import Artifact
from metier.engine.here import LocalEngine
from metier.engine.interface import Asking
from metier.models.load import load
from metier.report import publish
from metier.text.artifacts import write_json, write_jsonl
from metier.text.chat import encode_document
from metier.text.nouns import Message
from metier.train.material import documents


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    made.model("base", "llama", 0)
    made.model("org/tuned", "gpt2", 1)
    made.examples([conversation(i) for i in range(4)])
    return made


def test_a_text_is_gone_on_with_as_it_is(house: House):
    loaded = load(house.root / "models/base")
    prompt = [Message("user", "Morphine reaches the patient")]
    (plain,) = LocalEngine(loaded, Asking(4), continuing=True).encoded([prompt])
    (chat,) = LocalEngine(loaded, Asking(4)).encoded([prompt])
    assert plain == encode_document(loaded.tokenizer, "Morphine reaches the patient")[:-1]
    assert len(chat) > len(plain)


def test_answers_differ_by_how_a_question_is_put(house: House):
    chat = read(house.run(answer(), "chat")[0] / "answers/base.jsonl")
    plain = read(house.run(answer(prompt="continue"), "plain")[0] / "answers/base.jsonl")
    assert [row["id"] for row in chat] == [row["id"] for row in plain]
    assert [row["text"] for row in chat] != [row["text"] for row in plain]


def test_an_endpoint_goes_on_with_no_text(house: House):
    stage = answer(models=[{"endpoint": "http://127.0.0.1:9/v1", "model": "m"}], prompt="continue")
    with pytest.raises(InputError, match="goes on with no text") as caught:
        stage.check(house.sources)
    assert "prompt" in str(caught.value.where)


TEXTS = ["one two three four five six", "seven eight", "nine ten eleven twelve thirteen fourteen fifteen"]


def corpus(folder: Path, **about: object) -> Path:
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    write_json(folder / "about.json", {"counts": {"train": len(TEXTS)}, "bytes": {}, "replay_ratio": 0.0, **about})
    return folder


def test_a_stream_is_all_documents_in_order_cut_at_every_block(tmp_path: Path):
    tokenizer = fakes.byte_tokenizer()
    folder = corpus(tmp_path / "corpus")
    found = documents(
        folder, tokenizer, block_size=16, events=Events("x"), check_stop=lambda: None, cache=tmp_path, stream=True
    )
    whole = [token for text in TEXTS for token in encode_document(tokenizer, text)]
    assert [len(piece) for piece in found.pieces[:-1]] == [16] * (len(found.pieces) - 1)
    again = [int(token) for token in found.pieces[0].ids] + [int(t) for p in found.pieces[1:] for t in p.ids[1:]]
    assert again == whole
    assert sum(piece.trained for piece in found.pieces) == len(whole) - 1
    kept = documents(folder, tokenizer, block_size=16, events=Events("x"), check_stop=lambda: None, cache=tmp_path)
    assert not np.array_equal(kept.pieces[1].ids, found.pieces[1].ids)  # without `stream` a document ends its piece


def test_a_stream_has_no_weights(tmp_path: Path):
    folder = corpus(tmp_path / "corpus", domains=[{"rows": 1, "weight": 1.0}, {"rows": 2, "weight": 2.0}])
    with pytest.raises(InputError, match="weights") as caught:
        documents(
            folder, fakes.byte_tokenizer(), block_size=16, events=Events("x"), check_stop=lambda: None,
            cache=tmp_path, stream=True,
        )  # fmt: skip
    assert caught.value.where == "packing"


def test_a_report_opens_with_its_notice(tmp_path: Path):
    result = one_contender(tmp_path / "store")
    assert all(isinstance(artifact, Artifact) for _, artifact in result.values())
    page = publish(result, "t", tmp_path / "out", notice="This is <small>.")
    text = page.read_text(encoding="utf-8")
    assert '<p class="notice" role="note">This is &lt;small&gt;.</p>' in text
    assert "**This is &#60;small&#62;.**" in (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert '"notice": "This is <small>."' in (tmp_path / "out/leaderboards_full.json").read_text(encoding="utf-8")
    assert "notice" not in (publish(result, "u", tmp_path / "v").with_name("report.md")).read_text(encoding="utf-8")
