"""What `metier plan --cluster 2xhere` would have said beside what was measured: `python -m benchmarks.clusters`.

The measured figures are the rows of `python -m benchmarks.scale` in benchmarks/results/scale.json: tokens a second of
one process on a core and of two on two (LoRA), and the peak memory of each of two processes, with FSDP2 and without
(full fine-tuning). The predictions know the settings of these cases, a model's config.json, and how fast large products
are on this machine, which is measured first (a second). Rows in the same file: how far off the model is.

The memory of one process is held against the same model in `benchmarks.estimates`, row by row, in training.json.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.rows import RESULTS, Row, write
from benchmarks.scale import LAYERS, SETTINGS
from benchmarks.work import tinyllama
from metier.core.machine import Machine
from metier.train.cluster import Cluster, Layout, layouts, parse
from metier.train.sizes import Job, Reading, Shape
from metier.train.stage import Pretrain

COMMAND = "python -m benchmarks.clusters"
MEMORY_BAR, TIME_BAR = 0.15, 0.33
"""What the docs say that memory and times are good to."""
ROOM = 1e12
"""More memory than anything takes: every layout is told, also one that would not fit beside what runs here now."""


def main() -> None:
    measured = {row["command"]: row["case"] for row in json.loads((RESULTS / "scale.json").read_text("utf-8"))}
    machine = Machine(ROOM, "cpu", "bf16", {"bf16": peak()})
    rows = speeds(measured["python -m benchmarks.scale ddp"], machine)
    rows += memories(measured["python -m benchmarks.scale memory"], machine)
    write("scale", COMMAND, rows)


def peak() -> float:
    """Operations a second of large products in bf16, on all cores."""
    import torch

    from metier.train.precision import gemm_peak

    return gemm_peak(torch.device("cpu"), torch.bfloat16)


def described(case: str, layers: int, more: Mapping[str, Any]) -> tuple[Job, Reading]:
    """A case of `benchmarks.scale` as the model sees it: blocks are full, and no piece is longer."""
    stage = Pretrain.model_validate({"model": "base", "documents": "data", **SETTINGS[case], **more})
    shape = Shape.of(tinyllama(layers).to_dict())
    assert shape is not None
    length = float(stage.block_size or 0)
    steps, blocks = stage.max_steps or 1, stage.batch_size * stage.accumulation
    tokens = steps * blocks * length
    reading = Reading(
        tokens=tokens,
        targets=tokens * (1 - 1 / length),
        epochs=1.0,
        windows=float(steps),
        micro=stage.batch_size * length,
        per_window=float(stage.accumulation),
        length=length,
        uniform=True,
        pieces=tokens / length,
    )
    return Job(shape, stage.method, "bf16"), reading


def layout(job: Job, reading: Reading, cluster: Cluster, machine: Machine, *, shard: bool) -> Layout:
    """The one that was measured: micro-steps as they are cut for the processes, blocks kept."""
    wide = replace(cluster, device=replace(cluster.device, memory=ROOM))
    micro = min(reading.micro, reading.micro * reading.per_window / cluster.count)
    (found,) = [
        one
        for one in layouts(job, reading, wide, machine)
        if one.shard == shard and not one.checkpointing and one.micro == micro
    ]
    return found


def speeds(case: str, machine: Machine) -> list[Row]:
    """Tokens a second, from `(284 -> 445 tokens/s)`."""
    found = re.search(r"(\d+) blocks, bf16 \((\d+) -> (\d+) tokens/s\)", case)
    assert found, case
    layers, one, two = map(int, found.groups())
    assert layers == LAYERS
    job, reading = described("ddp", layers, {})
    both = parse("2xhere", machine, 2)
    single = replace(both, devices=1)  # one process held to one of the two cores
    told = [layout(job, reading, cluster, machine, shard=False).speed for cluster in (single, both)]
    gains = told[1] / told[0], two / one
    what = "plan --cluster 2xhere, LoRA, TinyLlama's width, {} blocks: predicted {} of measured {}"
    return [
        _row(what.format(layers, f"{told[0]:.0f}", f"{one} tokens/s, one process on one core"), told[0], one, TIME_BAR),
        _row(what.format(layers, f"{told[1]:.0f}", f"{two} tokens/s, two on two"), told[1], two, TIME_BAR),
        _row(what.format(layers, f"{gains[0]:.2f}", f"{gains[1]:.2f} times one process"), *gains, TIME_BAR),
    ]


def memories(case: str, machine: Machine) -> list[Row]:
    """Peak memory of a process, from `4 blocks, two of them (4.40 of 5.77 GB)`."""
    found = re.search(r"(\d+) blocks.*\(([\d.]+) of ([\d.]+) GB\)", case)
    assert found, case
    layers, parts, whole = int(found[1]), float(found[2]), float(found[3])
    rows = []
    both = parse("2xhere", machine, 2)
    for shard, measured in ((True, parts), (False, whole)):
        job, reading = described("memory", layers, {"shard": shard})
        told = layout(job, reading, both, machine, shard=shard).memory / 1e9
        name = "FSDP2's shards" if shard else "whole on each"
        what = (
            f"plan --cluster 2xhere, full fine-tuning, TinyLlama's width, {layers} blocks, {name}: predicted "
            f"{told:.2f} of measured {measured:.2f} GB a process"
        )
        rows.append(_row(what, told, measured, MEMORY_BAR))
    return rows


def _row(what: str, predicted: float, measured: float, bar: float) -> Row:
    return Row(what, round(abs(predicted / measured - 1), 3), bar, "share off", "lower", n=1)


if __name__ == "__main__":
    main()
