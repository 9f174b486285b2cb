"""Several processes beside one: `python -m benchmarks.scale [ddp] [memory]`, rows in benchmarks/results/scale.json.

    ddp     LoRA at TinyLlama's width on two cores: two processes on a core each against one process held to one core,
            in turns; tokens a second of each turn's steps after the first
    memory  full fine-tuning at TinyLlama's width: peak memory of a process with FSDP2's shards against one that holds
            all, both of two processes, with as many blocks as fit into what is free

Everything goes through the stage that a recipe's `pretrain` is. Needs ../shared; a few minutes each, and for `memory`
most of the machine's memory.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.rows import Row, write
from benchmarks.work import MEDQUAD, SHARED, clean, medquad, need_shared, tinyllama, write_weights

COMMAND = "python -m benchmarks.scale"
TURNS = 3
STEPS = 3
LAYERS = 6
LEAST, MOST = 2, 22
A_LAYER, REST = 44.0e6, 131.1e6
"""Parameters of a block, and of embeddings and head."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ddp": {
        "method": {"lora": {"r": 16}},
        "block_size": 512,
        "batch_size": 2,
        "accumulation": 4,
        "max_steps": STEPS,
        "log_every": 1,
        "precision": "bf16",
    },
    "memory": {"block_size": 128, "batch_size": 1, "accumulation": 2, "max_steps": 2, "precision": "bf16"},
}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
        return
    wanted = sys.argv[1:] or ["ddp", "memory"]
    need_shared()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data")
        if "ddp" in wanted:
            rows.append(ddp(folder))
        if "memory" in wanted:
            rows.append(memory(folder))
    command = COMMAND if set(wanted) == {"ddp", "memory"} else f"{COMMAND} {' '.join(wanted)}"
    write("scale", command, rows)


def ddp(folder: Path) -> Row:
    """Two processes on two cores against one on one, in turns."""
    make(folder / "model", LAYERS)
    ratios, speeds = [], []
    for turn in range(TURNS):
        one = launch("ddp", folder, 1, {}, apart=True)[0]["speed"]
        two = launch("ddp", folder, 2, {}, apart=True)[0]["speed"]
        ratios.append(two / one)
        speeds.append((one, two))
        print(f"turn {turn}: {one:.0f} and {two:.0f} tokens/s, {two / one:.2f}", flush=True)
    low, high = min(ratios), max(ratios)
    what = (
        f"two processes on two cores against one on one, LoRA, TinyLlama's width, {LAYERS} blocks, bf16 "
        f"({median(s[0] for s in speeds):.0f} -> {median(s[1] for s in speeds):.0f} tokens/s)"
    )
    return Row(what, round(median(ratios), 2), 1.6, "x tokens/s", "higher", n=TURNS, interval=(low, high))


def memory(folder: Path) -> Row:
    """Shards against whole models, the same step."""
    import psutil

    free = 0.92 * psutil.virtual_memory().available
    # what a whole model takes was measured: 16 bytes a parameter and 1.4 GB
    layers = int(((free / 2 - 1.4e9) / 16 - REST) / A_LAYER)
    layers = int(os.environ.get("LAYERS", max(LEAST, min(MOST, layers))))
    make(folder / f"model-{layers}", layers)
    link = folder / "model"
    link.unlink(missing_ok=True) if link.is_symlink() else None
    if link.is_dir():
        link.rename(folder / "before")
    link.symlink_to(folder / f"model-{layers}")
    peaks = {}
    for shard in (True, False):
        found = launch("memory", folder, 2, {"shard": shard})
        peaks[shard] = [one["peak"] for one in found]
        print(f"{layers} blocks, shard {shard}: {[round(p / 1e9, 2) for p in peaks[shard]]} GB", flush=True)
    whole, parts = fmean(peaks[False]), max(peaks[True])
    what = (
        f"FSDP2's peak memory a process over DDP's, full fine-tuning, TinyLlama's width, {layers} blocks, two of them "
        f"({parts / 1e9:.2f} of {whole / 1e9:.2f} GB)"
    )
    return Row(what, round(parts / whole, 3), 0.65, "x memory", "lower", n=2)


def launch(case: str, folder: Path, size: int, more: dict[str, Any], *, apart: bool = False) -> list[dict[str, Any]]:
    """Run a case in so many processes; what each said. apart: on a core each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    running = []
    for rank in range(size):
        place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
        env = os.environ | {key: str(value) for key, value in place.items()}
        env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "benchmarks.scale", "--child", case, str(folder), json.dumps(more)]
        if apart:
            command = ["taskset", "-c", str(cores[rank]), *command]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{case} with {size} processes failed: {[process.returncode for process in running]}")
    return [json.loads(text.splitlines()[-1]) for text in said]


def child(case: str, folder: Path, more: dict[str, Any]) -> None:
    """One process of a case: the stage, with its place among the others."""
    import torch.distributed as dist

    from benchmarks.estimates import high_water
    from metier.core.events import Events
    from metier.core.stage import Context, Source
    from metier.core.team import Team
    from metier.train.stage import Pretrain

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        dist.init_process_group("gloo")
    stage = Pretrain.model_validate({"model": "base", "documents": "data", **SETTINGS[case], **more})
    scratch = folder / f"scratch-{size}-{more.get('shard')}-{os.environ['MASTER_PORT']}"
    out = folder / f"out-{rank}-{os.environ['MASTER_PORT']}"
    for path in (scratch, out / "files", out / "measured"):
        path.mkdir(parents=True, exist_ok=True)
    places = {"base": (folder / "model").resolve(), "data": folder / "data"}
    sources = {name: Source(name, (path,), str(path), "0") for name, path in places.items()}
    team = Team(rank, size, size) if size > 1 else None
    ctx = Context(case, out / "files", out / "measured", scratch, Events(case), sources, team=team)
    stage.run(ctx)
    found: dict[str, Any] = {"peak": high_water()}
    if rank == 0:
        lines = (ctx.measured / "train.jsonl").read_text(encoding="utf-8").splitlines()
        speeds = [json.loads(line)["tokens_per_second"] for line in lines]
        found["speed"] = median(speeds[1:] or speeds)
    print(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def make(folder: Path, layers: int) -> None:
    """A model of TinyLlama's shape with so many blocks, in a process of its own, whose memory does not count."""
    if not folder.exists():
        code = f"from benchmarks.scale import make_here; make_here({str(folder)!r}, {layers})"
        subprocess.run([sys.executable, "-c", code], check=True)


def make_here(name: str, layers: int) -> None:
    import shutil

    folder = Path(name)
    folder.mkdir(parents=True)
    write_weights(tinyllama(layers), folder)
    for path in (SHARED / "tokenizers/tinyllama").iterdir():
        shutil.copyfile(path, folder / path.name)


def write_data(folder: Path) -> None:
    """MedQuAD's answers, laid end to end, as documents: enough for all steps."""
    assert MEDQUAD.is_file()
    folder.mkdir(parents=True)
    answers = [clean(row["answer"]) for row in medquad()]
    random.Random(0).shuffle(answers)
    texts = [" ".join(answers[start : start + 20]) for start in range(0, 400, 20)]
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    for name in ("heldout", "replay"):
        (folder / f"{name}.jsonl").touch()
    (folder / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}', encoding="utf-8")


if __name__ == "__main__":
    main()
