"""What training takes on machines that are not here: `metier plan --cluster 8xH100`. Arithmetic alone, no torch.

    memory    `costs.memory` of one device: weights, gradients and moments whole (each device has all) or over the
              devices (`shard`), activations of its micro-step
    compute   the device's share of the operations / (its peak x the share that training reaches), with the blocks'
              forward pass twice where they are computed again; a GPU is half as fast at micro-steps of `HALF` tokens
    network   whole: 4 bytes of each trained parameter and optimizer step, summed in a ring: each device sends
              2 (n - 1) / n of them. shard: for each micro-step all weights twice in the type of the products and all
              gradients once in float32, (n - 1) / n of them; beside the products where the devices are GPUs, so that
              the longer of the two counts
    update    the optimizer's traffic through memory

A layout is shard or whole, blocks kept or computed again, and the tokens of a micro-step; the fastest that fits is
named. Peaks, bandwidths and memories are the makers' figures for dense products in bf16 (B200, H200, H100 and A100 as
SXM). On GPUs `SHARE` of the peak is taken to be reached, which well-tuned training does: good to a third. `here` is
this machine, with what training on it reached. Between machines each device is taken to have `NETWORK` bytes a second.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from metier.core.errors import InputError, nearest
from metier.core.machine import Machine
from metier.core.stage import Source
from metier.train.costs import OPTIMIZER_TRAFFIC, memory, operations, share_of_peak
from metier.train.estimate import described, with_micro
from metier.train.sizes import Job, Reading

if TYPE_CHECKING:
    from metier.train.stage import Training

SHARE = 0.4
HALF = 512
FITS = 0.92
"""The share of a device's memory that may be planned with: the rest is lost between allocations."""
NETWORK = 25e9
LOOPBACK = 1.5e9
"""Bytes a second between processes of one machine over gloo."""
IN_A_MACHINE = 8
MICRO = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
MOST = 4096
"""Devices that are tried for a step that does not fit."""


@dataclass(frozen=True)
class Device:
    """memory: bytes. peak: operations a second in bf16, dense. bandwidth: bytes a second of its memory. link: bytes a
    second to the others in its machine, one way."""

    memory: float
    peak: float
    bandwidth: float
    link: float


DEVICES = {
    "B200": Device(180e9, 2250e12, 8.0e12, 900e9),
    "H200": Device(141e9, 989e12, 4.8e12, 450e9),
    "H100": Device(80e9, 989e12, 3.35e12, 450e9),
    "A100": Device(80e9, 312e12, 2.0e12, 300e9),
    "A100-40": Device(40e9, 312e12, 1.55e12, 300e9),
    "L40S": Device(48e9, 362e12, 0.86e12, 25e9),
    "A10": Device(24e9, 125e12, 0.6e12, 25e9),
    "L4": Device(24e9, 121e12, 0.3e12, 12e9),
    "RTX4090": Device(24e9, 165e12, 1.0e12, 25e9),
}


@dataclass(frozen=True)
class Cluster:
    """machines x devices of one kind. share: of the peak that is reached; None: what is known of this machine."""

    name: str
    machines: int
    devices: int
    device: Device
    share: float | None = SHARE
    kind: str = "cuda"

    @property
    def count(self) -> int:
        """All devices."""
        return self.machines * self.devices

    @property
    def link(self) -> float:
        """Bytes a second that each device can send to the others."""
        return self.device.link if self.machines == 1 else min(self.device.link, NETWORK)

    def of(self, count: int) -> "Cluster":
        """So many devices of the kind, on as many machines as that takes."""
        machines = max(1, -(-count // IN_A_MACHINE))
        return replace(self, machines=machines, devices=min(count, IN_A_MACHINE))


@dataclass(frozen=True)
class Layout:
    """How a step would be spread, and what it takes. micro: tokens. parts: bytes of a device. compute, network, update:
    seconds of an optimizer step."""

    devices: int
    shard: bool
    checkpointing: bool
    micro: float
    parts: Mapping[str, float]
    compute: float
    network: float
    update: float
    tokens: float
    overlaps: bool

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return sum(self.parts.values())

    @property
    def step_seconds(self) -> float:
        """An optimizer step."""
        under = max(self.compute, self.network) if self.overlaps else self.compute + self.network
        return under + self.update

    @property
    def speed(self) -> float:
        """Tokens a second of all devices."""
        return self.tokens / self.step_seconds

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        return max(("products", self.compute), ("network", self.network), ("update", self.update), key=lambda p: p[1])[
            0
        ]

    @property
    def words(self) -> str:
        """For a table."""
        held = f"sharded over {self.devices}" if self.shard else f"whole on each of {self.devices}"
        held = "one device" if self.devices == 1 else held
        again = ", blocks computed again" if self.checkpointing else ""
        return f"{held}{again}, micro-steps of {self.micro:,.0f}"


def parse(text: str, machine: Machine, cores: int) -> Cluster:
    """`8xH100`, `4x8xA100-40` (machines x devices), or `2xhere`: processes on this machine. Raises InputError."""
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)x([A-Za-z][\w-]*)", text.strip())
    if found is None or int(found[2]) == 0 or found[1] == "0":
        raise InputError(
            "a cluster is written as devices x kind, or machines x devices x kind",
            where="--cluster",
            value=text,
            cure="for example 8xH100, 4x8xA100 or 2xhere; kinds: " + ", ".join([*DEVICES, "here"]),
        )
    machines, devices, kind = int(found[1] or 1), int(found[2]), found[3]
    if kind.lower() == "here":
        return _here(text, machines, devices, machine, cores)
    names = {name.lower(): name for name in DEVICES}
    if kind.lower() not in names:
        known = [*DEVICES, "here"]
        raise InputError("there is no such device", where="--cluster", value=kind, cure=nearest(kind, known))
    return Cluster(text, machines, devices, DEVICES[names[kind.lower()]])


def _here(text: str, machines: int, devices: int, machine: Machine, cores: int) -> Cluster:
    if machines > 1 or devices > cores:
        raise InputError(
            f"this machine has {cores} cores", where="--cluster", value=text, cure=f"use at most {cores}xhere"
        )
    peak = machine.peaks.get(machine.auto)
    if peak is None:
        raise InputError("this machine was not measured yet", where="--cluster", value=text, cure="run `metier doctor`")
    device = Device(machine.memory_bytes / devices, peak / devices, 10e9 / devices, LOOPBACK)
    return Cluster(text, 1, devices, device, share=None, kind="cpu")


def layouts(job: Job, reading: Reading, cluster: Cluster, machine: Machine) -> list[Layout]:
    """All that fit, the fastest first."""
    shards = [False, True] if cluster.count > 1 and can_shard(job) else [False]
    work = operations(job, reading)
    found = [
        _layout(job, reading, cluster, machine, work, shard=shard, again=again, micro=micro)
        for shard in shards
        for again in sorted({job.checkpointing, True})
        for micro in _micros(reading, cluster)
    ]
    return sorted((one for one in found if _fits(one, cluster)), key=lambda one: -one.speed)


def _micros(reading: Reading, cluster: Cluster) -> list[float]:
    """Sizes of micro-steps to try: up to a device's share of an optimizer step."""
    share = reading.micro * reading.per_window / cluster.count
    return sorted({min(float(size), share) for size in MICRO if size <= max(share, MICRO[0])})


def _fits(layout: Layout, cluster: Cluster) -> bool:
    return layout.memory <= FITS * cluster.device.memory


def can_shard(job: Job) -> bool:
    """Whether the stage takes `shard: true`."""
    return job.method == "full" and job.optimizer == "adamw" and not job.teacher_bytes


def fewest(job: Job, reading: Reading, cluster: Cluster, machine: Machine) -> Cluster | None:
    """The fewest devices of the kind, a power of two, that a step fits; None where none are enough."""
    count = 1
    while count <= MOST:
        other = cluster.of(count)
        shard, micro = count > 1 and can_shard(job), _micros(reading, other)[0]
        least = _layout(job, reading, other, machine, 0.0, shard=shard, again=True, micro=micro)
        if _fits(least, other):
            return other
        count *= 2
    return None


def _layout(
    job: Job,
    reading: Reading,
    cluster: Cluster,
    machine: Machine,
    work: float,
    *,
    shard: bool,
    again: bool,
    micro: float,
) -> Layout:
    """work: operations of an epoch."""
    count, device = cluster.count, cluster.device
    job = replace(job, shards=count if shard else 1, checkpointing=again, device=cluster.kind, cache="off")
    window = reading.micro * reading.per_window
    reading = with_micro(reading, micro)
    parts = memory(job, reading)
    share = cluster.share
    if share is None:
        share = share_of_peak(job, machine)
    own = work / reading.tokens * window / count
    twice = (1.5 if job.adapts else 4 / 3) if again else 1.0
    trained = float(sum(job.trained.values()))
    ring = (count - 1) / count
    if shard:
        micros = max(1.0, window / count / micro)
        sent = micros * sum(job.shape.sizes.values()) * (2 * job.products + 4.0) * ring
    else:
        sent = 4.0 * trained * 2 * ring
    peak = device.peak
    if cluster.kind == "cuda":
        peak *= micro / (micro + HALF) / (2.0 if job.precision == "fp32" else 1.0)
    return Layout(
        count,
        shard,
        again,
        micro,
        parts,
        own * twice / (peak * share),
        sent / cluster.link,
        trained / job.shards * OPTIMIZER_TRAFFIC / device.bandwidth,
        window,
        overlaps=shard and cluster.kind == "cuda",
    )


def of_stage(
    stage: "Training", sources: Mapping[str, Source], cluster: Cluster, machine: Machine
) -> tuple[Job, Reading, list[Layout]] | None:
    """What a stage would take there; None for a model whose sizes are not known."""
    there = replace(
        machine,
        memory_bytes=cluster.device.memory,
        device=cluster.kind,
        auto="bf16" if cluster.kind == "cuda" else machine.auto,
    )
    found = described(stage, sources, there)
    return None if found is None else (*found, layouts(*found, cluster, machine))


def total_seconds(layout: Layout, reading: Reading) -> float:
    """Of all epochs."""
    return reading.tokens * reading.epochs / layout.speed
