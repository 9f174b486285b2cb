"""Quantised bases, what each method holds in memory, and the settings of a recipe: that they act or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_training_stages import about, context, conversation, documents, examples, pretrain, said, tune

import fakes
from metier.core.errors import InputError, Interrupted, MissingExtra, ModelError
from metier.core.fingerprint import file_digest, tree
from metier.models.adapter import merge
from metier.models.builtin import plain_config
from metier.models.load import load, stored_dtype
from metier.models.save import save_model
from metier.train import job
from metier.train.batches import Batches
from metier.train.forward import Forward
from metier.train.known import anatomy_of
from metier.train.precision import choose
from metier.train.stage import Training, Tune

__all__ = ["documents", "examples"]  # fixtures

LORA = {"lora": {"r": 4, "alpha": 8}}
QUANTIZE = ["int8", "8bit", "4bit"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model", "llama-untied")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("gpt2") / "model", "gpt2")


@pytest.mark.parametrize("quantize", QUANTIZE)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_on_a_quantised_base_learns_and_belongs_to_the_whole_one(
    tmp_path: Path, base: Path, gpt2: Path, examples: Path, quantize: str, kind: str
):
    model = base if kind == "llama" else gpt2
    plain = context(tmp_path / "plain", base=model, data=examples)
    tune(method=LORA, batch_size=4).run(plain)
    ctx = context(tmp_path / "quantised", base=model, data=examples)
    metrics = tune(method=LORA, batch_size=4, quantize=quantize).run(ctx)
    expected, found = about(tmp_path / "plain"), about(tmp_path / "quantised")
    assert found["quantize"] == quantize
    assert found["parameters"] == expected["parameters"]
    assert found["dev_loss"]["last"] < found["dev_loss"]["before"] / 2
    tolerance = 0.15 if quantize == "4bit" else 0.03
    assert found["dev_loss"]["before"] == pytest.approx(expected["dev_loss"]["before"], rel=tolerance)
    assert f"base in {quantize}" in said(tmp_path / "quantised", "note")
    loaded = load(ctx.out)
    assert json.loads((ctx.out / "base.json").read_text())["base"] == str(model)
    merged = merge(loaded)
    assert stored_dtype(ctx.out) == torch.float32
    assert all(parameter.isfinite().all() for parameter in merged.parameters())
    assert metrics["trained_parameters"] == expected["parameters"]["trained"]


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_a_stopped_run_on_a_quantised_base_ends_with_the_same_bytes(
    tmp_path: Path, base: Path, documents: Path, quantize: str
):
    stage = pretrain(method=LORA, quantize=quantize, epochs=2, batch_size=2, optimizer="adamw8bit")
    whole = context(tmp_path / "whole", base=base, data=documents)
    stage.run(whole)
    looks = iter([False] * 34)
    cut = context(tmp_path / "cut", lambda: next(looks, True), base=base, data=documents)
    with pytest.raises(Interrupted):
        stage.run(cut)
    stage.run(context(tmp_path / "cut", base=base, data=documents))
    assert "going on from step" in said(tmp_path / "cut", "note")
    assert {n: file_digest(p) for n, p in tree(cut.out).items()} == {
        n: file_digest(p) for n, p in tree(whole.out).items()
    }


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_an_adapter_below_is_merged_before_the_base_is_quantised(
    tmp_path: Path, base: Path, documents: Path, examples: Path, quantize: str
):
    first = context(tmp_path / "first", base=base, data=documents)
    pretrain(method=LORA).run(first)
    whole, quantised = (context(tmp_path / name, base=first.out, data=examples) for name in ("whole", "quantised"))
    tune(method=LORA, learning_rate=1e-9, epochs=1).run(whole)
    tune(method=LORA, learning_rate=1e-9, epochs=1, quantize=quantize).run(quantised)
    before = [about(tmp_path / name)["dev_loss"]["before"] for name in ("whole", "quantised")]
    assert before[0] == pytest.approx(before[1], rel=0.15 if quantize == "4bit" else 0.03)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.dtype]:
    """The types that parameters have when training starts."""
    found: dict[str, torch.dtype] = {}
    fit = job.fit

    def spy(model: Any, *args: Any, **named: Any) -> Any:
        found.update({name: parameter.dtype for name, parameter in model.named_parameters()})
        return fit(model, *args, **named)

    monkeypatch.setattr(job, "fit", spy)
    return found


@pytest.mark.parametrize("start", ["model", "adapter"])
def test_below_a_lora_weights_are_held_in_the_type_of_the_products(
    tmp_path: Path, base: Path, documents: Path, held: dict[str, torch.dtype], start: str
):
    model = base
    if start == "adapter":
        first = context(tmp_path / "first", base=base, data=documents)
        pretrain(method=LORA, precision="fp32", max_steps=1).run(first)
        assert set(held.values()) == {torch.float32}
        model = first.out
        held.clear()
    pretrain(method=LORA, precision="bf16", max_steps=1).run(context(tmp_path, base=model, data=documents))
    assert {dtype for name, dtype in held.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in held.items() if "lora_" not in name} == {torch.bfloat16}


def test_frozen_weights_are_held_short_and_saved_as_they_were(
    tmp_path: Path, base: Path, documents: Path, held: dict[str, torch.dtype]
):
    ctx = context(tmp_path, base=base, data=documents)
    method = {"freeze": {"blocks": 1, "head": False, "patterns": [r"layers\.0\.mlp\.up"]}}
    pretrain(method=method, precision="bf16").run(ctx)
    trained = {name for name, dtype in held.items() if dtype == torch.float32}
    assert "model.layers.0.mlp.up_proj.weight" in trained
    assert {name for name in trained if "layers.0" in name} == {"model.layers.0.mlp.up_proj.weight"}
    assert held["lm_head.weight"] == torch.bfloat16
    before, after = load(base).model, load(ctx.out).model
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed == trained


def test_full_weights_are_float32(tmp_path: Path, base: Path, documents: Path, held: dict[str, torch.dtype]):
    pretrain(precision="bf16", max_steps=1).run(context(tmp_path, base=base, data=documents))
    assert set(held.values()) == {torch.float32}


def test_a_bfloat16_model_is_frozen_and_trained_too(tmp_path: Path, documents: Path, held: dict[str, torch.dtype]):
    save_model(fakes.tiny("llama-untied").to(torch.bfloat16), fakes.byte_tokenizer(), tmp_path / "half")
    for precision, frozen in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        ctx = context(tmp_path / precision, base=tmp_path / "half", data=documents)
        pretrain(method={"freeze": {"blocks": 1}}, precision=precision, max_steps=1).run(ctx)
        assert held["model.embed_tokens.weight"] == frozen
        assert stored_dtype(ctx.out) == torch.bfloat16


def test_rank_patterns_reach_the_adapter_and_come_back(tmp_path: Path, gpt2: Path, documents: Path):
    ctx = context(tmp_path, base=gpt2, data=documents)
    lora = {"r": 4, "targets": ["c_attn", "c_fc"], "rank_pattern": {r"h\.1\..*": 2, r"h\.0\.mlp\.c_fc": 8}}
    metrics = pretrain(method={"lora": lora}, max_steps=2).run(ctx)
    # sides 32 + 96 (attention) and 32 + 128 (MLP); block 0: 4 and 8, block 1: 2 and 2
    assert metrics["trained_parameters"] == 128 * (4 + 2) + 160 * (8 + 2)
    with torch.no_grad():
        merge(load(ctx.out))


def test_early_stopping_saves_the_best_and_says_so(tmp_path: Path, base: Path, examples: Path):
    ctx = context(tmp_path, base=base, data=examples)
    metrics = tune(learning_rate=3.0, dev_every=1, patience=2, epochs=9).run(ctx)
    record = about(tmp_path)
    assert record["steps"] < 9 * 3
    assert record["saved_step"] == record["best_step"]
    assert metrics["dev_loss"] == record["dev_loss"]["best"] <= record["dev_loss"]["before"]
    assert "stopped after step" in said(tmp_path, "note")


def test_a_prompt_counts_as_much_as_it_is_told_to_but_not_in_the_dev_loss(tmp_path: Path, base: Path, examples: Path):
    found = {}
    for weight in (0.0, 0.5):
        ctx = context(tmp_path / str(weight), base=base, data=examples)
        tune(prompt_loss_weight=weight, max_steps=2, precision="fp32").run(ctx)
        found[weight] = about(tmp_path / str(weight))
    assert found[0.5]["targets_seen"] > 2 * found[0.0]["targets_seen"]
    assert found[0.5]["dev_loss"]["before"] == pytest.approx(found[0.0]["dev_loss"]["before"], rel=1e-6)
    assert found[0.5]["dev_loss"]["last"] != found[0.0]["dev_loss"]["last"]


def test_weighted_prompts_are_a_weighted_mean():
    """Against the loss by hand, from the model's own scores."""
    model = fakes.tiny("llama")
    from metier.train.batches import Piece, weight_of

    piece = Piece.of("a", [0, 40, 50, 60, 70, 80], [False, False, False, True, True, True], prompt_weight=0.25)
    with Forward(model, precision=choose("fp32", width=32)) as forward:
        found = forward.backward([piece], scale=1 / weight_of([piece])) / weight_of([piece])
    ids = torch.tensor([[0, 40, 50, 60, 70, 80]])
    losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    weights = torch.tensor([0.25, 0.25, 1, 1, 1])
    torch.testing.assert_close(found, (losses * weights).sum() / weights.sum(), rtol=1e-5, atol=1e-5)


def test_settings_reach_the_forward_pass_and_the_batches(
    tmp_path: Path, base: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: dict[str, Any] = {}

    class Spy(Forward):
        def __init__(self, model: Any, **named: Any):
            seen.update(named)
            super().__init__(model, **named)

    def batches(*args: Any, **named: Any) -> Batches:
        made = Batches(*args, **named)
        seen["micro_tokens"] = made.micro_tokens
        return made

    monkeypatch.setattr(job, "Forward", Spy)
    monkeypatch.setattr("metier.train.batches.Batches", batches)
    stage = tune(label_smoothing=0.1, neftune=5.0, gradient_checkpointing=True, micro_batch=64, max_steps=2)
    stage.run(context(tmp_path, base=base, data=examples))
    assert (seen["label_smoothing"], seen["neftune"], seen["checkpointing"], seen["micro_tokens"]) == (
        0.1,
        5.0,
        True,
        64,
    )


def test_checkpointing_and_micro_batches_change_no_result(tmp_path: Path, base: Path, examples: Path):
    ends = []
    for name, change in (
        ("plain", {}),
        ("checkpointed", {"gradient_checkpointing": True}),
        ("cut", {"micro_batch": 64}),
    ):
        ctx = context(tmp_path / name, base=base, data=examples)
        tune(precision="fp32", max_steps=3, **change).run(ctx)
        ends.append(about(tmp_path / name)["dev_loss"]["last"])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5) == pytest.approx(ends[2], rel=1e-5)


def test_a_resumed_run_goes_on_with_what_was_chosen_first(
    tmp_path: Path, base: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
):
    """The machine would choose otherwise now: the choice that was written down counts."""
    stage = tune(micro_batch="auto", epochs=2)
    looks = iter([False] * 30)
    with pytest.raises(Interrupted):
        stage.run(context(tmp_path, lambda: next(looks, True), base=base, data=examples))
    first = json.loads((tmp_path / "scratch" / "chosen.json").read_text())
    assert first["micro_tokens"] >= 128
    monkeypatch.setattr(job, "micro_tokens", lambda *_: 1)
    stage.run(context(tmp_path, base=base, data=examples))
    record = json.loads((tmp_path / "measured" / "about.json").read_text())
    assert (record["micro_tokens"], record["precision"]) == (first["micro_tokens"], first["precision"])
    assert record["precision_because"] == first["why"]


REFUSED = [
    ({"method": {"lora": {"r": 4, "rank_pattern": {"q_prj": 2}}}}, r"(?s)rank_pattern.*did you mean 'q_proj'"),
    ({"method": {"lora": {"r": 4, "rank_pattern": {"k_proj": 17}}}}, r"rank_pattern: the rank is above"),
    ({"method": {"lora": {"r": 4, "targets": ["layers.2.mlp.up_proj"]}}}, r"no such linear layer"),
    ({"method": {"freeze": {"blocks": 1, "patterns": ["embbed"]}}}, r"matches no parameter"),
    ({"method": {"freeze": {"blocks": 2}}, "prefix_cache": "disk", "epochs": 2}, r"prefix_cache: no block lies below"),
    ({"method": LORA, "prefix_cache": "memory", "epochs": 2}, r"prefix_cache: no block lies below"),
]


@pytest.mark.parametrize(("fields", "what"), REFUSED)
def test_what_does_not_fit_the_model_is_seen_before_weights_load(
    tmp_path: Path, base: Path, documents: Path, fields: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job, "load_base", lambda *_: pytest.fail("weights were loaded"))
    ctx = context(tmp_path, base=base, data=documents)
    for act in (pretrain(**fields).check, lambda _: pretrain(**fields).run(ctx)):
        with pytest.raises(ModelError, match=what):
            act(ctx.sources)


def test_an_architecture_not_known_from_its_config_is_asked_for_its_layers(tmp_path: Path, examples: Path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=265, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    save_model(GPTNeoXForCausalLM(config), fakes.byte_tokenizer(), tmp_path / "neox")
    assert "query_key_value" in anatomy_of(tmp_path / "neox", plain_config(tmp_path / "neox")).names
    ctx = context(tmp_path, base=tmp_path / "neox", data=examples)
    with pytest.raises(ModelError, match=r"(?s)no such linear layer.*query_key_value"):
        tune(method={"lora": {"r": 4, "targets": ["q_proj"]}}).check(ctx.sources)


def test_layers_that_int8_cannot_multiply_are_refused(tmp_path: Path, examples: Path):
    model = fakes.tiny("llama")
    model.config.intermediate_size = 60
    save_model(type(model)(model.config), fakes.byte_tokenizer(), tmp_path / "odd")
    ctx = context(tmp_path, base=tmp_path / "odd", data=examples)
    with pytest.raises(ModelError, match=r"(?s)quantize: int8 products need.*32 x 60.*quantize: 8bit"):
        tune(method=LORA, quantize="int8").check(ctx.sources)


@pytest.mark.parametrize("quantize", [None, "8bit"])
def test_a_model_that_is_quantised_already_is_refused(tmp_path: Path, examples: Path, quantize: str | None):
    folder = fakes.save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    ctx = context(tmp_path, base=folder, data=examples)
    with pytest.raises(ModelError, match=r"(?s)quantised already.*gptq.*the model it was quantised from"):
        tune(method=LORA, quantize=quantize).check(ctx.sources)


@pytest.mark.parametrize("fields", [{"method": LORA, "quantize": "4bit"}, {"optimizer": "adamw8bit"}])
def test_without_bitsandbytes_the_line_that_installs_it_is_named(
    tmp_path: Path, base: Path, examples: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("metier.train.stage.find_spec", lambda _: None)
    ctx = context(tmp_path, base=base, data=examples)
    for act in (tune(**fields).check, lambda _: tune(**fields).run(ctx)):
        with pytest.raises(MissingExtra, match=r"(?s)bitsandbytes.*pip install 'metier\[quant\]'"):
            act(ctx.sources)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a machine without a GPU says")
def test_fp16_without_a_gpu_is_refused(tmp_path: Path, base: Path, examples: Path):
    ctx = context(tmp_path, base=base, data=examples)
    with pytest.raises(InputError, match=r"(?s)fp16 on a CPU.*precision: auto"):
        tune(precision="fp16").check(ctx.sources)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"quantize": "4bit"}, "full fine-tuning.*lora"),
        ({"quantize": "int8", "method": {"freeze": {"blocks": 1}}}, "freeze cannot train it.*lora"),
        ({"quantize": "int8", "method": {"lora": {"dora": True}}}, "use `quantize: 8bit`"),
        ({"quantize": "3bit", "method": LORA}, "int8"),
        ({"decay": 0.2}, "decay has no effect with `schedule: cosine`"),
        ({"schedule": "wsd", "decay": 0.0}, "greater than 0"),
        ({"patience": 3, "epochs": 3}, "can never run out"),
        ({"patience": 0, "dev_every": 1}, "greater than or equal to 1"),
        ({"prefix_cache": "off"}, "with `method: full` none is"),
        ({"prefix_cache": "disk", "method": {"freeze": {"blocks": 1}}, "epochs": 1}, "from the second epoch on"),
        ({"prefix_cache": "disk", "method": {"freeze": {"blocks": 1}}, "neftune": 5.0, "epochs": 2}, "neftune changes"),
        ({"label_smoothing": 1.0}, "less than 1"),
        ({"neftune": 0.0}, "greater than 0"),
        ({"micro_batch": 1}, "greater than or equal to 16"),
        ({"prompt_loss_weight": 1.5}, "less than or equal to 1"),
        ({"method": {"freeze": {"blocks": 1, "patterns": ["("]}}}, "no regular expression"),
        ({"method": {"lora": {"rank_pattern": {"q_proj": 0}}}}, "greater than or equal to 1"),
        ({"optimizer": "adam8bit"}, "adamw8bit"),
    ],
)
def test_settings_that_contradict_are_refused(fields: dict[str, Any], what: str):
    with pytest.raises(ValidationError, match=what):
        tune(**fields)


def test_a_prompt_weight_is_for_conversations_alone():
    assert "prompt_loss_weight" not in Training.model_fields
    assert "prompt_loss_weight" in Tune.model_fields
    with pytest.raises(ValidationError, match="prompt_loss_weight"):
        pretrain(prompt_loss_weight=0.5)


def test_a_row_without_an_answer_is_left_out_whatever_its_prompt_weighs(tmp_path: Path, base: Path, examples: Path):
    long_question = conversation(99)
    long_question["messages"][0]["content"] = "why " * 60
    with (examples / "train.jsonl").open("a") as file:
        file.write(json.dumps(long_question) + "\n")
    ctx = context(tmp_path, base=base, data=examples)
    tune(prompt_loss_weight=1.0, max_steps=1).run(ctx)
    assert about(tmp_path)["labels"]["masked_rows"] == 1
