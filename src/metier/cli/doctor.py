"""`metier doctor`: what this machine can do, and what Metier would choose on it.

Imports torch and multiplies matrices for two seconds; what it measures is kept in the store, for `metier plan`.
"""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metier.cli.options import STORE
from metier.cli.wording import bytes_text
from metier.core.machine import FILE, free_memory, remember

if TYPE_CHECKING:
    import torch

    from metier.train.precision import Precision

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pydantic")
EXTRAS = {"eval": ("rouge_score",), "quant": ("bitsandbytes",), "track": ("tensorboard", "wandb")}
"""Extra -> the modules that it brings."""
ROUNDS = 5
BUSY = 0.5
"""Mean number of running threads over the last minute from which other programs are taken to disturb the speeds."""
WORTH_INT8 = 1.2
"""How many times as fast as the training type int8 products must be for `quantize: int8` to be advised for speed."""


@dataclass(frozen=True)
class Speeds:
    """Operations a second of large products on one device, and the type that training would take there.

    int8_gain: how many times as fast as that type int8 is, on one thread, so that what else runs hardly counts.
    """

    device: "torch.device"
    choice: "Precision"
    peaks: Mapping[str, float]
    int8_gain: float

    def ratio(self, name: str) -> float:
        """How many times as fast as float32."""
        return self.peaks[name] / self.peaks["fp32"]


def examine(store: Path = STORE) -> None:
    """Print one line for each thing worth knowing, and keep the speeds in `store`."""
    from metier import __version__

    speeds = measure()
    rows = [
        ("metier", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("packages", ", ".join(_version(name) for name in PACKAGES)),
        ("memory", _memory()),
        ("disk", f"{bytes_text(shutil.disk_usage(Path.cwd()).free)} free in this folder"),
        ("cpu", _cpu()),
        ("gpu", _gpus()),
        ("bf16", _bf16()),
        ("products", _products(speeds)),
        ("numeric type", _choice(speeds)),
        ("attention", attention_line(speeds.device)),
        ("kernels", kernels_line(speeds.device)),
        *(("quantize", line) for line in quantize_lines(speeds, has_bitsandbytes=_has("bitsandbytes"))),
        *((f"extra {name}", _extra(name, modules)) for name, modules in EXTRAS.items()),
    ]
    learned: dict[str, Any] = {"device": speeds.device.type, "auto": speeds.choice.name, "peaks": dict(speeds.peaks)}
    remember(store, learned | _gpu_memory(speeds.device))
    rows.append(("kept", f"the speeds, in {store / FILE}: `metier plan` takes its times from them"))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name.ljust(width)}  {text}")


def measure() -> Speeds:
    """Multiply in every type that training may use on the best device, in turns: the best of each counts."""
    import torch

    from metier.train.precision import best_device, choose, measured_peak
    from metier.train.sizes import SHORT_TYPES_FROM

    device = best_device()
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
    if device.type == "cuda":
        types["fp16"] = torch.float16
    rounds = [{name: measured_peak(device, dtype) for name, dtype in types.items()} for _ in range(ROUNDS)]
    peaks = {name: max(found[name] for found in rounds) for name in types}
    choice = choose("auto", width=SHORT_TYPES_FROM, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gain = measured_peak(device, torch.int8) / measured_peak(device, choice.dtype)
    torch.set_num_threads(threads)
    return Speeds(device, choice, peaks, gain)


def quantize_lines(speeds: Speeds, *, has_bitsandbytes: bool) -> list[str]:
    """What each value of `quantize` means on this machine."""
    chosen, gain = speeds.choice.name, speeds.int8_gain
    int8 = f"int8: own products in int8, for LoRA: {gain:.1f} x as fast as {chosen} here, a byte a frozen weight; "
    int8 += "faster and smaller" if gain >= WORTH_INT8 else "smaller, not faster"
    needs = "" if has_bitsandbytes else " (needs the extra quant)"
    return [
        int8,
        f"8bit: bitsandbytes' LLM.int8, for LoRA: a byte a frozen weight, slower than {chosen}{needs}",
        f"4bit: bitsandbytes' NF4, for LoRA: half a byte a frozen weight, slower than {chosen}{needs}",
    ]


def attention_line(device: "torch.device") -> str:
    """How sequences that share a row attend on this machine."""
    from metier.train import varlen

    if device.type == "cpu":
        return "each sequence of a row by itself: short ones in strips of queries, long ones by torch's fused kernel"
    if varlen.kernel() is None:
        return "each sequence of a row by itself: this torch has no flash kernel for sequences of many lengths"
    if not varlen.runs_on(device):
        return "each sequence of a row by itself: torch's flash kernel for many lengths needs compute capability 8.0"
    return "all sequences of a row in one call of torch's flash kernel for many lengths (bf16 and fp16)"


def kernels_line(device: "torch.device") -> str:
    """How what stands between matrix products is computed on this machine."""
    from metier.train.fast import native, ops

    if device.type == "cpu" and ops.native() is None:
        if native.compiler() is None:
            return "norms and activations by torch's operations: with a C compiler (gcc) training would be faster"
        return "norms and activations by torch's operations: ours could not be built here, or gave something else"
    if device.type != "cpu" and ops.kernels() is None:
        return "norms and activations by torch's operations: Triton cannot build ours here (it needs a C compiler)"
    return "norms, activations, rounding to int8 and the head's gradient in kernels of our own, held against torch's"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} MISSING"


def _memory() -> str:
    import psutil

    return f"{bytes_text(psutil.virtual_memory().total)}, {bytes_text(free_memory())} free for Metier"


def _gpu_memory(device: "torch.device") -> dict[str, float]:
    """What is free on it now, for `metier plan`, which must not wait for a GPU."""
    import torch

    return {"gpu_bytes": float(torch.cuda.mem_get_info(device)[0])} if device.type == "cuda" else {}


def _has(module: str) -> bool:
    return find_spec(module) is not None


def _extra(name: str, modules: tuple[str, ...]) -> str:
    missing = [module for module in modules if not _has(module)]
    if not missing:
        return "installed"
    return f"not installed ({', '.join(missing)}): pip install 'metier[{name}]'"


def _cpu() -> str:
    import torch

    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores, {threads} threads used, {torch.backends.cpu.get_cpu_capability()}"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        names.append(f"{found.name} ({bytes_text(found.total_memory)}, compute capability {found.major}.{found.minor})")
    return ", ".join(names)


def _bf16() -> str:
    from metier.train.precision import has_bf16_unit

    return "in this CPU's hardware" if has_bf16_unit() else "not in this CPU's hardware"


def _products(speeds: Speeds) -> str:
    from metier.train.precision import SIDE

    side = SIDE[speeds.device.type]
    busy = "; other programs are busy, so idle it may be faster" if os.getloadavg()[0] > BUSY else ""
    shown = [f"{peak / 1e9:,.0f} in {name} ({speeds.ratio(name):.1f} x)" for name, peak in speeds.peaks.items()]
    return f"G operations/s on the {speeds.device.type}: {', '.join(shown)}; {side} x {side}{busy}"


def _choice(speeds: Speeds) -> str:
    from metier.train.sizes import SHORT_TYPES_FROM

    choice = speeds.choice
    return f"{choice.name}: {choice.why}; below a hidden size of {SHORT_TYPES_FROM} always fp32"
