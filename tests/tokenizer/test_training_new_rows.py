"""Training the rows of new tokens: exact through the fast path, all other rows bit for bit, saved, merged, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from extending import context
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fakes
from metier.core.errors import Interrupted, ModelError
from metier.core.fingerprint import tree
from metier.core.machine import Machine
from metier.engine.local import generate
from metier.export.gguf.read import read_model, read_vocabulary
from metier.export.gguf.tokens import Tokens
from metier.export.gguf.write import write_gguf
from metier.export.merge import merge_model
from metier.models.extension import Extension, read_extension, write_extension
from metier.models.load import load
from metier.models.new_rows import new_rows
from metier.models.save import save_model
from metier.models.shape import count_parameters, input_embeddings, is_tied, output_head
from metier.text.artifacts import write_jsonl
from metier.tokenizer.extend import parsed, write
from metier.tokenizer.initialise import Recipe, evenly, resize
from metier.tokenizer.kinds import pieces
from metier.tokenizer.mining import steps_to
from metier.train.batches import Piece
from metier.train.estimate import described
from metier.train.forward import Forward, frozen_blocks
from metier.train.methods import LoraMethod, apply
from metier.train.precision import Precision
from metier.train.stage import Pretrain

WORDS = ["Ġcrab", "Ġkelp", "Ġsquid"]
KINDS = ["llama", "llama-untied", "gpt2"]
LORA: dict[str, Any] = {"lora": {"r": 4, "alpha": 8, "new_rows": True}}
FP32 = Precision("fp32", "asked for")


def make_extended(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model with a dozen new pieces, as extend_tokenizer leaves it."""
    old = fakes.byte_tokenizer()
    base = parsed(old)
    made = [step for word in WORDS for step in steps_to(pieces(old.backend_tokenizer, word))]
    (folder / "tokenizer").mkdir(parents=True)
    new = write(old, base, made, [], folder / "tokenizer")
    ids = [old.convert_tokens_to_ids(pieces(old.backend_tokenizer, piece)) for piece in made]
    model = fakes.tiny(kind)
    recipe = Recipe("mean", tuple((tuple(one), evenly(len(one))) for one in ids))
    resize(model, recipe, first=base.first_id, rows=base.first_id + len(made) + 2)
    write_extension(Extension(base.first_id, len(made), base.first_id + len(made) + 2), folder / "tokenizer")
    save_model(model.to(dtype), new, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module", params=KINDS)
def extended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_extended(tmp_path_factory.mktemp("extended"), request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_extended(tmp_path_factory.mktemp("tied"), "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"The crab eats kelp, the squid a crab; number {i}. A squid, a kelp." for i in range(16)]
    write_jsonl(folder / "train.jsonl", [{"id": f"d{i}", "text": t} for i, t in enumerate(rows)])
    write_jsonl(folder / "heldout.jsonl", [{"id": "h", "text": "A squid eats a crab in kelp."}])
    (folder / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}')
    return folder


def train(folder: Path, base: Path, texts: Path, stop: Any = lambda: False, **fields: Any) -> Path:
    ctx = context(folder, stop=stop, base=base, texts=texts)
    usual = {"model": "base", "documents": "texts", "block_size": 64, "learning_rate": 1e-2, "epochs": 2}
    stage = Pretrain(**{**usual, **fields})
    stage.check(ctx.sources)
    stage.run(ctx)
    return ctx.out


METHODS = [("rows", "rows"), ("lora", LoraMethod.model_validate(LORA))]


@pytest.mark.parametrize(("name", "method"), METHODS, ids=[m[0] for m in METHODS])
def test_loss_and_gradients_are_those_of_the_plain_forward(extended: Path, name: str, method: Any):
    loaded = load(extended)
    extension = read_extension(extended)
    assert extension is not None
    adapted, parameters = apply(loaded.model, method, seed=0, extension=extension)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model = loaded.model
    assert frozen_blocks(model) == 0
    texts = ["The crab eats kelp", " squid squid, the crab"]
    encoded = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert all(any(number in extension.ids for number in ids) for ids in encoded)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert parameters.trained == sum(p.numel() for p in named.values())
    plain = sum(
        torch.nn.functional.cross_entropy(
            model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum"
        )
        for ids in encoded
    )
    plain.backward()
    expected = {n: p.grad.clone() for n, p in named.items()}
    for parameter in named.values():
        parameter.grad = None
    with Forward(model, precision=FP32) as forward:
        loss = forward.backward([Piece.of(str(i), ids) for i, ids in enumerate(encoded)], scale=1.0)
        assert forward.flops([Piece.of("0", encoded[0])]) > 0
    assert loss.item() == pytest.approx(float(plain.detach()), rel=1e-5)
    for parameter_name, gradient in expected.items():
        assert torch.allclose(named[parameter_name].grad, gradient, atol=1e-5), parameter_name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_alone_train_and_all_else_keeps_its_bits(tmp_path: Path, texts: Path, kind: str, dtype: torch.dtype):
    base = make_extended(tmp_path / "base", kind, dtype)
    out = train(tmp_path / "run", base, texts, method="rows", batch_size=4, epochs=6)
    before, after = load(base, dtype=dtype).model, load(out, dtype=dtype).model
    extension = json.loads((out / "extension.json").read_text())
    span = slice(extension["first"], extension["first"] + extension["count"])
    for matrix in (input_embeddings, output_head):
        old, new = matrix(before).weight, matrix(after).weight
        assert not torch.equal(old[span], new[span])
        assert torch.equal(old[: span.start], new[: span.start])
        assert torch.equal(old[span.stop :], new[span.stop :])
    assert is_tied(after) == (kind != "llama-untied")
    embedded = {"model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"}
    for name, value in before.state_dict().items():
        assert name in embedded or torch.equal(value, after.state_dict()[name]), name
    record = json.loads((out / "about.json").read_text())
    matrices = 2 if kind == "llama-untied" else 1
    assert record["method"] == "rows"
    assert record["parameters"]["trained"] == extension["count"] * 32 * matrices
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


def test_saved_with_the_adapter_reloaded_and_merged_it_answers_alike(tmp_path: Path, extended: Path, texts: Path):
    out = train(tmp_path / "run", extended, texts, method=LORA)
    loaded = load(out)
    ids = torch.tensor([loaded.tokenizer.encode("The crab eats kelp and squid", add_special_tokens=False)])
    logits = loaded.model(ids).logits
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32), str(out))
    assert torch.allclose(stock.eval()(ids).logits, logits, atol=1e-5)
    merged = merge_model(out, tmp_path / "merged")
    assert merged.parity is not None
    assert merged.parity.written < 1e-4
    plain = load(tmp_path / "merged")
    assert torch.allclose(plain.model(ids).logits, logits, atol=1e-4)
    base = load(extended).model
    extension = json.loads((tmp_path / "merged" / "extension.json").read_text())
    span = slice(extension["first"], extension["first"] + extension["count"])
    for matrix in (input_embeddings, output_head):
        old, new = matrix(base).weight, matrix(plain.model).weight
        assert torch.equal(old[: span.start], new[: span.start])
        assert torch.equal(old[span.stop :], new[span.stop :])
        fresh = new_rows(getattr(loaded.model.get_base_model(), f"get_{_END[matrix]}_embeddings")())
        assert fresh is not None
        assert torch.equal(new[span], fresh.values)
        assert not torch.equal(new[span], old[span])
    assert is_tied(plain.model) == is_tied(base)
    prompts = [ids[0].tolist()]
    assert generate(loaded, prompts, max_new_tokens=6)[0].ids == generate(plain, prompts, max_new_tokens=6)[0].ids


_END = {input_embeddings: "input", output_head: "output"}


def test_without_new_rows_the_adapter_leaves_the_embeddings_alone(tmp_path: Path, tied: Path, texts: Path):
    out = train(tmp_path / "a", tied, texts, method={"lora": {"r": 4}})
    assert not any("embed" in name or "token" in name for name in load_file(out / "adapter_model.safetensors"))
    with_rows = train(tmp_path / "b", tied, texts, method=LORA)
    held = load_file(with_rows / "adapter_model.safetensors")
    (name,) = [name for name in held if "trainable_tokens_delta" in name]
    extension = json.loads((with_rows / "extension.json").read_text())
    assert held[name].shape == (extension["count"], 32)


def test_rows_then_an_adapter_then_all_weights(tmp_path: Path, tied: Path, texts: Path):
    first = train(tmp_path / "1", tied, texts, method="rows")
    second = train(tmp_path / "2", first, texts, method=LORA)
    third = train(tmp_path / "3", second, texts, method="full", learning_rate=1e-3)
    losses = [json.loads((out / "about.json").read_text())["dev_loss"]["last"] for out in (first, second, third)]
    assert losses == sorted(losses, reverse=True)
    assert is_tied(load(third).model)


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, tied: Path, texts: Path):
    whole = train(tmp_path / "whole", tied, texts, method=LORA, batch_size=2)
    calls = iter(range(10**6))
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", tied, texts, method=LORA, batch_size=2, stop=lambda: next(calls) > 30)
    again = train(tmp_path / "cut", tied, texts, method=LORA, batch_size=2)
    assert {n: p.read_bytes() for n, p in tree(again).items()} == {n: p.read_bytes() for n, p in tree(whole).items()}


@pytest.mark.parametrize("quantize", ["int8", "4bit"])
def test_new_rows_train_on_a_quantised_base_too(tmp_path: Path, tied: Path, texts: Path, quantize: str):
    out = train(tmp_path, tied, texts, method=LORA, quantize=quantize)
    record = json.loads((out / "about.json").read_text())
    assert record["dev_loss"]["last"] < record["dev_loss"]["before"]
    assert load(out).is_adapter


def test_an_adapter_on_a_base_that_was_not_extended_is_refused(tmp_path: Path, tied: Path, texts: Path):
    out = train(tmp_path / "run", tied, texts, method=LORA)
    plain = fakes.save_tiny(tmp_path / "plain")
    (out / "base.json").write_text(json.dumps({"base": str(plain)}))
    with pytest.raises(ModelError, match="its base has only") as caught:
        load(out)
    assert "extended model" in str(caught.value.cure)


@pytest.mark.parametrize("method", ["rows", LORA], ids=["rows", "lora"])
def test_new_rows_of_a_model_that_has_none_are_refused(tmp_path: Path, texts: Path, method: Any):
    plain = fakes.save_tiny(tmp_path / "plain")
    with pytest.raises(ModelError, match="no new rows to train"):
        train(tmp_path / "run", plain, texts, method=method)


def test_what_was_passed_through_stays_as_it_is(tmp_path: Path, texts: Path):
    plain = fakes.save_tiny(tmp_path / "plain")
    rows = load(plain).model.config.vocab_size
    write_extension(Extension(rows, 0, rows), plain)
    out = train(tmp_path / "rows", plain, texts, method="rows")
    before, after = load(plain).model.state_dict(), load(out).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert json.loads((out / "about.json").read_text())["steps"] == 0
    adapter = train(tmp_path / "lora", out, texts, method=LORA)
    assert load(adapter).is_adapter


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"method": "rows", "optimizer": "muon"}, "muon makes whole matrices orthogonal"),
        ({"method": "rows", "quantize": "8bit"}, "quantised base stays as it is"),
        ({"method": "rows", "prefix_cache": "disk"}, "`method: rows` none is"),
    ],
)
def test_settings_that_do_not_go_with_rows_are_refused(fields: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        Pretrain(**{"model": "m", "documents": "d", **fields})


@pytest.mark.parametrize(("name", "method"), METHODS, ids=[m[0] for m in METHODS])
def test_what_the_estimate_counts_is_what_trains(tmp_path: Path, extended: Path, texts: Path, name: str, method: Any):
    stage = Pretrain(model="base", documents="texts", block_size=64, method=method)
    sources = context(tmp_path, base=extended, texts=texts).sources
    found = described(stage, sources, Machine(1e12, "cpu", "fp32"))
    assert found is not None
    job, _ = found
    adapted, parameters = apply(load(extended).model, method, seed=0, extension=read_extension(extended))
    assert sum(job.trained.values()) == parameters.trained == count_parameters(adapted).trained
    assert job.frozen_blocks == 0


def test_merged_and_written_as_gguf_ids_and_logits_stay(tmp_path: Path, extended: Path, texts: Path):
    out = train(tmp_path / "run", extended, texts, method=LORA, max_steps=3)
    merge_model(out, tmp_path / "merged")
    loaded = load(tmp_path / "merged")
    written = write_gguf(tmp_path / "merged", tmp_path / "a.gguf", "F32")
    tokens = Tokens(read_vocabulary(tmp_path / "a.gguf"))
    text = "The crab eats kelp, the squid a crab; it kelps."
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    assert tokens.encode(text, begin=False) == ids
    assert any(number in new_ids(extended) for number in ids)
    assert written.tokens[-1].startswith("[PAD")
    row = torch.tensor([ids])
    with torch.no_grad():
        assert (read_model(tmp_path / "a.gguf")(row).logits - loaded.model(row).logits).abs().max() < 1e-4


def new_ids(folder: Path) -> range:
    extension = read_extension(folder)
    assert extension is not None
    return extension.ids
