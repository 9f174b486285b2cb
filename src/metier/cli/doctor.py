"""`metier doctor`: what this machine can do, and what Metier would choose on it. Imports torch; takes a few seconds."""

import os
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer

from metier.cli.wording import bytes_text

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pydantic")
EXTRAS = {"eval": ("rouge_score",)}
"""Extra -> the modules that it brings."""
PROBE_SIZE = 1024
PROBE_TIMES = 5


def examine() -> None:
    """Print one line for each thing worth knowing."""
    from metier import __version__

    rows = [
        ("metier", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("packages", ", ".join(_version(name) for name in PACKAGES)),
        ("memory", _memory()),
        ("disk", f"{bytes_text(shutil.disk_usage(Path.cwd()).free)} free in this folder"),
        *_torch_rows(),
        *((f"extra {name}", _extra(name, modules)) for name, modules in EXTRAS.items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name.ljust(width)}  {text}")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} MISSING"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{bytes_text(memory.total)}, {bytes_text(memory.available)} available"


def _extra(name: str, modules: tuple[str, ...]) -> str:
    missing = [module for module in modules if find_spec(module) is None]
    return f"not installed: pip install 'metier[{name}]'" if missing else "installed"


def _torch_rows() -> list[tuple[str, str]]:
    import torch

    from metier.train.precision import WORTH_WIDTH, choose, fast_bf16

    threads = torch.get_num_threads()
    single, half = _speed(torch.float32), _speed(torch.bfloat16)
    choice = choose("auto", width=WORTH_WIDTH)
    return [
        (
            "cpu",
            f"{os.cpu_count()} cores, {threads} threads used, {torch.backends.cpu.get_cpu_capability()}",
        ),
        ("gpu", _gpus()),
        ("bf16", "in hardware" if fast_bf16() else "not in hardware"),
        ("products", f"{single:.0f} GFLOP/s in float32, {half:.0f} in bfloat16 ({PROBE_SIZE} x {PROBE_SIZE})"),
        ("numeric type", f"{choice.name}: {choice.why}; below a hidden size of {WORTH_WIDTH} always fp32"),
    ]


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (this version trains on the CPU)"


def _speed(dtype: object) -> float:
    """The best of a few square matrix products, in GFLOP/s."""
    import torch

    assert isinstance(dtype, torch.dtype)
    a = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    best = float("inf")
    for _ in range(PROBE_TIMES):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * PROBE_SIZE**3 / best / 1e9
