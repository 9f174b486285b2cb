"""What `answer` promises beyond its files: goes on from any item, frees models, shows what needs no model."""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_stages import House, answer, conversation, read
from tests.fakes import byte_tokenizer, save_tiny, tiny_llama

from metier.core.errors import DataError, MetierError, StoreError
from metier.core.stage import Source
from metier.engine import here, local
from metier.evaluate import answering
from metier.evaluate.stage import Answer, Perplexity
from metier.evaluate.trivial import COPY, NEAREST, nearest_answers
from metier.models.save import save_model
from metier.text.nouns import Message, Question

CUT = """
import os, signal, sys
from pathlib import Path
from metier.evaluate import answering
from tests.evaluate.test_stages import House, answer, conversation

answering.EVERY_SECONDS = 0.0
add, left = answering.Kept.add, [int(sys.argv[2])]

def deadly(self, said, peak):
    add(self, said, peak)
    left[0] -= len(said)
    if left[0] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

answering.Kept.add = deadly
house = House(Path(sys.argv[1]))
for name, folder in (("base", "base"), ("org/tuned", "org_tuned"), ("qa", "qa")):
    house.add(name, house.root / folder if name == "qa" else house.root / "models" / folder)
house.run(answer(batch_size=1), "cut")
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    made.model("base", "llama", 0)
    made.model("org/tuned", "gpt2", 1)
    made.examples([conversation(i) for i in range(10)])
    return made


def same_files(one: Path, other: Path) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(("options", "cuts"), [({}, range(11)), ({"temperature": 0.9, "seed": 2}, (3, 6))])
def test_a_run_killed_at_any_item_goes_on_to_the_same_bytes(
    house: House, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], cuts: Sequence[int]
):
    """All that a kill leaves is a beginning of the lines on the disk: every such beginning is gone on from."""
    options |= {"batch_size": 1}
    monkeypatch.setattr(local, "REFILLS", 4)  # batches of four: some cuts lie inside of one
    loaded = answering.load_held(house.sources["base"].path, None)
    monkeypatch.setattr(answering, "load_held", lambda _folder, _bits: loaded)
    monkeypatch.setattr(answering, "EVERY_SECONDS", 0.0)
    asked: list[int] = []
    speak = here.speak

    def counted(*given: Any, **named: Any) -> Any:
        for part in speak(*given, **named):
            asked.append(len(part))
            yield part

    monkeypatch.setattr(here, "speak", counted)
    whole, _ = house.run(answer(models=["base"], **options), "whole")
    lines = (house.root / "whole/scratch/answers/base.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 10
    for kept in cuts:
        torn = b"" if kept % 2 else [*lines, b'{"id": "q9", "text": "'][kept][:20]
        path = house.root / f"cut{kept}/scratch/answers/base.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(lines[:kept]) + torn)
        asked.clear()
        again, _ = house.run(answer(models=["base"], **options), f"cut{kept}")
        same_files(whole, again)
        assert path.read_bytes().splitlines(keepends=True)[:kept] == lines[:kept], "what stands is not touched"
        assert len({row["id"] for row in read(path)}) == len(read(path)) == 10
        assert sum(asked) == 10 - kept // 4 * 4 if kept < 10 else not asked


def test_a_process_that_is_killed_loses_nothing_and_repeats_nothing(house: House):
    whole, _ = house.run(answer(batch_size=1), "whole")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", CUT, str(house.root), "13"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    written = {name: read(house.root / f"cut/scratch/answers/{name}.jsonl") for name in ("base", "org--tuned")}
    assert [len(rows) for rows in written.values()] == [10, 3]
    again, _ = house.run(answer(batch_size=1), "cut")
    same_files(whole, again)
    after = {name: read(house.root / f"cut/scratch/answers/{name}.jsonl") for name in written}
    assert all(after[name][: len(rows)] == rows for name, rows in written.items())
    assert house.said("note") == ["base: 10 answers kept from the run before"] or house.said("note")[-2:] == [
        "base: answers kept from the run before",
        "org/tuned: 3 answers kept from the run before",
    ]


def test_answers_so_far_are_told_with_their_place(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answering, "EVERY_SECONDS", 0.0)
    seen: list[tuple[int, int]] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "answers_so_far":
            assert len(read(Path(event["questions"]))) == event["total"] == 10
            seen.append((len(read(Path(event["path"]))), event["done"]))

    house.events = type("Listening", (list,), {"append": lambda _self, event: look(event)})()
    house.run(answer(batch_size=2))
    assert [found for found, _ in seen] == [done for _, done in seen]
    assert sum(done == 10 for _, done in seen) == 2


def test_kept_answers_to_other_questions_are_refused(house: House):
    path = house.root / "step/scratch/answers/base.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"id": "q99", "text": "", "tokens": 1, "stopped": true, "seconds": 1}\n')
    with pytest.raises(StoreError, match="it answers 'q99', which is not asked"):
        house.run(answer())


def test_separators_in_an_answer_do_not_end_its_line(house: House):
    path = house.root / "kept.jsonl"
    kept = answering.Kept(path, [Question("a", (Message("user", "?"),), "")])
    kept.add([(0, answering.Said("one\u2028two\x85three\x00<script>", 3, True, 0.1))], 1)
    assert answering.Kept(path, kept.questions).rows["a"]["text"] == "one\u2028two\x85three\x00<script>"


def test_a_model_is_gone_before_the_next_is_loaded(house: House, monkeypatch: pytest.MonkeyPatch):
    """Not the sum: 24 MB each, of which the second finds the first one's place free."""
    import psutil

    for seed, name in enumerate(("big", "other")):
        big = tiny_llama(seed, hidden_size=256, intermediate_size=4096, num_hidden_layers=2)
        save_model(big, byte_tokenizer(), house.add(name, house.root / "models" / name))
    alive: list[weakref.ref[Any]] = []
    memory: list[int] = []
    load = answering.load_held

    def watched(folder: Path, bits: Any) -> Any:
        assert all(model() is None for model in alive), "the last model is still in memory"
        loaded = load(folder, bits)
        alive.append(weakref.ref(loaded.model))
        memory.append(psutil.Process().memory_info().rss)
        return loaded

    monkeypatch.setattr(answering, "load_held", watched)
    gc.collect()
    house.run(answer(models=["base", "big", "other"]))
    assert len(alive) == 3
    size = 4 * sum(p.numel() for p in tiny_llama(0, hidden_size=256, intermediate_size=4096).parameters())
    assert memory[2] - memory[1] < 0.7 * size


# --- contenders that need no model


def test_trivial_contenders_come_last(house: House):
    house.examples([conversation(i, reference=f"food {i}") for i in range(10)])
    train = [conversation(i, reference=f"food {i}") | {"id": f"t{i}"} for i in (3, 7)]
    house.examples(train, split="train")
    files, metrics = house.run(answer(models=["base"], baselines=True))
    contenders = json.loads((files / "contenders.json").read_text())
    assert [(c["name"], c["kind"]) for c in contenders] == [("base", "model"), (COPY, "trivial"), (NEAREST, "trivial")]
    copied, found = (read(files / "answers" / f"{name}.jsonl") for name in (COPY, NEAREST))
    assert copied[3] == {
        "id": "q3",
        "text": "What does animal 3 eat today today today?",
        "tokens": 8,
        "stopped": True,
    }
    assert found[7]["text"] in ("food 3", "food 7")
    assert set(metrics) == {"base stopped", "base output_tokens"}


def test_without_training_questions_nothing_is_looked_up(house: House):
    files, _ = house.run(answer(models=["base"], baselines=True))
    assert [c["name"] for c in json.loads((files / "contenders.json").read_text())] == ["base", COPY]
    assert "no training questions" in house.said("note")[0]


def test_the_nearest_question_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.feature_extraction.text")
    animals, verbs = ["otter", "crab", "narwhal", "sea star", "kelp"], ["eat", "weigh", "fear", "find at night"]
    texts = [f"What does the {a} {v}? It is {i} o'clock." for i, a in enumerate(animals) for v in verbs]
    known = [Question(str(i), (Message("user", t),), f"r{i}") for i, t in enumerate(texts)]
    asked = [f"Tell me what {a}s {v}, in winter" for a in animals for v in reversed(verbs)] + ["zzz qqq"]
    questions = [Question(str(i), (Message("system", "otter"), Message("user", t)), "") for i, t in enumerate(asked)]
    tfidf = sklearn.TfidfVectorizer()
    theirs = tfidf.fit_transform(texts)
    alike = (tfidf.transform(asked) @ theirs.T).toarray()
    found = nearest_answers(questions, known).texts
    assert found[-1] == "" == f"{alike[-1].sum():.0f}".replace("0", "")
    assert found[:-1] == [f"r{row.round(12).argmax()}" for row in alike[:-1]]


def test_a_contender_may_not_take_a_trivial_ones_name(house: House):
    house.model(COPY)
    with pytest.raises(MetierError, match="names the same thing twice"):
        answer(models=[COPY], baselines=True).check(house.sources)
    answer(models=[COPY]).check(house.sources)


# --- what is trained on


def test_perplexity_refuses_leaks_before_anything_runs(tmp_path: Path):
    house = House(tmp_path)
    text = "The otter eats crabs, urchins and clams that it finds among the kelp near the shore of the bay. " * 4
    house.documents([text])
    store = tmp_path / "objects"
    for key, made in (("data", "documents"), ("model", "model")):
        (store / key / "files").mkdir(parents=True)
        inputs = {"data": {"link": "../../data/files", "field": "documents"}} if made == "model" else {}
        (store / key / "run.json").write_text(json.dumps({"produces": made, "inputs": inputs}))
    (store / "data/files/train.jsonl").write_text(json.dumps({"id": "t", "text": text}) + "\n")
    save_tiny(store / "model/files")
    house.sources["tuned"] = Source("tuned", (store / "model/files",), "", "")
    stage = Perplexity.model_validate({"models": ["tuned"], "documents": ["sea"], "contamination": {"action": "stop"}})
    with pytest.raises(DataError, match="1 of 1 documents were seen in training"):
        stage.check(house.sources)
    Perplexity.model_validate({"models": ["tuned"], "documents": ["sea"]}).check(house.sources)
    assert Answer.model_fields["baselines"].default is True
