"""Pretrain and Tune as a recipe uses them: what they write, what they refuse, and that the result loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import fakes
from metier.core.described import descriptions
from metier.core.errors import DataError, InputError, Interrupted, ModelError
from metier.core.events import Events
from metier.core.fingerprint import file_digest, tree
from metier.core.stage import Context, Runtime, Source
from metier.models.adapter import merge
from metier.models.load import load
from metier.text.artifacts import write_jsonl
from metier.train.stage import Pretrain, Training, Tune

WORDS = ["kelp sways", "the crab digs", "a ray glides", "an eel hides", "the squid darts", "coral grows"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    texts = [f"{w}. {w} again, number {i}." * (1 + i % 4) for i, w in enumerate(WORDS * 3)]
    write_jsonl(folder / "train.jsonl", [{"id": f"d{i}", "text": t} for i, t in enumerate(texts)])
    write_jsonl(folder / "heldout.jsonl", [{"id": "h", "text": "the crab digs again"}])
    write_jsonl(folder / "replay.jsonl", [{"id": f"r{i}", "text": "plain talk of the day"} for i in range(9)])
    (folder / "about.json").write_text('{"replay_ratio": 0.1, "counts": {}}')
    return folder


def conversation(i: int, answer: str = "It digs.") -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What does it do, {i}?"}, {"role": "assistant", "content": answer}]
    return {"id": f"c{i}", "messages": messages, "group": ""}


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    folder = tmp_path / "examples"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [conversation(i) for i in range(20)])
    write_jsonl(folder / "dev.jsonl", [conversation(i) for i in range(20, 24)])
    write_jsonl(folder / "replay.jsonl", [])
    (folder / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}')
    return folder


def context(folder: Path, stop: Any = lambda: False, **sources: Path) -> Context:
    for name in ("out", "measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    known = {name: Source(name, (path,), str(path), "0") for name, path in sources.items()}
    events = Events("t", folder / "events.jsonl")
    return Context("t", folder / "out", folder / "measured", folder / "scratch", events, known, stop)


def said(folder: Path, event: str) -> str:
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return "\n".join(row["text"] for row in rows if row["event"] == event)


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "about.json").read_text())


def pretrain(**fields: Any) -> Pretrain:
    return Pretrain(**{"model": "base", "documents": "data", "block_size": 64, "learning_rate": 1e-2, **fields})


def tune(**fields: Any) -> Tune:
    return Tune(**{"model": "base", "examples": "data", "learning_rate": 1e-2, "epochs": 3, **fields})


METHODS = ["full", {"freeze": {"blocks": 1}}, {"lora": {"r": 4, "alpha": 8}}]


@pytest.mark.parametrize("method", METHODS, ids=["full", "freeze", "lora"])
def test_pretrain_writes_a_model_that_loads_and_has_learned(tmp_path: Path, base: Path, documents: Path, method: Any):
    ctx = context(tmp_path, base=base, data=documents)
    metrics = pretrain(method=method).run(ctx)
    loaded = load(ctx.out)
    assert loaded.is_adapter == ("lora" in method)
    record = about(tmp_path)
    assert record["method"] == ("full" if method == "full" else next(iter(method)))
    assert record["dev_loss"]["last"] < record["dev_loss"]["before"]
    assert metrics["trained_parameters"] == record["parameters"]["trained"]
    assert metrics["dev_loss"] == record["dev_loss"]["last"]
    assert f"{record['parameters']['trained']:,} of {record['parameters']['total']:,}" in said(tmp_path, "note")
    rows = [json.loads(line) for line in (ctx.out / "train.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens"} in [set(row) for row in rows]
    assert {"step", "dev_loss"} in [set(row) for row in rows]
    measured = json.loads((ctx.measured / "about.json").read_text())
    assert measured["tokens_per_second"] > 0
    assert measured["precision"] == "fp32"  # the model is too small for anything else
    assert measured["peak_rss_bytes"] > 10**7


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]], ids=["full", "lora"])
def test_tune_answers_what_it_was_taught_and_two_runs_write_the_same_bytes(
    tmp_path: Path, base: Path, examples: Path, method: Any
):
    runs = []
    for name in ("one", "two"):
        ctx = context(tmp_path / name, base=base, data=examples)
        metrics = tune(method=method, keep_best=True, batch_size=4).run(ctx)
        runs.append({path: file_digest(file) for path, file in tree(ctx.out).items()})
    assert runs[0] == runs[1]
    assert "chat_template.jinja" in runs[0]
    record = about(tmp_path / "one")
    assert record["labels"]["masked_rows"] == record["labels"]["truncated_rows"] == 0
    assert record["labels"]["trained_tokens"] == 20 * len("It digs.") + 20  # one token a byte, and the end
    assert metrics["dev_loss"] == record["dev_loss"]["best"]
    assert record["dev_loss"]["best"] < record["dev_loss"]["before"] / 2


def test_a_stopped_step_leaves_a_checkpoint_and_the_next_run_goes_on(tmp_path: Path, base: Path, documents: Path):
    stage = pretrain(epochs=3, batch_size=2)
    whole = context(tmp_path / "whole", base=base, data=documents)
    stage.run(whole)
    looks = iter([False] * 40)
    cut = context(tmp_path / "cut", lambda: next(looks, True), base=base, data=documents)
    with pytest.raises(Interrupted):
        stage.run(cut)
    assert list((tmp_path / "cut" / "scratch").glob("checkpoint-*"))
    stage.run(context(tmp_path / "cut", base=base, data=documents))
    assert "going on from step" in said(tmp_path / "cut", "note")
    assert {n: file_digest(p) for n, p in tree(tmp_path / "cut" / "out").items()} == {
        n: file_digest(p) for n, p in tree(whole.out).items()
    }


@pytest.mark.parametrize("method", ["full", {"lora": {"r": 4}}], ids=["full", "lora"])
def test_tuning_starts_from_an_adapter_too(tmp_path: Path, base: Path, documents: Path, examples: Path, method: Any):
    first = context(tmp_path / "first", base=base, data=documents)
    pretrain(method={"lora": {"r": 4}}).run(first)
    start = merge(load(first.out))
    ctx = context(tmp_path / "second", base=first.out, data=examples)
    tune(method=method, learning_rate=1e-9, epochs=1).run(ctx)
    ids = torch.tensor([[0, 40, 50, 60]])
    with torch.no_grad():
        torch.testing.assert_close(load(ctx.out).model(ids).logits, start(ids).logits, rtol=1e-3, atol=1e-3)


def test_full_results_keep_the_type_of_the_base(tmp_path: Path, documents: Path):
    from metier.models.load import stored_dtype
    from metier.models.save import save_model

    save_model(fakes.tiny("gpt2").to(torch.bfloat16), fakes.byte_tokenizer(), tmp_path / "bf16")
    ctx = context(tmp_path, base=tmp_path / "bf16", data=documents)
    pretrain(max_steps=1).run(ctx)
    assert stored_dtype(ctx.out) == torch.bfloat16


def test_a_template_is_saved_with_the_model(tmp_path: Path, base: Path, examples: Path):
    ctx = context(tmp_path, base=base, data=examples)
    tune(prompt="plain", max_steps=1).run(ctx)
    assert "Answer:" in (ctx.out / "chat_template.jinja").read_text()


def test_cut_and_masked_rows_are_counted_and_named(tmp_path: Path, base: Path, examples: Path):
    rows = [conversation(i) for i in range(18)] + [conversation(18, "It digs. " * 20)]
    long_question = conversation(19)
    long_question["messages"][0]["content"] = "why " * 60
    write_jsonl(examples / "train.jsonl", [*rows, long_question])
    ctx = context(tmp_path, base=base, data=examples)
    tune(max_masked=0.1, max_steps=1).run(ctx)
    assert about(tmp_path)["labels"]["masked_rows"] == 1
    assert about(tmp_path)["labels"]["truncated_rows"] == 2
    assert "c18" in said(tmp_path, "warning")
    assert "c19" in said(tmp_path, "warning")
    with pytest.raises(DataError, match=r"10.0% in all, and max_masked is 5.0% \(c19, c18\)"):
        tune(max_steps=1).run(ctx)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [
            {
                **conversation(0),
                "messages": [{"role": "user", "content": "why " * 60}, {"role": "assistant", "content": "so"}],
            }
        ],
    ],
)
def test_no_row_left_is_refused(tmp_path: Path, base: Path, examples: Path, rows: list[Any]):
    write_jsonl(examples / "train.jsonl", rows)
    with pytest.raises(DataError, match="no row is left to learn from"):
        tune(max_masked=1.0).run(context(tmp_path, base=base, data=examples))


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        (pretrain(block_size=256), r"block_size: the model's context is 128 tokens"),
        (pretrain(method={"freeze": {"blocks": 3}}), r"method.freeze.blocks: the model has only 2 blocks"),
        (pretrain(method={"lora": {"r": 4, "targets": ["q_prj"]}}), r"(?s)no such linear layer.*did you mean 'q_proj'"),
        (pretrain(method={"lora": {"r": 17, "targets": ["k_proj"]}}), r"the rank is above the smaller side \(16\)"),
        (pretrain(method={"lora": {"r": 33}}), r"method.lora.r: the rank is above"),
        (pretrain(dev_every=2), r"dev_every: there is nothing to measure a dev loss on"),
    ],
)
def test_bad_input_is_seen_before_anything_runs(
    tmp_path: Path, base: Path, documents: Path, stage: Training, what: str
):
    (documents / "heldout.jsonl").unlink()
    ctx = context(tmp_path, base=base, data=documents)
    with pytest.raises(InputError, match=what):
        stage.check(ctx.sources)
    with pytest.raises(InputError):
        stage.run(ctx)
    assert not any(ctx.out.iterdir())


def test_muon_with_lora_is_refused():
    with pytest.raises(ValidationError, match="use `optimizer: adamw`"):
        pretrain(optimizer="muon", method={"lora": {"r": 4}})


def test_keep_best_needs_a_dev_split(tmp_path: Path, base: Path, examples: Path):
    (examples / "dev.jsonl").write_text("")
    ctx = context(tmp_path, base=base, data=examples)
    with pytest.raises(DataError, match="keep_best: there is nothing to measure"):
        tune(keep_best=True).check(ctx.sources)
    tune().check(ctx.sources)
    tune(max_length=500).check({"base": Source("base", (), "", "0"), "data": Source("data", (), "", "0")})
    with pytest.raises(ModelError, match="max_length: the model's context is 128"):
        tune(max_length=500).check(ctx.sources)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"freeze": {"blocks": 0, "head": False}}},
        {"method": {"lora": {"targets": []}}},
        {"method": {"lora": {"r": 0}}},
        {"method": {"lora": {"rank": 4}}},
        {"method": "lora"},
        {"epochs": 0},
        {"warmup": 1.0},
        {"learning_rate": 0.0},
        {"block_size": 2},
    ],
)
def test_values_that_mean_nothing_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        pretrain(**fields)


def test_the_learning_rate_follows_the_method():
    assert Pretrain(model="m", documents="d").peak_rate == 2e-5
    assert Tune(model="m", examples="e", method={"lora": {}}).peak_rate == 2e-4


@pytest.mark.parametrize("stage", [Pretrain, Tune])
def test_every_field_says_what_it_is(stage: type[Training]):
    assert all(descriptions(stage).get(name) for name in stage.model_fields)
    assert any(isinstance(mark, Runtime) for mark in stage.model_fields["log_every"].metadata)
