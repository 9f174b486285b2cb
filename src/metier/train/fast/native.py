"""What stands between matrix products, on a CPU: each in one pass through its memory, in C (`native.c`).

Written out in torch's own operations the norms, activations, rotations, rounding to int8 and the head's gradient go
through memory three to nine times as often. Built once by the machine's own C compiler for its own processor, and kept
in `$METIER_CACHE/native` (~/.cache/metier/native); nothing is fetched. Threads are those of torch (its OpenMP). `ops`,
`int8` and `head` use these where `ops.fused` says so, and their own forms elsewhere - without a compiler, outside of
Linux, in other numeric types; tests hold both against each other.

All compute in float32. Shapes: N rows, C columns, H heads, D head_dim, V vocabulary.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from metier.models.builtin import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared", "-w")
WIDE = "-mprefer-vector-width=512"
COMPILERS = ("cc", "gcc", "clang")
PARTS = 64
"""As in the source: into which rows are dealt where each part adds something up by itself."""
TYPES = (torch.float32, torch.bfloat16)


def compiler() -> str | None:
    """The C compiler: $CC, or one of those that are usual."""
    named = os.environ.get("CC")
    return next((found for name in (named, *COMPILERS) if name and (found := shutil.which(name))), None)


def build() -> Path:
    """The library for this processor, made where it is not there yet (about a second).

    Raises OSError where there is no compiler or nothing can be written, CalledProcessError where it does not build.
    """
    found = compiler()
    if found is None or platform.system() != "Linux":
        raise OSError("no C compiler for this system")
    folder = cache_folder() / "native"
    kept = folder / f"{_key(found)}.so"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / "native.so"
            wide = (WIDE,) if platform.machine() == "x86_64" else ()  # compilers leave those alone unless told
            command = [found, *FLAGS, *wide, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - the user's own compiler
            made.replace(kept)
    return kept


def _key(compiler: str) -> str:
    """Of the source, the compiler and the processor: a home folder may be shared by machines that differ."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    kinds = sorted({line for line in about if line.startswith(("flags", "Features", "model name"))})
    whole = "\n".join([*FLAGS, os.path.realpath(compiler), *kinds]).encode() + SOURCE.read_bytes()
    return blake2b(whole, digest_size=12).hexdigest()


_library: list[ctypes.CDLL] = []


def library() -> ctypes.CDLL:
    """The functions of `native.c`. Raises as `build` does."""
    if not _library:
        found = _loaded(build())
        for name, types in SIGNATURES.items():
            function = getattr(found, name)
            function.argtypes, function.restype = types, None
        _library.append(found)
    return _library[0]


def _loaded(path: Path) -> ctypes.CDLL:
    """Its OpenMP functions are those that torch has brought. One that was cut short is built again."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink()
        return ctypes.CDLL(str(build()))


P, N, B, F = c_void_p, c_int64, c_int, c_float
SIGNATURES = {
    "rms": (P, P, P, N, N, F, B, B),
    "rms_backward": (P, P, P, P, P, P, N, N, F, B, B),
    "swiglu": (P, P, P, N, B),
    "swiglu_backward": (P, P, P, P, P, P, N, B),
    "rotate": (P, P, P, P, N, N, N, F, B, B),
    "quantize": (N, P, P, P, P, P, N, N, F, B, B),
    "scale": (P, N, P, P, P, N, N, B),
    "softmax": (P, P, N, F, N, N, N, B),
    "head": (P, P, P, P, N, N, F, B, B),
}


def suits(x: Tensor) -> bool:
    """Whether these take numbers of its type."""
    return x.dtype in TYPES or x.dtype is torch.int32


def _half(x: Tensor) -> int:
    return int(x.dtype is torch.bfloat16)


def rms(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x (N, C) over its root mean square, times the weight, in `dtype`."""
    x, by = x.contiguous(), weight.detach().float().contiguous()
    out = torch.empty(x.shape, dtype=dtype)
    library().rms(x.data_ptr(), by.data_ptr(), out.data_ptr(), *x.shape, eps, _half(x), _half(out))
    return out


def rms_again(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """`rms` in the gradient's type, and the gradients of x and, where it trains, of the weight (float32)."""
    grad, x, by = grad.contiguous(), x.contiguous(), weight.detach().float().contiguous()
    out, dx = torch.empty_like(grad), torch.empty_like(x)
    sums = torch.zeros(PARTS, x.shape[1], dtype=torch.float32) if weight.requires_grad else None
    places = [t.data_ptr() for t in (grad, x, by, out, dx)]
    library().rms_backward(*places, None if sums is None else sums.data_ptr(), *x.shape, eps, _half(grad), _half(x))
    return out, dx, None if sums is None else sums.sum(0)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    library().swiglu(gate.data_ptr(), up.data_ptr(), out.data_ptr(), out.numel(), _half(out))
    return out


def swiglu_again(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`swiglu`, and the gradients of gate and up."""
    grad, gate, up = grad.to(gate.dtype).contiguous(), gate.contiguous(), up.contiguous()
    out, d_gate, d_up = (torch.empty_like(gate) for _ in range(3))
    places = (t.data_ptr() for t in (grad, gate, up, out, d_gate, d_up))
    library().swiglu_backward(*places, grad.numel(), _half(gate))
    return out, d_gate, d_up


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """x (N, H, D) turned by the angles of cos and sin (N, D), or turned back."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    rows, heads, width = x.shape
    places = (t.data_ptr() for t in (x, cos, sin, out))
    library().rotate(*places, rows, heads, width // 2, -1.0 if back else 1.0, _half(x), _half(cos))
    return out


def quantized(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of x (N, C), times `columns`, as int8 (N, C) and a scale for each (N, 1), float32."""
    return quantized_together([x], [columns])


def quantized_together(xs: Sequence[Tensor], columns: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The same of several matrices (N, C) side by side."""
    return _quantized(xs, columns, 127, carry=False)


def carried(x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """`quantized`, but that what rounding takes from a column is added to the one `LANES` further on."""
    return _quantized([x], [columns], 126, carry=True)


def _quantized(
    xs: Sequence[Tensor], columns: Sequence[Tensor | None], top: int, *, carry: bool
) -> tuple[Tensor, Tensor]:
    xs = [x.contiguous() for x in xs]
    widths = [x.shape[1] for x in xs]
    out = torch.empty(len(xs[0]), sum(widths), dtype=torch.int8)
    scales = torch.empty(len(out), 1, dtype=torch.float32)
    several = len(xs)
    library().quantize(
        several,
        (c_void_p * several)(*(x.data_ptr() for x in xs)),
        (c_int64 * several)(*widths),
        (c_void_p * several)(*(None if by is None else by.data_ptr() for by in columns)),
        out.data_ptr(),
        scales.data_ptr(),
        *out.shape,
        top,
        int(carry),
        _half(xs[0]),
    )
    return out, scales


def scaled(sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int32 sums (N, C), perhaps some columns of a wider matrix, times scales of rows and columns, in `dtype`."""
    out = torch.empty(sums.shape, dtype=dtype)
    by = None if columns is None else columns.data_ptr()
    places = (rows.data_ptr(), by, out.data_ptr())
    library().scale(sums.data_ptr(), sums.stride(0), *places, *out.shape, _half(out))
    return out


def softmax_(scores: Tensor, visible: Tensor, scale: float) -> Tensor:
    """In place of scores (B, L, K), without gaps, their softmax times `scale` over the first `visible` keys of each
    query, int32 (1 or B, L), and 0 for the other keys."""
    own = int(len(visible) > 1)
    library().softmax(scores.data_ptr(), visible.data_ptr(), own, scale, *scores.shape, _half(scores))
    return scores


def to_gradient(scores: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, *, needed: bool) -> Tensor:
    """The sum of the losses of scores (T, V), which become their gradient where one is needed."""
    losses = torch.empty(len(scores), dtype=torch.float32)
    by = None if weights is None else weights.float().contiguous()
    library().head(
        scores.data_ptr(),
        targets.data_ptr(),
        None if by is None else by.data_ptr(),
        losses.data_ptr(),
        *scores.shape,
        smoothing,
        int(needed),
        _half(scores),
    )
    return losses.sum()
