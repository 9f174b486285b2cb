"""Tasks of lm-evaluation-harness from a folder, offline; and `choose` equals it on the same strings."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_stages import House

from metier.core.errors import DataError, MissingExtra, RecipeError
from metier.core.stage import Source
from metier.evaluate import harness
from metier.evaluate.choosing import How, choose
from metier.evaluate.harness import Harness
from metier.models.load import load
from metier.text.chat import prompt_choices
from metier.text.items import Item
from metier.text.nouns import Message
from metier.text.prompts import template_text

TASK = """\
task: even
dataset_path: json
dataset_kwargs:
  data_files: {test: items.jsonl}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: label
doc_to_choice: ["yes", "no", "maybe so"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
LABELS = ("yes", "no", "maybe so")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    house = House(tmp_path)
    house.model("a", seed=1)
    house.model("b", "gpt2", seed=2)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "even.yaml").write_text(TASK)
    (folder / "code.yaml").write_text(TASK.replace("task: even", "task: code") + "process_docs: !function x.y\n")
    rows = [{"question": f"Is {n} even?", "label": n % 3} for n in range(10)]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    house.sources["tasks"] = Source("tasks", tuple(sorted(folder.iterdir())), "tasks", "tasks")
    return house


def stage(**others: Any) -> Harness:
    return Harness.model_validate(
        {"kind": "harness", "models": ["a", "b"], "folder": "tasks", "tasks": ["even"]} | others
    )


def test_a_task_is_run_and_choose_agrees(house: House) -> None:
    files, metrics = house.run(stage(), "scored")
    scores = json.loads((files / "scores.json").read_text())
    assert set(metrics) == {f"{name} even {metric}" for name in "ab" for metric in ("acc", "acc_bytes")}
    (versus,) = next(r["versus"] for r in scores["rows"] if r["contender"] == "b" and r["metric"] == "acc")
    assert versus["against"] == "a"
    assert versus["test"].startswith("mcnemar")
    items = [json.loads(line) for line in (files / "items.jsonl").read_text().splitlines()]
    assert [item["id"] for item in items[:2]] == ["even/0", "even/1"]
    mean = sum(item["acc"] for item in items if item["contender"] == "a") / 10
    assert metrics["a even acc"] == pytest.approx(mean)


def test_bad_input_of_the_harness(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no task of that name(.|\n)*did you mean 'even'"):
        stage(tasks=["evn"]).check(house.sources)
    with pytest.raises(DataError, match="runs Python"):
        stage(tasks=["code"]).check(house.sources)
    stage(tasks=["code"], run_code=True).check(house.sources)
    with pytest.raises(RecipeError, match="no contender"):
        stage(against=["c"]).check(house.sources)
    monkeypatch.setattr(harness, "PACKAGE", "lm_eval_that_is_not_there")
    with pytest.raises(MissingExtra, match=r"metier\[harness\]"):
        stage().check(house.sources)


def test_data_that_is_not_there_is_a_clear_error(house: House) -> None:
    folder = house.sources["tasks"].paths[0].parent
    (folder / "items.jsonl").unlink()
    with pytest.raises(DataError, match="cannot run the tasks"):
        house.run(stage(models=["a"]), "scored")


def test_choose_equals_the_harness_item_by_item(house: House) -> None:
    """The same strings in the same model: every log-likelihood, with labels of one token and of several."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    for name in "ab":
        loaded = load(house.sources[name].path)
        lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4, device="cpu", max_length=128)
        for prompt in ("chat", "plain"):
            how = How(prompt=prompt)  # type: ignore[arg-type]
            asked = [Item(f"{n}", (Message("user", f"Is {'a' * n} so? "),), LABELS, "no") for n in range(1, 20, 4)]
            found = choose(loaded, asked, how)
            template = template_text("plain") if prompt == "plain" else None
            written = [prompt_choices(loaded.tokenizer, i.messages, i.choices, template=template) for i in asked]
            requests = [
                Instance("loglikelihood", {}, (one.context, continuation), 0)
                for one in written
                for continuation in one.continuations
            ]
            theirs = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
            ours = [choice["logprob"] for row in found for choice in row["choices"]]
            assert ours == pytest.approx(theirs, abs=1e-4)
