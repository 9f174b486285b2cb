"""Predicted beside measured peak memory, disk and time: `python -m benchmarks.estimates [CASE ...]`.

Each case trains a few steps through the real stage, in a process of its own, on random weights of TinyLlama's and
GPT-2's shapes and on MedQuAD, or on the bundled seedling. What is predicted knows only the files that `metier plan`
knows. Figures go to `benchmarks/results/training.json`; the bar is 15 %. Needs ../shared; takes about ten minutes, with
`--at-once N` over several calls.

With `--gpu` other cases run on a GPU, some at a time, and what is compared is what torch allocates there: what the
CUDA context takes besides is left out of both sides. Meant for a GPU of 80 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.rows import Row, hardware, write
from benchmarks.sittings import Kept
from benchmarks.training import write_section
from benchmarks.work import MEDQUAD, SHARED, clean, gpt2, medquad, need_shared, tinyllama, write_weights
from metier.core.machine import FILE

STORE = Path(".metier")
ROWS = 160
STEPS = 2
LORA = {"lora": {"r": 16}}
C_ATTN = {"lora": {"r": 16, "targets": ["c_attn"]}}
FREEZE = {"freeze": {"blocks": 2}}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "2 blocks, full": ("tinyllama-2", "pretrain", {"block_size": 512, "batch_size": 2}),
    "2 blocks, full, Muon, two micro-steps": (
        "tinyllama-2",
        "pretrain",
        {"block_size": 512, "batch_size": 2, "accumulation": 2, "optimizer": "muon"},
    ),
    "6 blocks, LoRA": ("tinyllama-6", "tune", {"method": LORA, "batch_size": 8}),
    "6 blocks, LoRA, micro-steps of 2,048": (
        "tinyllama-6",
        "tune",
        {"method": LORA, "batch_size": 24, "micro_batch": 2048},
    ),
    "6 blocks, LoRA, fp32": ("tinyllama-6", "tune", {"method": LORA, "batch_size": 4, "precision": "fp32"}),
    "6 blocks, LoRA, checkpointing": (
        "tinyllama-6",
        "tune",
        {"method": LORA, "batch_size": 24, "micro_batch": 2048, "gradient_checkpointing": True},
    ),
    "6 blocks, LoRA, int8": ("tinyllama-6", "tune", {"method": LORA, "batch_size": 8, "quantize": "int8"}),
    "6 blocks, LoRA, 8bit": ("tinyllama-6", "tune", {"method": LORA, "batch_size": 8, "quantize": "8bit"}),
    "6 blocks, LoRA, 4bit": ("tinyllama-6", "tune", {"method": LORA, "batch_size": 8, "quantize": "4bit"}),
    "6 blocks, DoRA": ("tinyllama-6", "tune", {"method": {"lora": {"r": 16, "dora": True}}, "batch_size": 8}),
    "6 blocks, last 2 and head": ("tinyllama-6", "tune", {"method": FREEZE, "batch_size": 8}),
    "GPT-2, full": ("gpt2", "pretrain", {"block_size": 512, "batch_size": 4}),
    "GPT-2, LoRA on c_attn": ("gpt2", "pretrain", {"block_size": 512, "batch_size": 4, "method": C_ATTN}),
    "GPT-2, full, checkpointing": (
        "gpt2",
        "pretrain",
        {"block_size": 512, "batch_size": 8, "gradient_checkpointing": True},
    ),
    "seedling, full, Muon": ("seedling", "pretrain", {"block_size": 512, "batch_size": 4, "optimizer": "muon"}),
    "seedling, LoRA": ("seedling", "tune", {"method": {"lora": {"r": 32, "alpha": 64}}, "batch_size": 32}),
}
"""By name: the model, the stage, its settings."""
LONG = {"block_size": 2048, "batch_size": 4}
GPU_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "22 blocks, full": ("tinyllama-22", "pretrain", LONG),
    "22 blocks, full, micro-steps left to it": ("tinyllama-22", "pretrain", LONG | {"micro_batch": "auto"}),
    "22 blocks, full, two micro-steps": ("tinyllama-22", "pretrain", LONG | {"accumulation": 2}),
    "22 blocks, full, checkpointing": ("tinyllama-22", "pretrain", LONG | {"gradient_checkpointing": True}),
    "22 blocks, full, 8-bit AdamW": ("tinyllama-22", "pretrain", LONG | {"optimizer": "adamw8bit"}),
    "22 blocks, last 2 and head": ("tinyllama-22", "pretrain", LONG | {"method": FREEZE}),
    "22 blocks, LoRA": ("tinyllama-22", "pretrain", LONG | {"method": LORA}),
    "22 blocks, LoRA, answers": ("tinyllama-22", "tune", {"method": LORA, "batch_size": 32}),
    "22 blocks, LoRA, int8": ("tinyllama-22", "tune", {"method": LORA, "batch_size": 32, "quantize": "int8"}),
    "22 blocks, LoRA, 8bit": ("tinyllama-22", "tune", {"method": LORA, "batch_size": 32, "quantize": "8bit"}),
    "22 blocks, LoRA, 4bit": ("tinyllama-22", "tune", {"method": LORA, "batch_size": 32, "quantize": "4bit"}),
    "22 blocks, LoRA, fp32": ("tinyllama-22", "tune", {"method": LORA, "batch_size": 16, "precision": "fp32"}),
    "GPT-2, full, 16 rows": ("gpt2", "pretrain", {"block_size": 512, "batch_size": 16}),
    "GPT-2, LoRA on c_attn, 16 rows": ("gpt2", "pretrain", {"block_size": 512, "batch_size": 16, "method": C_ATTN}),
}
ONE_ON_GPU = 26e9
"""Bytes of a GPU that the largest of them takes."""


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--child":
        print(json.dumps(child(sys.argv[2], Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description="Predicted beside measured memory, disk and time.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="some of them, without writing rows")
    parser.add_argument("--at-once", type=int, help="stop after so many; the next call goes on")
    parser.add_argument("--gpu", action="store_true", help="the cases for a GPU")
    given = parser.parse_args()
    need_shared()
    if given.gpu:
        on_gpu(given.cases)
        return
    if not (STORE / FILE).exists():  # without the speeds of products there are no times
        subprocess.run([str(Path(sys.executable).with_name("metier")), "doctor"], check=True, stdout=subprocess.DEVNULL)
    kept, left = Kept("estimates"), given.at_once
    with tempfile.TemporaryDirectory() as folder:
        if given.cases:
            for name in given.cases:
                show(name, measured(name, Path(folder)))
            return
        for name in list(CASES)[len(kept.parts) :]:
            if left == 0:
                print(f"{len(kept.parts)} of {len(CASES)} are through")
                raise SystemExit(75)
            kept.add(measured(name, Path(folder)))
            show(name, kept.parts[-1])
            left = None if left is None else left - 1
    write("training", "python -m benchmarks.estimates", list(map(row, CASES, kept.parts)))
    write_table(dict(zip(CASES, kept.parts, strict=True)), "estimates", f"{hardware()}, {torch_threads()} threads")
    kept.forget()


def on_gpu(only: Sequence[str]) -> None:
    """All cases for a GPU, or only some without writing rows. One that fails is told, and counts as all off."""
    import torch

    names = list(only) or list(GPU_CASES)
    at_once = max(1, int(torch.cuda.get_device_properties(0).total_memory / ONE_ON_GPU))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for model, made in (("tinyllama-22", "tinyllama22"), ("gpt2", "gpt2")):
            (folder / model).symlink_to(work.model(made))
        for kind in ("pretrain", "tune"):
            write_data(folder / kind, kind)

        def one(name: str) -> dict[str, Any]:
            try:
                return measured(name, folder)
            except SystemExit as failed:
                print(f"FAILED {failed}", flush=True)
                return {}

        with ThreadPoolExecutor(at_once) as pool:
            found = dict(zip(names, pool.map(one, names), strict=True))
    for name, case in found.items():
        if case:
            show(name, case)
    if only:
        return
    done = {name: case for name, case in found.items() if case}
    missing = [Row(f"GPU, {name}: failed", 1.0, 0.15, "share off", "lower") for name in names if name not in done]
    rows = [row(f"GPU, {name}", case) for name, case in done.items()]
    write("training", "python -m benchmarks.estimates --gpu", rows + missing)
    write_table(done, "gpu, estimates", f"{hardware()}. What torch allocates on the GPU, without the CUDA context")


def torch_threads() -> str:
    """What the environment allows, as every process here has it."""
    return os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))


def show(name: str, found: dict[str, Any]) -> None:
    """A case in words."""
    predicted = sum(found["predicted"].values())
    parts = ", ".join(f"{part} {size / 1e6:.0f}" for part, size in found["predicted"].items())
    print(f"{name}: predicted {predicted / 1e6:.0f} MB ({parts}), measured {found['peak'] / 1e6:.0f}")
    print(f"   {found['seconds_predicted']} s predicted, {found['seconds']:.1f} s taken, {found['notes']}", flush=True)


def row(name: str, found: dict[str, Any]) -> Row:
    """How far a case's predicted peak memory is off."""
    predicted, peak = sum(found["predicted"].values()), found["peak"]
    what = f"{name}: predicted {predicted / 1e6:.0f} MB of {peak / 1e6:.0f}"
    return Row(what, round(abs(predicted / peak - 1), 3), 0.15, "share off", "lower")


def write_table(found: Mapping[str, dict[str, Any]], title: str, where: str) -> None:
    """All of it as a section of training.md."""
    lines = [
        f"What `metier plan` predicts beside what a run took: {STEPS} optimizer steps through the real stage, loading "
        f"and saving included. {where}.",
        "",
        "| step | memory predicted | measured | off by | weights predicted | written | seconds predicted | measured |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        predicted, peak = sum(one["predicted"].values()), one["peak"]
        lines.append(
            f"| {name} | {predicted / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {predicted / peak - 1:+.1%} "
            f"| {one['disk_predicted'] / 1e6:.1f} MB | {one['disk'] / 1e6:.1f} MB "
            f"| {one['seconds_predicted'] or float('nan'):.0f} | {one['seconds']:.0f} |"
        )
    write_section(title, "\n".join(lines))


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One case in a process of its own, so that its peak is its own."""
    run = [sys.executable, "-m", "benchmarks.estimates", "--child", name, str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(name: str, folder: Path) -> dict[str, Any]:
    """Predict, then train. The model is made by a process before, whose memory must not count."""
    import torch

    from metier.core.events import Events
    from metier.core.machine import Machine
    from metier.core.measure import Stopwatch
    from metier.core.stage import Context, Source
    from metier.models.builtin import BUILTIN
    from metier.stages import CATALOGUE
    from metier.train import costs, estimate
    from metier.train.job import machine_for
    from metier.train.precision import best_device, choose
    from metier.train.together import ALONE

    model, kind, settings = (CASES | GPU_CASES)[name]
    if model not in BUILTIN and not (folder / model).exists():
        subprocess.run(
            [sys.executable, "-c", f"from benchmarks.estimates import make; make({model!r}, {str(folder)!r})"],
            check=True,
        )
    data = folder / kind
    if not data.exists():
        write_data(data, kind)
    reads = "documents" if kind == "pretrain" else "examples"
    stage: Any = CATALOGUE[kind].model_validate({"model": "base", reads: "data", "max_steps": STEPS, **settings})
    place = BUILTIN.get(model, folder / model)
    sources = {"base": Source("base", (place,), str(place), "0"), "data": Source("data", (data,), str(data), "1")}
    on_gpu = name in GPU_CASES
    here = Machine.here(STORE)
    if on_gpu:
        here = machine_for(choose(stage.precision, width=2048, device=best_device()), ALONE)
    job, read = estimate.described(stage, sources, here)
    predicted = costs.memory(job, read)
    if on_gpu:
        del predicted["base"]
    seconds = costs.seconds(job, read, here)
    out = folder / f"run-{name}".replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    for part in ("out", "measured", "scratch"):
        (out / part).mkdir(parents=True)
    ctx = Context(name, out / "out", out / "measured", out / "scratch", Events(name), sources)
    watch = Stopwatch()
    stage.run(ctx)
    about = json.loads((out / "measured/about.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (out / "measured/train.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "predicted": predicted,
        "moments": {k: sum(v.values()) for k, v in costs.moments(job, read).items()},
        "peak": torch.cuda.max_memory_allocated() if on_gpu else high_water(),
        "seconds": watch.seconds,
        "seconds_predicted": seconds,
        "disk_predicted": costs.disk(job, read)["model"],
        "disk": sum(p.stat().st_size for p in (out / "out").rglob("*.safetensors")),
        "notes": [
            rows[-1],
            about["precision"],
            {"micro": read.micro, "length": read.length, "tokens": read.tokens},
            {k: round(sum(v.values()) / 1e6) for k, v in costs.moments(job, read).items()},
        ],
    }


def high_water() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def make(model: str, folder: str) -> None:
    """A model of random weights with its real tokenizer."""
    target = Path(folder) / model
    aside = target.with_suffix(".aside")
    aside.mkdir(parents=True)
    family, _, layers = model.partition("-")
    write_weights(gpt2() if family == "gpt2" else tinyllama(int(layers)), aside)
    for path in (SHARED / "tokenizers" / family).iterdir():
        shutil.copyfile(path, aside / path.name)
    aside.rename(target)


def write_data(folder: Path, kind: str) -> None:
    """MedQuAD as a data step would leave it."""
    folder.mkdir(parents=True)
    rows: list[Mapping[str, Any]] = []
    size = 0
    for number, pair in zip(range(ROWS), medquad(), strict=False):
        question, answer = clean(pair["question"]), clean(pair["answer"])[:1200]
        size += len((question + answer).encode())
        if kind == "pretrain":
            rows.append({"id": str(number), "text": answer})
        else:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append({"id": str(number), "messages": messages, "group": ""})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    about = {"replay_ratio": 0.0, "counts": {"train": len(rows)}, "bytes": {"train": size}}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    assert MEDQUAD
    main()
