"""What a training step will take in memory, disk and time, from config.json and the settings alone. No torch.

Memory is the largest of a few moments (`moments`), each a sum of named parts. What a block keeps for the backward pass
is counted from the code in `fast`: the table `KEPT` says how many numbers a token leaves there. Everything else follows
from how many parameters there are and in which type each is held. `benchmarks/estimates.py` holds the two figures
beside what was measured.

    residual     the stream between blocks: float32 where the embeddings are held so, else the type of the products
    products     the type that matrices are multiplied in: 4 bytes in fp32, 2 in bf16 and fp16

Time is operations / (speed of large products x the share of it that is reached). Operations are counted as in `flops`:
each matrix twice its size a token forward, as much for the gradient to its input and, where it trains, to itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from metier.core.errors import InputError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Source
from metier.models.builtin import CONFIG, base_link, follow, is_adapter, read_json
from metier.train.methods import FreezeMethod, LoraMethod
from metier.train.reading import model_folder, reading_of
from metier.train.sizes import SHORT_TYPES_FROM, Job, Reading, Shape, Type, block_of

if TYPE_CHECKING:
    from metier.train.stage import Training

Bytes = dict[str, float]

BASE = 480e6
"""A process with Python, torch, transformers, the kernels and what the allocator keeps in reserve (64 MB)."""
BASE_BY_NEED = {"peft": 170e6, "bitsandbytes": 310e6, "muon": 20e6}
"""More for what only some settings need: libraries, and with bitsandbytes the scratch memory of its conversions."""
BASE_ON_GPU = 600e6
"""What a CUDA context and its libraries hold of the GPU's memory."""
QUANTIZED_BYTES = {"int8": 1.0, "8bit": 1.0, "4bit": 4.13 / 8}
"""A weight in a block's linear layers: NF4 with double quantisation takes 4.13 bits (arXiv 2305.14314)."""
MOMENTS = {"adamw": 8.0, "adamw8bit": 2.03, "muon": 4.0}
"""An optimizer's memory of a matrix: two float32 numbers a parameter, two bytes and scales, or one float32."""
UPDATE = 14.0
"""Bytes a number of the matrix that Muon makes orthogonal: its momentum in float32 and five copies in bf16."""
SMALL = 4096
"""8-bit AdamW keeps float32 moments for parameters with fewer numbers."""
CHUNK, CHUNK_TRAINED = 256, 1024
"""Targets whose scores exist at once, with a frozen head and with one that trains (`head`)."""
SHORT = 640
"""Up to this many keys attention is in the textbook form on a CPU, which copies queries, keys and values."""
SCATTERED = 1.25
"""What is kept by way of modules takes more memory than it holds: their passing copies leave holes between the pieces.
Measured at 1,024 tokens of TinyLlama's shape in 4 bits: 610 MB for 466."""
DROPPED = 13.0
"""Bytes that torch's kernel keeps of each weight with dropout on a CPU, where it has no form that spares them."""
PADDED = 1.12
"""Places of attention's buckets over tokens, where pieces differ in length."""
WHOLE = 128
"""Rows are filled up to a multiple of it."""
LARGEST = {"cpu": 2048, "cuda": 8192}
"""The largest micro-step that `micro_batch: auto` takes: more is not faster."""
MARGIN = 0.85
"""The share of the free memory that `micro_batch: auto` plans to use: what the estimates may be off."""
OPTIMIZER_TRAFFIC = 28.0
"""Bytes that AdamW moves for each trained parameter and step: 16 read, 12 written."""
BANDWIDTH = {"cpu": 10e9, "cuda": 1000e9}
"""Bytes a second through memory, as two server cores and a data-centre GPU have."""
NVIDIA = Path("/proc/driver/nvidia/version")
START_SECONDS = 5.0
"""Importing libraries and encoding; weights are read at about a gigabyte a second."""
TYPICAL = ((64, 0.02), (256, 0.12), (512, 0.25), (1024, 0.4), (2048, 0.55))
"""Width and the share of the peak that training reaches there, on two cores in bf16, where none was measured."""


@dataclass(frozen=True)
class Kept:
    """How many numbers a block keeps for backward, as multiples of its sides.

    width: the hidden size. residual: of that size in the residual's type. queries: heads x head_dim. keys: key/value
    heads x head_dim. inner: the MLP's. thin: of an adapter's rank. input_only: those of the first two that the last
    block keeps for every token, while it keeps the rest for targets alone, as (residual, width, keys).
    """

    residual: float
    width: float
    queries: float
    keys: float
    inner: float
    thin: float
    input_only: tuple[float, float, float]


KEPT: dict[tuple[str, str], Kept] = {
    # the block's two states; queries scaled and attention's output; keys and values as attention lays them out; gate
    # and up; the adapter's inner products of seven layers. Norms, activations and scores are made again in backward
    ("llama", "fast"): Kept(2, 0, 2, 2, 2, 7, (1, 0, 2)),
    # what GELU reads; four layers
    ("gpt2", "fast"): Kept(2, 0, 2, 2, 1, 4, (1, 0, 2)),
    # through the modules' own forward (bitsandbytes, DoRA): besides, every layer keeps its own copy of what it reads
    ("llama", "modules"): Kept(2, 5, 3, 2, 3, 7, (1, 2, 2)),
    ("gpt2", "modules"): Kept(2, 2, 3, 2, 2, 4, (1, 1, 2)),
    # LLM.int8 keeps what its layers read once more
    ("llama", "8bit"): Kept(2, 7, 3, 2, 4, 7, (1, 3, 2)),
    ("gpt2", "8bit"): Kept(2, 4, 4, 2, 3, 4, (1, 2, 2)),
}
"""By architecture and by how its layers are computed. With checkpointing only each block's input is kept."""


# ---- a stage ---------------------------------------------------------------------------------------------------------


def of_stage(stage: "Training", sources: Mapping[str, Source], machine: Machine) -> Estimate | None:
    """What a training step will take; None for a model of an unknown architecture or one that cannot be found yet."""
    found = described(stage, sources, machine)
    return None if found is None else estimate(*found, machine)


def check_memory(stage: "Training", sources: Mapping[str, Source], machine: Machine | None = None) -> None:
    """Raise InputError where the step's memory is more than there is.

    machine: None for this one, where the step runs on the CPU: with a GPU the step looks itself, with the GPU's free
    memory, before it loads any weight. Steps whose data is not made yet are let pass.
    """
    if machine is None and _has_gpu():
        return
    here = Machine.here() if machine is None else machine
    found = described(stage, sources, here)
    if found is not None:
        refuse_if_too_big(*found, here.memory_bytes)


def micro_tokens(stage: "Training", sources: Mapping[str, Source], machine: Machine) -> int:
    """What `micro_batch: auto` means on a machine. Raises InputError for a model whose memory cannot be told."""
    found = described(stage, sources, machine)
    if found is None:
        raise InputError(
            "the memory of this architecture is not known, so auto cannot tell what fits",
            where="micro_batch",
            value="auto",
            cure="give a number of tokens: 1024 is usual on a CPU",
        )
    job, reading = found
    return fitting_micro_tokens(job, reading, machine.memory_bytes)


def learned(
    precision: str, quantize: str | None, *, width: int, peak: float, utilisation: float
) -> dict[str, dict[str, Any]]:
    """What a training step that has run says of the machine, for its measured/machine.json.

    peak: operations a second of large products in that type. utilisation: the share of it that training reached.
    """
    work = precision if quantize is None else f"{precision}+{quantize}"
    return {"peaks": {precision: peak}, "reached": {work: {str(width): round(utilisation, 4)}}}


def described(stage: "Training", sources: Mapping[str, Source], machine: Machine) -> tuple[Job, Reading] | None:
    """A stage's settings and what it reads, as far as files show them."""
    folder = model_folder(sources[stage.model])
    if folder is None:
        return None
    plain = _plain(folder)
    shape = Shape.of(read_json(plain / CONFIG))
    if shape is None:
        return None
    length = stage.length(shape.context)
    read = reading_of(stage, sources, model=plain, vocabulary=shape.vocabulary, length=length)
    job = Job(
        shape,
        stage.method,
        precision_of(stage.precision, shape.width, machine),
        quantize=stage.quantize,
        optimizer=stage.optimizer,
        checkpointing=stage.gradient_checkpointing,
        keeps_best=stage.keeps_best,
        device=machine.device,
    )
    job = replace(job, cache=_cache(stage, job, read, machine))
    wanted = stage.micro_batch
    if wanted == "auto":
        wanted = fitting_micro_tokens(job, read, machine.memory_bytes)
    return job, read if wanted is None else with_micro(read, min(wanted, read.tokens))


def _cache(stage: "Training", job: Job, reading: Reading, machine: Machine) -> Literal["memory", "disk", "off"]:
    """Where the frozen lower blocks' output will be kept, by the rules of `prefix_cache`."""
    if job.frozen_blocks == 0 or stage.epochs == 1 or stage.neftune is not None:
        return "off"
    if stage.prefix_cache == "auto":
        return "memory" if cache_bytes(job, reading) <= machine.memory_bytes / 4 else "disk"
    return stage.prefix_cache


def precision_of(wanted: str, width: int, machine: Machine) -> Type:
    """The type that a step will train in, as `precision.choose` decides it."""
    if wanted != "auto":
        return cast(Type, wanted)
    return "fp32" if width < SHORT_TYPES_FROM else cast(Type, machine.auto)


def _has_gpu() -> bool:
    return NVIDIA.exists()


def _plain(folder: Path) -> Path:
    """The folder of the model that an adapter stands on, or the folder itself."""
    while is_adapter(folder):
        folder = follow(base_link(folder), folder)
    return folder


# ---- parameters -----------------------------------------------------------------------------------------------------


def weights(job: Job) -> float:
    """Bytes of the model's own weights as they are held while training."""
    total = 0.0
    for name, size in job.shape.sizes.items():
        layer, _, kind = name.rpartition(".")
        if job.quantize and layer in job.shape.anatomy.linear and kind == "weight":
            total += size * QUANTIZED_BYTES[job.quantize] + 4 * job.shape.anatomy.linear[layer][1]
        else:
            total += size * (4.0 if name in job.trained and not job.ranks else job.products)
    return total


def moments_bytes(job: Job) -> float:
    """Bytes that the optimizer remembers. Muon takes the matrices inside the blocks, AdamW the rest."""
    total = 0.0
    for name, size in job.trained.items():
        kind = job.optimizer
        if kind == "muon" and not (block_of(name) is not None and name.rpartition(".")[0] in job.shape.anatomy.linear):
            kind = "adamw"
        total += size * (8.0 if kind == "adamw8bit" and size < SMALL else MOMENTS[kind])
    return total


# ---- memory ---------------------------------------------------------------------------------------------------------


def memory(job: Job, reading: Reading) -> Bytes:
    """The parts of memory at the moment when most is held."""
    return max(moments(job, reading).values(), key=lambda parts: sum(parts.values()))


def moments(job: Job, reading: Reading) -> dict[str, Bytes]:
    """The parts of memory at each moment that may be the largest.

    loading: the file is mapped beside the weights. dev: the dev loss, before training. training: a step; gradients and
    activations count together although the ones grow as the others go, as freed memory is kept for the next step.
    saving: frozen weights that were held in fewer bits are read again.
    """
    trained = float(sum(job.trained.values()))
    fixed: Bytes = {"base": base(job), "weights": weights(job), "data": 6.0 * reading.tokens + 700.0 * reading.pieces}
    if job.ranks:
        fixed["adapter"] = 4.0 * trained
    one_block = working(job, reading)
    if job.checkpointing:  # what is kept of the block that is computed again
        one_block += block_bytes(job, reading, rows_of(reading))
    passing = {"one block": one_block, "head": head_bytes(job, reading)}
    training = {
        **fixed,
        "moments": moments_bytes(job),
        "gradients": 4.0 * trained,
        "activations": activations(job, reading),
        **dict([max(passing.items(), key=lambda part: part[1])]),
    }
    if job.optimizer == "muon":
        training["one update"] = UPDATE * max(prod(sides) for sides in job.shape.anatomy.linear.values())
    if job.keeps_best:
        training["best weights"] = 4.0 * trained
    if job.cache == "memory":
        training["prefix cache"] = cache_bytes(job, reading)
    dev = {**fixed, "one block": working(job, replace(reading, micro=reading.dev_micro)), "head": chunk_bytes(job)}
    found = {"loading": {**fixed, **loading(job)}, "dev": dev, "training": training}
    if isinstance(job.method, FreezeMethod) and job.precision != "fp32":
        whole = {"the model read again": 4.0 * sum(job.shape.sizes.values())}
        found["saving"] = {**fixed, **whole, **loading(job)}
    return found


def base(job: Job) -> float:
    """What a process holds before any weight."""
    if job.device == "cuda":
        return BASE_ON_GPU
    needed = {
        "peft": bool(job.ranks),
        "bitsandbytes": job.quantize in ("8bit", "4bit") or job.optimizer == "adamw8bit",
        "muon": job.optimizer == "muon",
    }
    return BASE + sum(BASE_BY_NEED[name] for name, is_so in needed.items() if is_so)


def loading(job: Job) -> Bytes:
    """What loading holds beside the finished weights: the mapped file, or one layer where it is read layer by layer."""
    if job.device == "cuda":
        return {}
    if job.quantize:
        return {"one layer": 8.0 * max(prod(sides) for sides in job.shape.anatomy.linear.values())}
    return {"the mapped file": job.shape.stored_bytes * sum(job.shape.sizes.values())}


def activations(job: Job, reading: Reading) -> float:
    """Bytes that the blocks keep for the backward pass of the largest micro-step."""
    shape = job.shape
    tokens = rows_of(reading)
    learning = shape.anatomy.depth - job.frozen_blocks
    last = tokens * min(1.0, reading.targets / reading.tokens)
    out = last * shape.width * job.residual  # what the last norm reads
    if learning == 0:
        return out
    if job.checkpointing:
        return out + learning * tokens * shape.width * job.residual
    return out + (learning - 1) * block_bytes(job, reading, tokens) + block_bytes(job, reading, tokens, asked=last)


def block_bytes(job: Job, reading: Reading, tokens: float, asked: float | None = None) -> float:
    """What one block keeps of `tokens` tokens. asked: the last block keeps most of it for so many tokens only."""
    shape, kept = job.shape, KEPT[job.shape.family, job.way]
    padded = 1.0 if reading.uniform else PADDED
    first_residual, first_width, first_keys = kept.input_only
    every = first_residual * shape.width * job.residual
    every += (first_width * shape.width + first_keys * shape.keys * padded) * job.products
    rest = (kept.residual - first_residual) * shape.width * job.residual
    rest += (kept.width - first_width) * shape.width * job.products
    rest += ((kept.keys - first_keys) * shape.keys + kept.queries * shape.queries * padded) * job.products
    rest += kept.inner * shape.inner * job.products
    rest += kept.thin * max(job.ranks.values(), default=0) * job.products
    residual_drop, attention_drop = shape.dropouts
    if residual_drop:
        rest += 2.0 * shape.width * job.products
    if reading.length <= SHORT and job.device == "cpu":
        rest += shape.heads * reading.length * padded**2 * (1.0 if attention_drop else 0.0)  # what was dropped
    elif attention_drop and job.device == "cpu":
        rest += shape.heads * reading.length * DROPPED
    if isinstance(job.method, LoraMethod) and job.method.lora.dropout:
        every += shape.width
        rest += shape.width + shape.queries + shape.inner
    total = tokens * every + (tokens if asked is None else asked) * rest
    return total if job.way == "fast" else SCATTERED * total


def working(job: Job, reading: Reading) -> float:
    """What one block holds only while it is computed: the MLP's parts and a matrix in the type of the products."""
    shape = job.shape
    matrix = max(prod(sides) for sides in shape.anatomy.linear.values()) * job.products
    if job.precision == "fp32" or (job.ranks and not job.quantize):
        matrix = 0.0
    a_token = (2 * shape.width * job.residual) + (shape.width + 4 * shape.inner) * job.products
    return rows_of(reading) * a_token + matrix


def chunk_bytes(job: Job) -> float:
    """One chunk of scores."""
    return (CHUNK_TRAINED if job.trains_head else CHUNK) * job.shape.vocabulary * job.products


def head_bytes(job: Job, reading: Reading) -> float:
    """The chunk of scores, the gradient to the hidden states, and what a trained head's gradient takes on its way."""
    matrix = float(job.shape.vocabulary * job.shape.width)
    targets = rows_of(reading) * min(1.0, reading.targets / reading.tokens)
    total = chunk_bytes(job) + targets * job.shape.width * 2 * job.products
    if job.trains_head:
        total += matrix * (4.0 + job.products)
        if job.precision != "fp32":
            total += matrix * job.products
    return total


def rows_of(reading: Reading) -> float:
    """Tokens of the largest micro-step's row."""
    return float(-(-reading.micro // WHOLE) * WHOLE)


def cache_bytes(job: Job, reading: Reading) -> float:
    """The frozen lower blocks' output for every token of an epoch and of the dev split."""
    return (reading.tokens + reading.dev) * job.shape.width * job.products if job.frozen_blocks else 0.0


# ---- disk and time --------------------------------------------------------------------------------------------------


def disk(job: Job, reading: Reading) -> Bytes:
    """Bytes written: the finished model, two checkpoints (the old one goes when the new one is whole), the cache."""
    trained = float(sum(job.trained.values()))
    saved = 4.0 * trained if job.ranks else job.shape.stored_bytes * sum(job.shape.sizes.values())
    state = 4.0 * trained + moments_bytes(job) + (4.0 * trained if job.keeps_best else 0.0)
    found: Bytes = {"model": saved, "checkpoints": 2 * state}
    if job.cache == "disk":
        found["prefix cache"] = cache_bytes(job, reading)
    return found


def operations(job: Job, reading: Reading, *, cached: bool = False) -> float:
    """Operations of an epoch's matrix products, multiply and add counted apart, as `flops.count` counts a row's.

    cached: with the frozen lower blocks' output read back.
    """
    shape = job.shape
    total = 0.0
    depth = shape.anatomy.depth
    for index, layers in enumerate(shape.blocks):
        learns = index >= job.frozen_blocks
        if cached and not learns:
            continue
        last = index == depth - 1
        # embeddings or a norm that train need the gradient of what the block's first layers read
        before = (job.frozen_blocks == 0 and not job.ranks) or any(
            f".{index}." in name and ("norm" in name or "ln_" in name) for name in job.trained
        )
        for name, sides in layers.items():
            reads_input = name.endswith(("q_proj", "k_proj", "v_proj", "c_attn"))
            for_all = not last or name.endswith(("k_proj", "v_proj", "c_attn"))
            tokens = reading.tokens if for_all else reading.targets
            passes_on = learns and (index > job.frozen_blocks or before or not reads_input)
            trains = not job.ranks and f"{name}.weight" in job.trained
            total += tokens * 2.0 * prod(sides) * (1 + passes_on + trains)
            rank = job.ranks.get(name, 0)
            total += tokens * 2.0 * rank * (sides[0] * (2 + passes_on) + sides[1] * 3)
        asked = reading.targets if last else reading.tokens
        total += 4.0 * shape.queries * asked * reading.length / 2 * (3 if learns else 1)
    below = bool(job.trained.keys() - {f"{shape.anatomy.head}.weight"})
    return total + reading.targets * 2.0 * shape.vocabulary * shape.width * (1 + below + job.trains_head)


def seconds(job: Job, reading: Reading, machine: Machine) -> float | None:
    """Time of the whole step; None on a machine whose speed in this type is not known."""
    peak = machine.peaks.get(job.precision)
    if peak is None:
        return None
    share = machine.share_reached(work_name(job), job.shape.width) or typical_share(job.shape.width)
    first = operations(job, reading)
    later = operations(job, reading, cached=job.cache != "off" and job.frozen_blocks > 0)
    total = min(1.0, reading.epochs) * first + max(0.0, reading.epochs - 1) * later
    dev = reading.dev / max(1.0, reading.tokens) * first / 3 * (1 + reading.epochs)
    steps = reading.windows * reading.epochs * sum(job.trained.values()) * OPTIMIZER_TRAFFIC / BANDWIDTH[job.device]
    start = START_SECONDS + job.shape.stored_bytes * sum(job.shape.sizes.values()) / 1e9
    return start + (total + dev) / (peak * share) + steps


def work_name(job: Job) -> str:
    """What a share of the peak was reached by: `bf16`, `bf16+int8`."""
    return job.precision if job.quantize is None else f"{job.precision}+{job.quantize}"


def typical_share(width: int) -> float:
    """The share of the peak that training reaches at a width, between the rows of TYPICAL by its logarithm."""
    if width <= TYPICAL[0][0]:
        return TYPICAL[0][1]
    for (low, share), (high, more) in pairwise(TYPICAL):
        if width <= high:
            return share + (more - share) * log(width / low) / log(high / low)
    return TYPICAL[-1][1]


def estimate(job: Job, reading: Reading, machine: Machine) -> Estimate:
    """All three."""
    return Estimate(memory(job, reading), disk(job, reading), seconds(job, reading, machine), reading.about)


# ---- fitting --------------------------------------------------------------------------------------------------------


def fitting_micro_tokens(job: Job, reading: Reading, memory_bytes: float) -> int:
    """The largest multiple of 128 tokens a micro-step that fits in `memory_bytes` with a margin: 128 at least.

    What holds at the end (gradients beside moments) does not depend on it; where even 128 tokens are too many,
    `refuse_if_too_big` says so.
    """
    for micro in range(LARGEST[job.device], WHOLE, -WHOLE):
        if _needed(job, with_micro(reading, micro)) <= MARGIN * memory_bytes:
            return micro
    return WHOLE


def with_micro(reading: Reading, micro: float) -> Reading:
    """The same windows, cut into micro-steps of that many tokens."""
    window = reading.micro * reading.per_window
    micro = min(micro, window)
    return replace(reading, micro=float(micro), per_window=max(1.0, window / micro), dev_micro=min(reading.dev, micro))


def refuse_if_too_big(job: Job, reading: Reading, memory_bytes: float) -> None:
    """Raise InputError where a step needs more memory than there is, with the three cheapest changes that would do.

    memory_bytes: what the process can hold in all. Guessed readings are let pass: the run looks again when it knows.
    """
    needed = _needed(job, reading)
    if needed <= memory_bytes or reading.about:
        return
    parts = sorted(memory(job, reading).items(), key=lambda part: -part[1])[:3]
    fitting = [text for text, other, read in changes(job, reading) if _needed(other, read) <= memory_bytes][:3]
    raise InputError(
        f"too little memory: this step needs about {needed / 1e9:.1f} GB, and {memory_bytes / 1e9:.1f} GB are free",
        value=", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts),
        cure="; or ".join(fitting) if fitting else "use a smaller model or a larger machine: no setting makes it fit",
    )


def changes(job: Job, reading: Reading) -> Iterator[tuple[str, Job, Reading]]:
    """What would make a step smaller, the change that costs the least first, each in words and applied."""
    for micro in (1024, 512, 256):
        if reading.micro > micro:
            smaller = with_micro(reading, micro)
            yield f"micro_batch: {micro} (same result, about as fast)", job, smaller
            break
    small = with_micro(reading, 256) if reading.micro > 256 else reading
    if not job.checkpointing:
        checked = replace(job, checkpointing=True)
        yield "gradient_checkpointing: true (same result, a third slower)", checked, reading
        yield "gradient_checkpointing: true with micro_batch: 256", checked, small
    lora = LoraMethod.model_validate({"lora": {"r": 16}})
    if job.ranks:
        for kind, cost in (("int8", "as fast or faster"), ("8bit", "slower"), ("4bit", "slower")):
            if job.quantize is None or QUANTIZED_BYTES[kind] < QUANTIZED_BYTES[job.quantize]:
                text = f"quantize: {kind} ({cost}, a rounded base) with micro_batch: 256"
                yield text, replace(job, quantize=kind, checkpointing=True), small  # type: ignore[arg-type]
        return
    if job.optimizer == "adamw" and job.device == "cuda":
        yield "optimizer: adamw8bit", replace(job, optimizer="adamw8bit"), reading
    adapted = replace(job, method=lora, optimizer="adamw", cache="off")
    yield "method: {lora: {r: 16}} (trains an adapter instead)", adapted, reading
    yield "method: {lora: {r: 16}} with micro_batch: 256", adapted, small
    yield "method: {lora: {r: 16}} with quantize: 4bit and micro_batch: 256", replace(adapted, quantize="4bit"), small


def _needed(job: Job, reading: Reading) -> float:
    return sum(memory(job, reading).values())
