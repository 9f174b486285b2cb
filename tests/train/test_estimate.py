"""What is predicted of a step, held against real models, the real forward pass and the count of its operations."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

import fakes
from metier.core.errors import InputError
from metier.core.machine import Machine
from metier.core.stage import Source
from metier.models.builtin import BUILTIN
from metier.models.quantized import Kind, mark, quantized
from metier.models.shape import count_parameters
from metier.models.stream import convert_
from metier.train import costs, estimate
from metier.train.batches import Piece
from metier.train.flops import count
from metier.train.forward import Forward, frozen_blocks
from metier.train.methods import FreezeMethod, LoraMethod, Method, apply, name_of
from metier.train.precision import Precision
from metier.train.reading import tokens_a_byte
from metier.train.rows import pack
from metier.train.sizes import Job, Reading, Shape
from metier.train.stage import Pretrain, Tune


def lora(**settings: Any) -> LoraMethod:
    return LoraMethod.model_validate({"lora": {"r": 4, **settings}})


def freeze(**settings: Any) -> FreezeMethod:
    return FreezeMethod.model_validate({"freeze": settings})


METHODS: list[Method] = [
    "full",
    freeze(blocks=1),
    freeze(blocks=1, head=False),
    freeze(blocks=0, patterns=[r"\.0\..*(q_proj|c_attn)"], head=False),
    lora(),
]
LONGEST = 1024
READING = Reading(10_000, 5_000, 2.0, 10, 1_000, 1, 200, False, 50)


def shape_of(model: PreTrainedModel) -> Shape:
    shape = Shape.of(json.loads(json.dumps(model.config.to_dict())))
    assert shape is not None
    return shape


def tinyllama(method: Method = "full", **settings: Any) -> Job:
    shape = Shape.of(fakes.TINYLLAMA)
    assert shape is not None
    return Job(shape, method, settings.pop("precision", "bf16"), **settings)


def needed(job: Job, reading: Reading = READING) -> float:
    return sum(costs.memory(job, reading).values())


# ---- numbers of parameters, operations and activations, against the real ones ---------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_numbers_of_parameters_are_the_models_own(kind: str, method: Method):
    model = fakes.tiny(kind)
    job = Job(shape_of(model), method, "fp32")
    assert sum(job.shape.sizes.values()) == count_parameters(model).total
    _, parameters = apply(model, method, seed=0)
    assert sum(job.trained.values()) == parameters.trained
    assert job.frozen_blocks == frozen_blocks(model)


def test_a_rank_pattern_counts():
    model = fakes.tiny("llama")
    method = lora(targets=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    job = Job(shape_of(model), method, "fp32")
    assert set(job.ranks.values()) == {4, 2}
    assert sum(job.trained.values()) == apply(model, method, seed=0)[1].trained


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("cached", [False, True])
def test_operations_are_those_of_the_forward_pass(kind: str, method: Method, cached: bool):
    model = fakes.tiny(kind)
    job = Job(shape_of(model), method, "fp32")
    apply(model, method, seed=0)
    pieces = [Piece.of("a", list(range(6, 70)), [i >= 30 for i in range(64)]) for _ in range(4)]
    real = count(model, pack(pieces), frozen=frozen_blocks(model), cached=cached)
    reading = Reading(256, 4 * 34, 1, 1, 256, 1, 64, True, 4)
    assert costs.operations(job, reading, cached=cached) == pytest.approx(real, rel=0.06)


def small(kind: str) -> PreTrainedModel:
    """Four blocks, wide enough that activations are more than trifles."""
    if kind == "llama":
        sides = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}
        return fakes.tiny_llama(tied=False, max_position_embeddings=LONGEST, **sides)
    share = 0.1 if kind == "gpt2-dropout" else 0.0
    drops = {"resid_pdrop": share, "attn_pdrop": share, "embd_pdrop": 0.0}
    return fakes.tiny_gpt2(n_embd=256, n_layer=4, n_head=8, n_positions=LONGEST, **drops)


def kept_by(model: PreTrainedModel, forward: Forward, micro: list[Piece]) -> int:
    """Bytes of all that the blocks keep for backward, each piece of memory once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = forward._hidden(pack(micro))
    assert hidden.requires_grad
    return sum(storage.nbytes() for place, storage in found.items() if place not in own)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt2-dropout"])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("full", "fp32"),
        ("full", "bf16"),
        (lora(r=16), "bf16"),
        (lora(r=16), "fp32"),
        (lora(r=16, dora=True), "bf16"),
        (lora(r=16, dora=True), "fp32"),
        (freeze(blocks=2), "bf16"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("length", "count", "first"), [(128, 8, 1), (128, 8, 64), (LONGEST, 1, 1)])
def test_the_table_says_what_the_blocks_keep(kind: str, method: Method, name: Any, length: int, count: int, first: int):
    real, job, reading = _kept(kind, method, name, length, count, first, checkpointing=False)
    assert costs.activations(job, reading) == pytest.approx(real, rel=0.08)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_bases_of_bitsandbytes_keep_what_the_others_do(kind: str, quantize: Kind):
    real, job, reading = _kept(kind, lora(r=16), "bf16", 128, 8, 64, checkpointing=False, quantize=quantize)
    assert costs.activations(job, reading) == pytest.approx(real, rel=0.08)


def test_dora_with_dropout_alone_goes_through_the_modules():
    assert {tinyllama(lora(), quantize=kind).way for kind in (None, "int8", "8bit", "4bit")} == {"fast"}
    assert {tinyllama(lora(dora=True), quantize=kind).way for kind in (None, "8bit", "4bit")} == {"dora"}
    assert tinyllama(lora(dora=True, dropout=0.1)).way == "modules"


def test_with_checkpointing_only_each_blocks_input_is_kept():
    real, job, reading = _kept("llama", "full", "bf16", 128, 8, 1, checkpointing=True)
    assert costs.activations(job, reading) == pytest.approx(real, rel=0.05)


def _kept(
    kind: str,
    method: Method,
    name: Any,
    length: int,
    count: int,
    first: int,
    *,
    checkpointing: bool,
    quantize: Kind | None = None,
) -> tuple[int, Job, Reading]:
    model = small(kind)
    job = Job(shape_of(model), method, name, quantize=quantize, checkpointing=checkpointing)
    if name == "bf16" and method != "full":
        model.to(torch.bfloat16)
    if quantize is not None:
        convert_(model, lambda layer: quantized(layer, quantize, compute=torch.bfloat16))
        mark(model, quantize)
    apply(model, method, seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    ids = torch.randint(6, 265, (length,)).tolist()
    micro = [Piece.of("a", ids, [i >= first for i in range(length)]) for _ in range(count)]
    with Forward(model.train(), precision=Precision(name, "asked for"), checkpointing=checkpointing) as forward:
        real = kept_by(model, forward, micro)
    targets = count * (length - max(1, first))
    return real, job, Reading(length * count, targets, 1, 1, length * count, 1, length, True, count)


# ---- memory, disk and time ------------------------------------------------------------------------------------------


def test_the_known_numbers_of_tinyllama():
    job = tinyllama(lora(r=16))
    assert sum(job.shape.sizes.values()) == 1_100_048_384
    assert sum(job.trained.values()) == 12_615_680
    assert costs.weights(job) == 2 * 1_100_048_384


def test_each_setting_saves_what_it_should():
    plain = tinyllama(lora(r=16))
    linear = sum(a * b for a, b in plain.shape.anatomy.linear.values())
    int8, four = replace(plain, quantize="int8"), replace(plain, quantize="4bit")
    head = 32_000 * (2048 - 4)  # held in one byte as well, and scales
    assert costs.weights(plain) - costs.weights(int8) - head == pytest.approx(linear, rel=0.01)
    on_gpu = replace(int8, device="cuda")
    assert costs.weights(on_gpu) - costs.weights(int8) == head
    assert not replace(int8, new_rows=8).int8_head
    assert not tinyllama(lora(r=16, targets=["q_proj", "lm_head"]), quantize="int8").int8_head
    assert costs.weights(plain) - costs.weights(four) == pytest.approx(1.48 * linear, rel=0.01)
    assert needed(tinyllama()) > 16 * 1.1e9
    assert needed(tinyllama()) > needed(tinyllama(freeze(blocks=4))) > needed(plain) > needed(int8)
    large = replace(READING, micro=8_000)
    assert needed(replace(plain, checkpointing=True), large) < needed(plain, large)
    assert needed(tinyllama(optimizer="adamw8bit")) < needed(tinyllama(optimizer="muon")) < needed(tinyllama())
    assert needed(replace(tinyllama(), keeps_best=True)) == pytest.approx(needed(tinyllama()) + 4 * 1.1e9, rel=0.01)
    assert needed(plain, large) > needed(plain)


def test_a_gpu_holds_no_mapped_file():
    assert "the mapped file" not in str(costs.moments(tinyllama(device="cuda"), READING))


def test_disk_counts_the_model_and_four_checkpoints():
    adapter = costs.disk(tinyllama(lora(r=16)), READING)
    assert adapter == {"model": 4 * 12_615_680, "checkpoints": 4 * 12 * 12_615_680}
    whole = costs.disk(replace(tinyllama(), keeps_best=True), READING)
    assert whole == {"model": 2 * 1_100_048_384, "checkpoints": 4 * 16 * 1_100_048_384}
    cached = costs.disk(tinyllama(freeze(blocks=2), cache="disk"), READING)
    assert cached["prefix cache"] == 10_000 * 2048 * 2


def test_time_follows_from_the_peak_and_what_was_reached_of_it():
    job = tinyllama(lora(r=16))
    assert costs.seconds(job, READING, Machine(1e10, "cpu", "bf16")) is None
    machine = Machine(1e10, "cpu", "bf16", {"bf16": 1e12}, {"bf16": {"2048": 0.5}})
    expected = 2 * costs.operations(job, READING) / 0.5e12
    assert costs.seconds(job, READING, machine) == pytest.approx(expected + 7, rel=0.05)
    assert costs.seconds(job, READING, replace(machine, reached={"bf16": {"2048": 0.25}})) > 1.8 * expected
    unknown = costs.seconds(job, READING, replace(machine, reached={}))
    assert unknown is not None
    assert 0.5 < (unknown - 7) / expected < 2


def test_a_cache_makes_later_epochs_cheaper():
    job = tinyllama(freeze(blocks=4))
    machine = Machine(1e10, "cpu", "bf16", {"bf16": 1e12})
    slow, fast = (costs.seconds(replace(job, cache=c), replace(READING, epochs=5), machine) for c in ("off", "memory"))
    assert slow is not None
    assert fast is not None
    assert fast < 0.8 * slow


def test_int8_products_let_a_step_reach_more_of_the_peak_where_they_are_faster():
    job = tinyllama(lora(), quantize="int8")
    plain = costs.typical_share(2048)
    for peaks, wanted in (({"bf16": 1e12, "int8": 2e12}, 1.6), ({"bf16": 1e12, "int8": 5e11}, 1), ({"bf16": 1e12}, 1)):
        found = costs.share_of_peak(job, Machine(1e10, "cpu", "bf16", peaks))
        assert found == pytest.approx(plain * wanted)
        assert costs.share_of_peak(replace(job, quantize=None), Machine(1e10, "cpu", "bf16", peaks)) == plain
    known = Machine(1e10, "cpu", "bf16", {"bf16": 1e12, "int8": 2e12}, {"bf16+int8": {"2048": 1.2}})
    assert costs.share_of_peak(job, known) == 1.2


def test_the_share_reached_rises_with_the_width():
    shares = [costs.typical_share(width) for width in (32, 64, 200, 256, 1000, 2048, 8192)]
    assert shares == sorted(shares)
    assert shares[0] == costs.TYPICAL[0][1]
    assert shares[-1] == costs.TYPICAL[-1][1]


# ---- fitting and refusing -------------------------------------------------------------------------------------------


def test_the_largest_micro_step_that_fits():
    job, reading = tinyllama(lora(r=16), precision="fp32"), replace(READING, micro=16_000)
    assert estimate.fitting_micro_tokens(job, reading, 100e9) == 2048
    assert estimate.fitting_micro_tokens(replace(job, device="cuda"), reading, 100e9) == 16_384
    free = 1.0001 * needed(job, estimate.with_micro(reading, 1500)) / estimate.MARGIN
    tight = estimate.fitting_micro_tokens(job, reading, free)
    assert tight == 1536  # what a row of 1500 is filled up to
    assert needed(job, estimate.with_micro(reading, tight)) <= estimate.MARGIN * free
    assert estimate.fitting_micro_tokens(job, reading, 1e9) == 128


def test_what_fits_is_not_refused():
    job = tinyllama(lora(r=16))
    assert needed(job) < 24e9
    estimate.refuse_if_too_big(job, READING, needed(job))
    with pytest.raises(InputError, match="too little memory"):
        estimate.refuse_if_too_big(job, READING, needed(job) - 1)


def test_what_is_only_guessed_is_not_refused():
    estimate.refuse_if_too_big(tinyllama(), replace(READING, about=True), 1e9)
    with pytest.raises(InputError, match="too little memory"):
        estimate.refuse_if_too_big(tinyllama(), READING, 1e9)


def test_too_little_memory_is_refused_with_changes_that_fit():
    with pytest.raises(InputError, match="too little memory") as caught:
        estimate.refuse_if_too_big(tinyllama(), READING, 8e9)
    cure = caught.value.cure or ""
    assert "lora" in cure
    assert "gradient_checkpointing: true (" not in cure  # that alone would not fit
    assert cure.count("; or ") <= 2
    assert "moments" in str(caught.value.value)


@pytest.mark.parametrize("free", [2.6e9, 3e9, 4e9, 6e9])
@pytest.mark.parametrize("method", ["full", lora(r=16)], ids=str)
def test_every_cure_fits(method: Method, free: float):
    job, reading = tinyllama(method), replace(READING, micro=16_000)
    with pytest.raises(InputError) as caught:
        estimate.refuse_if_too_big(job, reading, free)
    for text, other, read in estimate.changes(job, reading):
        if text in (caught.value.cure or ""):
            assert needed(other, read) <= free


def test_nothing_fits_in_nothing():
    with pytest.raises(InputError, match="no setting makes it fit"):
        estimate.refuse_if_too_big(tinyllama(), READING, 1e8)


# ---- from a stage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Mapping[str, Source]:
    base = fakes.save_tiny(tmp_path / "base")
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"messages": [{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": "b" * 60}]}] * 20
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    (data / "about.json").write_text(json.dumps({"counts": {"train": 20, "dev": 4}, "replay_ratio": 0.5}))
    return {"base": Source("base", (base,), str(base), ""), "data": Source("data", (data,), str(data), "")}


MACHINE = Machine(1e10, "cpu", "bf16", {"fp32": 1e11, "bf16": 4e11})


def test_a_stage_is_estimated_from_its_files(sources: Mapping[str, Source]):
    stage = Tune(model="base", examples="data", batch_size=4, epochs=3)
    job, reading = estimate.described(stage, sources, MACHINE) or (None, None)
    assert job is not None
    assert reading is not None
    assert job.precision == "fp32"  # too narrow for bf16
    assert reading.pieces == 40  # half of an epoch is replay
    assert reading.windows == 10
    assert reading.epochs == 3
    assert 0.4 < reading.targets / reading.tokens < 0.8
    assert reading.dev == pytest.approx(reading.tokens / 10)
    assert not reading.about
    found = estimate.of_stage(stage, sources, MACHINE)
    assert found is not None
    assert found.memory_bytes > costs.BASE
    assert found.seconds is not None
    assert estimate.described(Tune(model="base", examples="data", max_steps=5), sources, MACHINE)[1].epochs == 1.0


def test_a_stage_whose_inputs_are_not_made_yet_is_estimated_from_what_they_will_be_made_of(
    sources: Mapping[str, Source], tmp_path: Path
):
    text = tmp_path / "text.txt"
    text.write_text("A whale is large. " * 5000)
    raw = Source("text.txt", (text,), "text.txt", "")
    coming = {
        "earlier": Source("earlier", (), "", "", made_from=(sources["base"], raw)),
        "articles": Source("articles", (), "", "", made_from=(raw,)),
    }
    stage = Pretrain(model="earlier", documents="articles", block_size=64, batch_size=4)
    found = estimate.of_stage(stage, coming, MACHINE)
    assert found is not None
    assert found.about
    _, reading = estimate.described(stage, coming, MACHINE) or (None, None)
    assert reading is not None
    assert 20_000 < reading.tokens <= 90_000
    assert reading.micro == pytest.approx(256, rel=0.01)


def test_an_unknown_architecture_is_not_estimated(tmp_path: Path, sources: Mapping[str, Source]):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gemma", "max_position_embeddings": 64}')
    other = {**sources, "base": Source("base", (tmp_path / "other",), "", "")}
    assert estimate.of_stage(Tune(model="base", examples="data"), other, MACHINE) is None


def test_memory_is_checked_before_anything_is_loaded(sources: Mapping[str, Source], monkeypatch: pytest.MonkeyPatch):
    stage = Tune(model="base", examples="data")
    estimate.check_memory(stage, sources)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: replace(MACHINE, memory_bytes=1e8)))
    with pytest.raises(InputError, match="too little memory"):
        estimate.check_memory(stage, sources)
    monkeypatch.setattr(estimate, "_has_gpu", lambda: True)
    estimate.check_memory(stage, sources)


def test_micro_batch_auto_takes_what_fits(sources: Mapping[str, Source]):
    stage = Tune(model="base", examples="data", batch_size=40, micro_batch="auto")
    _, reading = estimate.described(stage, sources, MACHINE) or (None, None)
    assert reading is not None
    assert reading.micro == min(2048, reading.micro * reading.per_window)
    assert estimate.micro_tokens(stage, sources, MACHINE) == 2048


def test_tokens_a_byte_are_nearly_the_tokenizers_own():
    text = Path(__file__).read_text()
    folder = BUILTIN["seedling"]
    real = len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text[:8000]).ids) / 8000
    assert tokens_a_byte(folder, " ".join(text.split()), 2048) == pytest.approx(real, rel=0.25)  # code, the worst case
    plain = "The blue whale is the largest animal that lives in the sea and feeds on krill. " * 9
    real = len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(plain).ids) / len(plain)
    assert tokens_a_byte(folder, plain, 2048) == pytest.approx(real, rel=0.1)


def test_without_a_list_of_tokens_the_size_of_the_vocabulary_must_do(tmp_path: Path):
    assert tokens_a_byte(tmp_path, "some words", 32_000) == pytest.approx(1 / 4.16, rel=0.01)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0]]}}))
    assert tokens_a_byte(tmp_path, "some words", 2_048) == pytest.approx(1 / 3.06, rel=0.01)


def test_the_frozen_blocks_output_is_kept_where_there_is_room(sources: Mapping[str, Source]):
    def cache(machine: Machine = MACHINE, **settings: Any) -> str:
        stage = Tune(model="base", examples="data", method=freeze(blocks=1, head=False), **settings)
        job, _ = estimate.described(stage, sources, machine) or (None, None)
        assert job is not None
        return job.cache

    assert cache(epochs=2) == "memory"
    assert cache(replace(MACHINE, memory_bytes=1e5), epochs=2) == "disk"
    assert cache(epochs=2, prefix_cache="off") == "off"
    assert cache(epochs=1) == "off"


def test_names():
    assert name_of(lora()) == "lora"
    assert costs.work_name("bf16", "int8") == "bf16+int8"
