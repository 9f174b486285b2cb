"""The kernels equal the plain forms: Triton's on a GPU or in its interpreter, those in C where a compiler is."""

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # is read where kernels are made

from metier.train import head, int8
from metier.train.fast import native, ops
from metier.train.fast.agreement import agree
from metier.train.fast.ops import RmsNorm, Rotate, SwiGlu

SHAPES = [(7, 24), (33, 264), (1, 2048), (300, 96)]
TYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")


@dataclass(frozen=True)
class Kernels:
    """Some of them, and where they run."""

    module: ModuleType
    device: torch.device

    def some(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Random numbers there."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device, dtype)


@pytest.fixture(params=["triton", pytest.param("native", marks=needs_compiler)])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Those in Triton, those in C."""
    if request.param == "native":
        return Kernels(native, torch.device("cpu"))
    module = pytest.importorskip("metier.train.fast.kernels")
    return Kernels(module, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Within it nothing goes through the kernels."""
    for module in (ops, int8, head):
        monkeypatch.setattr(module, "fused", lambda _: None)
    return monkeypatch


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """By the size of the difference over the size of what is wanted, in float32."""
    assert found.shape == wanted.shape
    apart = (found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-9)
    assert apart <= TYPES[dtype], f"{apart:.1e}"


def test_they_say_whether_they_can_be_used(kernels: Kernels, monkeypatch: pytest.MonkeyPatch):
    assert agree(kernels.module, kernels.device)
    with torch.inference_mode(), torch.autocast(kernels.device.type, torch.bfloat16):  # as a server may ask first
        assert agree(kernels.module, kernels.device)
    monkeypatch.setattr(kernels.module, "swiglu", lambda gate, up: gate * up)
    assert not agree(kernels.module, kernels.device)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(kernels: Kernels, plain: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype):
    x, grad, weight = (
        kernels.some(*shape),
        kernels.some(*shape, dtype=dtype, seed=1),
        kernels.some(shape[1], seed=2).requires_grad_(),
    )
    norm = RmsNorm(1e-5, dtype)
    assert_near(kernels.module.rms(x, weight, 1e-5, dtype), norm.forward(x, weight), dtype)
    found, wanted = kernels.module.rms_again(grad, x, weight, 1e-5)[1:], norm.backward(grad, x, weight)
    assert_near(found[0], wanted[0], torch.float32)
    assert wanted[1] is not None
    assert_near(found[1], wanted[1], torch.float32)
    assert kernels.module.rms_again(grad, x, weight.detach(), 1e-5)[1:][1] is None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(kernels: Kernels, plain: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype):
    gate, up, grad = (kernels.some(*shape, dtype=dtype, seed=seed) for seed in range(3))
    assert_near(kernels.module.swiglu(gate, up), SwiGlu().forward(gate, up), dtype)
    for found, wanted in zip(
        kernels.module.swiglu_again(grad, gate, up)[1:], SwiGlu().backward(grad, gate, up), strict=True
    ):
        assert_near(found, wanted, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "width"), [(3, 8), (4, 24), (32, 64)])
def test_rotary_positions(kernels: Kernels, plain: pytest.MonkeyPatch, heads: int, width: int, dtype: torch.dtype):
    x = kernels.some(9, heads, width, dtype=dtype).requires_grad_()
    angle = kernels.some(9, width // 2, seed=1).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    out = Rotate.apply(x, cos, sin)
    assert_near(kernels.module.rotated(x.detach(), cos, sin, back=False), out, dtype)
    toward = kernels.some(*out.shape, dtype=dtype, seed=2)
    (wanted,) = torch.autograd.grad((out * toward).sum(), x)
    assert_near(kernels.module.rotated(toward, cos, sin, back=True), wanted, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_columns", [False, True])
def test_rounding_to_int8(kernels: Kernels, plain: pytest.MonkeyPatch, with_columns: bool, dtype: torch.dtype):
    x, columns = kernels.some(19, 136, dtype=dtype), kernels.some(136, seed=1).abs() if with_columns else None
    (found, scale), (wanted, wanted_scale) = kernels.module.quantized(x, columns), int8.quantized(x, columns)
    torch.testing.assert_close(scale, wanted_scale)
    apart = (found.int() - wanted.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.01  # where it stood between two


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [136, 133])
def test_rounding_to_int8_with_errors_carried(
    kernels: Kernels, plain: pytest.MonkeyPatch, columns: int, dtype: torch.dtype
):
    if not hasattr(kernels.module, "carried"):
        pytest.skip("on a GPU the head stays as it is")
    x, by = kernels.some(19, columns, dtype=dtype), kernels.some(columns, seed=1).abs()
    (found, scale), (wanted, wanted_scale) = kernels.module.carried(x, by), int8.carried(x, by)
    torch.testing.assert_close(scale, wanted_scale)
    apart = (found.int() - wanted.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.02  # where it stood between two


def test_scaling_back_some_columns_of_a_wider_matrix(kernels: Kernels, plain: pytest.MonkeyPatch):
    sums = torch.randint(-9000, 9000, (5, 64), dtype=torch.int32, device=kernels.device)
    rows, columns = kernels.some(5, 1).abs(), kernels.some(24, seed=1).abs()
    for part, by in ((sums[:, 8:32], columns), (sums, None)):
        wanted = int8.scaled(part, rows, by, torch.bfloat16)
        torch.testing.assert_close(kernels.module.scaled(part, rows, by, torch.bfloat16), wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_heads_loss_and_gradient(
    kernels: Kernels, plain: pytest.MonkeyPatch, weighted: bool, smoothing: float, dtype: torch.dtype
):
    plain.setattr(kernels.module, "SCORES", 64, raising=False)  # several turns a row
    scores = kernels.some(6, 150, dtype=dtype).mul_(4)
    targets = torch.tensor([0, 149, 63, 64, 5, 100], device=kernels.device)
    weights = kernels.some(6, seed=1).abs() if weighted else None
    column = None if weights is None else weights[:, None]
    mine, theirs = scores.clone(), scores.clone()
    found = kernels.module.to_gradient(mine, targets, weights, smoothing, needed=True)
    wanted = head._to_gradient(theirs, targets, column, smoothing, None, needed=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert_near(mine, theirs, dtype)
    untouched = scores.clone()
    kernels.module.to_gradient(untouched, targets, weights, smoothing, needed=False)
    assert torch.equal(untouched, scores)


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("own", [False, True])
def test_softmax_of_the_keys_that_each_query_sees(own: bool, dtype: torch.dtype):
    scores = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    visible = torch.tensor([[1, 16, 33, 70, 99], [2, 5, 6, 64, 70], [70, 69, 1, 2, 3]], dtype=torch.int32)
    visible = visible if own else visible[:1]
    hidden = torch.arange(70) >= visible[..., None]
    wanted = torch.softmax((scores.float() * 0.125).masked_fill(hidden, float("-inf")), -1)
    found = native.softmax_(scores.clone(), visible, 0.125)
    assert_near(found, wanted, dtype)
    assert not found[hidden.expand_as(found)].any()


@pytest.mark.parametrize("dtype", TYPES)
def test_done_again_on_the_way_back(kernels: Kernels, plain: pytest.MonkeyPatch, dtype: torch.dtype):
    x, y, grad = (kernels.some(9, 40, dtype=dtype, seed=seed) for seed in range(3))
    weight = kernels.some(40, seed=3).requires_grad_()
    for before, other in ((RmsNorm(1e-5, dtype), weight), (SwiGlu(), y)):
        wanted, of_wanted = ops.again(before, grad, (x, other))  # through torch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "fused", lambda _: kernels.module)
            found, of_found = ops.again(before, grad, (x, other))
        for one, two in zip((found, *of_found), (wanted, *of_wanted), strict=True):
            assert one is not None
            assert two is not None
            assert_near(one, two, dtype)


@needs_compiler
def test_matrices_side_by_side_are_rounded_as_one():
    xs, by = [torch.randn(9, 16), torch.randn(9, 40)], [torch.rand(16), torch.rand(40)]
    found, scales = native.quantized_together(xs, by)
    wanted, wanted_scales = native.quantized(torch.cat(xs, 1), torch.cat(by))
    assert torch.equal(found, wanted)
    assert torch.equal(scales, wanted_scales)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_none(bad: float):
    """The loop has to see it: a loss that is no number rolls back."""
    x = torch.ones(4, 32, dtype=torch.bfloat16)
    x[2, 7] = bad
    rounded, scales = native.quantized(x, None)
    assert scales.isfinite().tolist() == [[True], [True], [False], [True]]
    assert not native.scaled(rounded.int(), scales, None, torch.bfloat16)[2].isfinite().all()
    assert not native.rms(x, torch.ones(32), 1e-5, torch.bfloat16)[2].isfinite().all()
    assert not native.swiglu(x, x)[2].isfinite().all()
    assert not native.softmax_(x[None].clone(), torch.full((1, 4), 32, dtype=torch.int32), 1.0)[0, 2].isfinite().all()
    assert not native.to_gradient(x, torch.zeros(4, dtype=torch.long), None, 0.0, needed=True).isfinite()


@needs_compiler
def test_how_many_threads_there_are_changes_nothing():
    before = torch.get_num_threads()
    x, grad, weight = torch.randn(301, 96), torch.randn(301, 96), torch.rand(96).requires_grad_()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(native.rms_again(grad, x, weight, 1e-5)[1:])
    finally:
        torch.set_num_threads(before)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library will be kept, before it is there."""
    monkeypatch.setenv("METIER_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_library", [])
    return tmp_path / "native"


@needs_compiler
def test_the_library_is_built_once(unbuilt: Path, monkeypatch: pytest.MonkeyPatch):
    kept = native.build()
    assert list(unbuilt.iterdir()) == [kept]
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    assert native.build() == kept


@needs_compiler
def test_a_library_that_cannot_be_read_is_built_again(unbuilt: Path):
    kept = native.build()
    kept.write_bytes(b"")
    assert isinstance(native.library(), ctypes.CDLL)
    assert kept.stat().st_size


def test_without_a_compiler_torch_does_it(unbuilt: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "compiler", lambda: None)
    assert ops.native.__wrapped__() is None
    assert not unbuilt.exists()


@needs_compiler
@pytest.mark.parametrize("fault", ["int rms(;", "void rms(void) {}"])
def test_what_does_not_build_or_lacks_a_function_is_not_used(
    unbuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    source = tmp_path / "native.c"
    source.write_text(fault, encoding="utf-8")
    monkeypatch.setattr(native, "SOURCE", source)
    assert ops.native.__wrapped__() is None


@needs_compiler
def test_what_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "swiglu", lambda gate, up: gate * up)
    assert ops.native.__wrapped__() is None
