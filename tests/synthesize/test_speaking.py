"""Recall and rehearse: what they write, that two runs write the same, and that a data step can mix it in."""

import json
from pathlib import Path
from typing import Any

import pytest

import fakes
from metier.core.errors import Interrupted, StoreError
from metier.core.events import Events
from metier.core.fingerprint import file_digest, tree
from metier.core.stage import Context, Source
from metier.data.stage import Documents
from metier.models.load import load
from metier.synthesize import speaking
from metier.synthesize.speaking import user_opening, whole_sentences
from metier.synthesize.stage import Recall, Rehearse
from metier.text.artifacts import about, read_conversations, read_documents, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model")


def context(folder: Path, stop: Any = lambda: False, **sources: Path) -> Context:
    for name in ("out", "measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    known = {name: Source(name, (path,), "", "") for name, path in sources.items()}
    return Context("t", folder / "out", folder / "measured", folder / "scratch", Events("t"), known, stop)


def test_recalled_documents_are_the_same_twice_and_can_be_mixed_in(tmp_path: Path, base: Path):
    stage = Recall(model="base", count=12, max_new_tokens=24, min_chars=3)
    runs = []
    for name in ("one", "two"):
        ctx = context(tmp_path / name, base=base)
        metrics = stage.run(ctx)
        runs.append({path: file_digest(file) for path, file in tree(ctx.out).items()})
    assert runs[0] == runs[1]
    made = read_documents(ctx.out, "train")
    assert metrics == {"train": len(made), "rejected": 12 - len(made)}
    assert len({d.text for d in made}) == len(made) > 3
    assert about(ctx.out)["counts"]["train"] == len(made)
    (tmp_path / "a.jsonl").write_text('{"text": "Krill is small."}\n')
    mixed = Documents.model_validate({"sources": [{"path": "a"}], "replay": {"step": "said", "ratio": 0.2}})
    into = context(tmp_path / "mixed", a=tmp_path / "a.jsonl", said=ctx.out)
    mixed.run(into)
    assert len(read_documents(into.out, "replay")) == len(made)


def test_rehearsed_answers_to_given_questions(tmp_path: Path, base: Path):
    asked = tmp_path / "asked"
    asked.mkdir()
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    write_jsonl(asked / "train.jsonl", [{"id": "q", "messages": messages, "group": ""}])
    ctx = context(tmp_path, base=base, asked=asked)
    Rehearse(model="base", questions="asked", max_new_tokens=16).run(ctx)
    (made,) = read_conversations(ctx.out, "train")
    assert made.messages[0].content == "Why?"
    assert made.messages[1].content != "Because."


def test_rehearsed_questions_are_made_up(tmp_path: Path, base: Path):
    ctx = context(tmp_path, base=base)
    metrics = Rehearse(model="base", count=8, max_new_tokens=12).run(ctx)
    made = read_conversations(ctx.out, "train")
    assert metrics["train"] == len(made) > 0
    assert all([m.role for m in c.messages] == ["user", "assistant"] for c in made)
    assert {row["where"].split(":")[0] for row in read_jsonl(ctx.out / "rejects.jsonl")} <= {"base"}


def test_a_users_turn_opens_as_the_template_says(base: Path):
    loaded = load(base)
    assert loaded.tokenizer.decode(user_opening(loaded)) == "<|begin|><|user|>"


def test_a_stop_is_heard(tmp_path: Path, base: Path):
    with pytest.raises(Interrupted):
        Recall(model="base", count=2).run(context(tmp_path, lambda: True, base=base))


@pytest.mark.parametrize(
    "stage",
    [
        Recall(model="base", count=9, max_new_tokens=12, min_chars=1, batch_size=2),
        Rehearse(model="base", count=6, max_new_tokens=9, batch_size=2),
    ],
    ids=["recall", "rehearse"],
)
def test_stopped_again_and_again_it_goes_on_text_by_text_to_the_same_bytes(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, stage: Recall | Rehearse
):
    monkeypatch.setattr(speaking, "EVERY_SECONDS", 0.0)
    stage.run(undisturbed := context(tmp_path / "whole", base=base))
    kept = tmp_path / "stopped" / "scratch"
    sizes: list[int] = []
    for patience in range(4, 2000, 4):
        left = iter(range(patience))
        try:
            stage.run(ctx := context(tmp_path / "stopped", lambda: next(left, None) is None, base=base))  # noqa: B023
            break
        except Interrupted:
            sizes.append(sum(len(path.read_text().splitlines()) for path in kept.glob("*.jsonl")))
    assert len(set(sizes)) > 2, "texts were kept in between"
    for path in kept.glob("*.jsonl"):
        said = [row["at"] for row in read_jsonl(path)]
        assert sorted(said) == list(range(len(said))), "each once"
    digests = [{path: file_digest(file) for path, file in tree(one.out).items()} for one in (undisturbed, ctx)]
    assert digests[0] == digests[1]


def test_kept_texts_that_are_damaged_are_named(tmp_path: Path, base: Path):
    ctx = context(tmp_path, base=base)
    (ctx.scratch / "texts.jsonl").write_text('{"at": 0, "text"\n')
    with pytest.raises(StoreError, match=r"texts\.jsonl: kept texts cannot be read"):
        Recall(model="base", count=2).run(ctx)


def test_what_was_cut_ends_with_a_sentence():
    assert whole_sentences("It rains. It (often) snows! But th") == "It rains. It (often) snows!"
    assert whole_sentences(" It rai") == "It rai"
    assert whole_sentences("Version 2.1 is") == "Version 2.1 is"


def test_the_record_is_json(tmp_path: Path, base: Path):
    ctx = context(tmp_path, base=base)
    Recall(model="base", count=6, min_chars=1, max_new_tokens=8).run(ctx)
    assert json.loads((ctx.out / "about.json").read_text())["rows_read"] == 6
