"""The kernels for GPUs equal the plain forms: on a GPU as they are, elsewhere in Triton's interpreter, where it is."""

import os

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # is read where kernels are made
kernels = pytest.importorskip("metier.train.fast.kernels")

from metier.train import head, int8  # noqa: E402
from metier.train.fast import ops  # noqa: E402
from metier.train.fast.ops import RmsNorm, Rotate, SwiGlu  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(7, 24), (33, 264), (1, 2048)]
TYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Within it nothing goes through the kernels."""
    monkeypatch.setattr(ops, "fused", lambda _: None)
    monkeypatch.setattr(int8, "fused", lambda _: None)
    monkeypatch.setattr(head, "fused", lambda _: None)
    return monkeypatch


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """By the size of the difference over the size of what is wanted, in float32."""
    assert found.shape == wanted.shape
    apart = (found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-9)
    assert apart <= TYPES[dtype], f"{apart:.1e}"


def test_they_say_whether_they_can_be_used(monkeypatch: pytest.MonkeyPatch):
    assert kernels.agree(DEVICE)
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):  # as a server may ask first
        assert kernels.agree(DEVICE)
    monkeypatch.setattr(kernels, "swiglu", lambda gate, up: gate * up)
    assert not kernels.agree(DEVICE)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(plain: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype):
    x, grad, weight = some(*shape), some(*shape, dtype=dtype, seed=1), some(shape[1], seed=2).requires_grad_()
    norm = RmsNorm(1e-5, dtype)
    assert_near(kernels.rms(x, weight, 1e-5, dtype), norm.forward(x, weight), dtype)
    found, wanted = kernels.rms_backward(grad, x, weight, 1e-5), norm.backward(grad, x, weight)
    assert_near(found[0], wanted[0], torch.float32)
    assert wanted[1] is not None
    assert_near(found[1], wanted[1], torch.float32)
    assert kernels.rms_backward(grad, x, weight.detach(), 1e-5)[1] is None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(plain: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype):
    gate, up, grad = (some(*shape, dtype=dtype, seed=seed) for seed in range(3))
    assert_near(kernels.swiglu(gate, up), SwiGlu().forward(gate, up), dtype)
    for found, wanted in zip(kernels.swiglu_backward(grad, gate, up), SwiGlu().backward(grad, gate, up), strict=True):
        assert_near(found, wanted, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "width"), [(3, 8), (4, 24), (32, 64)])
def test_rotary_positions(plain: pytest.MonkeyPatch, heads: int, width: int, dtype: torch.dtype):
    x = some(9, heads, width, dtype=dtype).requires_grad_()
    angle = some(9, width // 2, seed=1).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    out = Rotate.apply(x, cos, sin)
    assert_near(kernels.rotated(x.detach(), cos, sin, back=False), out, dtype)
    toward = some(*out.shape, dtype=dtype, seed=2)
    (wanted,) = torch.autograd.grad((out * toward).sum(), x)
    assert_near(kernels.rotated(toward, cos, sin, back=True), wanted, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_columns", [False, True])
def test_rounding_to_int8(plain: pytest.MonkeyPatch, with_columns: bool, dtype: torch.dtype):
    x, columns = some(19, 136, dtype=dtype), some(136, seed=1).abs() if with_columns else None
    (found, scale), (wanted, wanted_scale) = kernels.quantized(x, columns), int8.quantized(x, columns)
    torch.testing.assert_close(scale, wanted_scale)
    apart = (found.int() - wanted.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.01  # where it stood between two


def test_scaling_back_some_columns_of_a_wider_matrix(plain: pytest.MonkeyPatch):
    sums = torch.randint(-9000, 9000, (5, 64), dtype=torch.int32, device=DEVICE)
    rows, columns = some(5, 1).abs(), some(24, seed=1).abs()
    for part, by in ((sums[:, 8:32], columns), (sums, None)):
        wanted = int8.scaled(part, rows, by, torch.bfloat16)
        torch.testing.assert_close(kernels.scaled(part, rows, by, torch.bfloat16), wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_heads_loss_and_gradient(plain: pytest.MonkeyPatch, weighted: bool, smoothing: float, dtype: torch.dtype):
    plain.setattr(kernels, "SCORES", 64)  # several turns a row
    scores = some(6, 150, dtype=dtype).mul_(4)
    targets = torch.tensor([0, 149, 63, 64, 5, 100], device=DEVICE)
    weights = some(6, seed=1).abs() if weighted else None
    column = None if weights is None else weights[:, None]
    mine, theirs = scores.clone(), scores.clone()
    found = kernels.to_gradient(mine, targets, weights, smoothing, needed=True)
    wanted = head._to_gradient(theirs, targets, column, smoothing, None, needed=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert_near(mine, theirs, dtype)
    untouched = scores.clone()
    kernels.to_gradient(untouched, targets, weights, smoothing, needed=False)
    assert torch.equal(untouched, scores)
