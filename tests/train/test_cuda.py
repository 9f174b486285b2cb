"""What only a GPU can show: the kernels that it has, held against the plain paths. Skipped where there is none."""

from pathlib import Path

import pytest
import torch
from exactly import FP32, assert_exact, packed, pieces_of, plain, stirred, taken_gradients, without_dropout
from test_attention import SCALE, random_qkv, row_of
from torch import Tensor

import fakes
from metier.core.events import Events
from metier.engine.local import generate
from metier.models.adapter import LoraSettings, add_lora
from metier.models.builtin import BUILTIN
from metier.models.load import Loaded, load
from metier.models.stream import convert_
from metier.train import int8, varlen
from metier.train.attention import attend
from metier.train.batches import Batches, Piece, shared_prefix, weight_of
from metier.train.checkpoint import Checkpoints
from metier.train.course import Course, Watch
from metier.train.fast import ops
from metier.train.forward import Forward
from metier.train.job import converter
from metier.train.loop import fit
from metier.train.methods import Quantize
from metier.train.optimizers import Kind
from metier.train.precision import Precision, gemm_peak

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda", 0)
BF16 = Precision("bf16", "for a test", GPU)
FP16 = Precision("fp16", "for a test", GPU)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The size of the difference over the size of what is wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-9))


def test_triton_builds_its_kernels_here():
    assert ops.kernels() is not None


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("only_asked", [False, True])
@pytest.mark.parametrize("data", ["all", "mixed", "sparse"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_is_the_plain_one(data: str, only_asked: bool, groups: int, dtype: torch.dtype):
    row = row_of(data)
    there = row.to(GPU)
    qkv = [x.detach() for x in random_qkv(row, groups)]
    real = len(row.asked) if only_asked else row.parts[-1][2]
    toward = torch.randn(len(row.asked if only_asked else row), qkv[0][0].numel())
    toward[real:] = 0  # what the filler sees is nobody's business

    def attended(where: torch.device, numbers: torch.dtype) -> tuple[Tensor, ...]:
        given = [x.to(where, numbers).requires_grad_() for x in qkv]
        on = there if where.type == "cuda" else row
        q = given[0].index_select(0, on.asked) if only_asked else given[0]
        assert varlen.fits(q, 0.0) is (where.type == "cuda")
        out = attend(q, *given[1:], on, scale=SCALE, only_asked=only_asked)
        grads = torch.autograd.grad((out * toward.to(where, numbers)).sum(), given)
        return tuple(x.detach().cpu() for x in (out[:real], *grads))

    for found, wanted in zip(attended(GPU, dtype), attended(torch.device("cpu"), torch.float32), strict=True):
        assert apart(found, wanted) < 2e-2


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("data", ["all", "sft"])
@pytest.mark.parametrize("kind", ["llama-untied", "gpt2"])
def test_loss_and_gradients_in_float32_are_the_plain_ones(kind: str, data: str, mode: str):
    model = without_dropout(fakes.tiny(kind).train()).to(GPU)
    if mode == "lora":
        stirred(add_lora(model, LoraSettings(r=4)))
    pieces = pieces_of(data)
    assert_exact(Forward(model, precision=FP32, prefix=shared_prefix(pieces)), pieces)


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", ["llama-untied", "gpt2"])
def test_in_bf16_they_are_near(kind: str, mode: str):
    model = without_dropout(fakes.tiny(kind).train()).to(GPU)
    if mode == "lora":
        stirred(add_lora(model, LoraSettings(r=4)))
    pieces = pieces_of("sft")
    expected, wanted = plain(model, pieces)
    loss, found = packed(Forward(model, precision=BF16, prefix=shared_prefix(pieces)), pieces)
    with torch.autocast("cuda", torch.bfloat16):
        _, usual = plain(model, pieces)
    assert loss == pytest.approx(expected, rel=1e-2)
    assert found.keys() == wanted.keys()
    ours, autocast, exact = (torch.cat([one[name].flatten() for name in wanted]) for one in (found, usual, wanted))
    assert apart(ours, exact) < 1.25 * apart(autocast, exact) + 1e-2


def test_a_trained_head_with_weights_and_smoothing_in_bf16():
    model = without_dropout(fakes.tiny("llama-untied").train()).to(GPU)
    pieces = pieces_of("sft", prompt_weight=0.3)
    expected, _ = plain(model, pieces, smoothing=0.1)
    loss, found = packed(Forward(model, precision=BF16, label_smoothing=0.1), pieces)
    assert loss == pytest.approx(expected, rel=1e-2)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("rows", [1, 17, 40, 300])
def test_int8_products_are_exact(rows: int):
    random = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (rows, 64), dtype=torch.int8, generator=random)
    b = torch.randint(-127, 128, (64, 24), dtype=torch.int8, generator=random)
    wanted = a.long() @ b.long()
    for second in (b.to(GPU), b.t().contiguous().to(GPU).t()):
        assert torch.equal(int8.product(a.to(GPU), second).cpu().long(), wanted)


@pytest.mark.parametrize("kind", ["int8", "8bit", "4bit"])
def test_adapters_learn_on_quantised_bases(kind: Quantize):
    if kind != "int8":
        pytest.importorskip("bitsandbytes")
    model = fakes.tiny_llama(tied=False, hidden_size=64, intermediate_size=128).train().to(GPU)
    pieces = pieces_of("sft")
    before = packed(Forward(model, precision=BF16), pieces)[0]
    convert_(model, converter(kind, torch.bfloat16))
    add_lora(model, LoraSettings(r=8))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, fused=True)
    losses = []
    with Forward(model, precision=BF16, prefix=shared_prefix(pieces)) as forward:
        for _ in range(25):
            losses.append(forward.backward(pieces, scale=1 / weight_of(pieces)).item())
            optimizer.step()
            taken_gradients(model)
    assert losses[0] == pytest.approx(before, rel=0.1)  # what rounding the base costs
    assert losses[-1] < 0.8 * losses[0]


def run(
    folder: Path, *, optimizer: Kind = "adamw", precision: Precision = BF16, micro: int = 10_000, steps: int = 6
) -> tuple[list[float], list[int]]:
    """A whole run of the loop on a small model: its losses, and the micro-step's largest size where memory ran out."""
    model = fakes.tiny_llama(tied=False, hidden_size=64, intermediate_size=128).train().to(GPU)
    pieces = tuple(pieces_of("all") * 4)
    batches = Batches(pieces, (), 0.0, None, len(pieces), 1, 0, micro_tokens=micro)
    state = fit(
        model,
        Forward(model, precision=precision),
        batches,
        course=Course(epochs=steps, learning_rate=3e-3, optimizer=optimizer),
        watch=Watch(dev=(pieces[:3],), keep_best=True),
        precision=precision,
        events=Events("test"),
        check_stop=lambda: None,
        checkpoints=Checkpoints(folder, every_seconds=0),
    )
    return state.losses, [] if state.micro_tokens is None else [state.micro_tokens]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw8bit"])
def test_the_loop_learns_and_goes_on_from_its_checkpoint(tmp_path: Path, optimizer: Kind):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    losses, _ = run(tmp_path, optimizer=optimizer)
    assert losses[-1] < losses[0]
    for newest in sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1:]:
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
    again, _ = run(tmp_path, optimizer=optimizer)
    assert again == pytest.approx(losses, rel=1e-3)  # flash attention's backward adds up in any order


def test_fp16_with_a_scaler(tmp_path: Path):
    losses, _ = run(tmp_path, precision=FP16)
    assert losses[-1] < losses[0]


def test_where_memory_runs_out_micro_steps_get_smaller(tmp_path: Path):
    vocabulary = 150_000
    model = fakes.tiny_llama(tied=False, vocab_size=vocabulary, hidden_size=256, intermediate_size=2048).train().to(GPU)
    pieces = tuple(Piece.of(str(n), list(range(6, 106))) for n in range(64))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    room = torch.cuda.memory_allocated() * 6 + 250e6
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        state = fit(
            model,
            Forward(model, precision=BF16),
            Batches(pieces, (), 0.0, None, len(pieces), 1, 0, micro_tokens=None),
            course=Course(epochs=2),
            watch=Watch(),
            precision=BF16,
            events=Events("test"),
            check_stop=lambda: None,
            checkpoints=Checkpoints(tmp_path, every_seconds=float("inf")),
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(state.losses) == 2
    assert state.micro_tokens is not None
    assert state.micro_tokens < 6400


def test_greedy_answers_of_the_seedling_are_the_cpus():
    plain_one = load(BUILTIN["seedling"])
    prompts = [plain_one.tokenizer(text)["input_ids"] for text in ("The octopus", "Whales are", "A reef is")]
    here = [list(found.ids) for found in generate(plain_one, prompts, max_new_tokens=24)]
    moved = Loaded(plain_one.model.to(GPU), plain_one.tokenizer, plain_one.folder)
    assert [list(found.ids) for found in generate(moved, prompts, max_new_tokens=24)] == here


def test_the_peak_is_that_of_random_numbers():
    peak = gemm_peak(GPU, torch.bfloat16)
    assert 1e12 < peak < 3e15
