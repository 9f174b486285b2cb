"""What a training job takes, by arithmetic alone: bytes of memory at each moment, bytes on disk, operations, seconds.

Takes a `Job` and a `Reading` (`sizes`) and knows nothing of stages; `estimate` makes the two of a stage and refuses by
what is found here. Memory is the largest of a few moments (`moments`), each a sum of named parts. What a block keeps
for the backward pass is counted from the code in `fast`: the table `KEPT` says how many numbers a token leaves there.
Everything else follows from how many parameters there are and in which type each is held. No torch.

    residual     the stream between blocks: float32 where the embeddings are held so, else the type of the products
    products     the type that matrices are multiplied in: 4 bytes in fp32, 2 in bf16 and fp16

Time is operations / (speed of large products x the share of it that is reached). Operations are counted as in `flops`:
each matrix twice its size a token forward, as much for the gradient to its input and, where it trains, to itself.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import log, prod

from metier.core.machine import Machine
from metier.train.methods import FreezeMethod, LoraMethod
from metier.train.sizes import Job, Reading, block_of

Bytes = dict[str, float]

BASE = 480e6
"""A process with Python, torch, transformers, the kernels and what the allocator keeps in reserve (64 MB)."""
BASE_BY_NEED = {"peft": 170e6, "bitsandbytes": 30e6, "muon": 20e6}
"""More for what only some settings need: libraries, and with bitsandbytes the scratch memory of its conversions (31 MB
more was measured after the first layer of 2048 x 5632)."""
BASE_ON_GPU = 600e6
"""What a CUDA context and its libraries hold of the GPU's memory, beside what torch counts as its own."""
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
ON_GPU = 2**28
"""Scores that exist at once on a GPU (`head`)."""
SHORT = 640
"""Up to this many keys attention goes in strips on a CPU, which copies queries, keys and values (`strips`)."""
DROPPED = 13.0
"""Bytes that torch's kernel keeps of each weight with dropout on a CPU, where it has no form that spares them."""
PADDED = 1.12
"""Places of attention's buckets over tokens, where pieces differ in length."""
HOLES = 0.15
"""Of what a micro-step keeps: freed memory that the next one, with rows of other lengths, does not fit into."""
WHOLE = 128
"""Rows are filled up to a multiple of it."""
OPTIMIZER_TRAFFIC = 28.0
"""Bytes that AdamW moves for each trained parameter and step: 16 read, 12 written."""
BANDWIDTH = {"cpu": 10e9, "cuda": 1000e9}
"""Bytes a second through memory, as two server cores and a data-centre GPU have."""
UNPACKED = {"cpu": {"8bit": 1e9, "4bit": 7e9}, "cuda": {"8bit": 150e9, "4bit": 150e9}}
"""Weights a second that bitsandbytes' bases turn into the type of the products, anew for each product."""
PACKED = {"cpu": {"8bit": 0.2e9, "4bit": 0.046e9, "int8": 0.65e9}, "cuda": {"8bit": 5e9, "4bit": 5e9, "int8": 5e9}}
"""Weights a second that are quantised while they are loaded."""
START_SECONDS = 5.0
"""Importing libraries and encoding; weights are read at about a gigabyte a second."""
TYPICAL = ((64, 0.02), (256, 0.12), (512, 0.25), (1024, 0.4), (2048, 0.55))
"""Width and the share of the peak that training reaches there, on two cores in bf16, where none was measured."""
KEPT_OF_INT8 = 0.6
"""The part of what int8 products gain that a whole step keeps: attention and adapters stay as they are."""


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
    # DoRA: besides, every layer's output. Gate, up and what GELU reads are kept already
    ("llama", "dora"): Kept(2, 2, 3, 4, 2, 7, (1, 0, 4)),
    ("gpt2", "dora"): Kept(2, 2, 3, 4, 1, 4, (1, 0, 4)),
    # attention takes queries, keys and values as they lie in the output
    ("gpt2", "dora, long"): Kept(2, 2, 2, 2, 1, 4, (1, 0, 2)),
    # through PEFT's own modules (DoRA with dropout): besides, every layer keeps what it reads and both of its outputs.
    # Measured in bf16: 0.98 to 0.99 of what is kept, in fp32 0.94 to 1.11
    ("llama", "modules"): Kept(2, 9, 5, 6, 7, 7, (1, 1, 6)),
    ("gpt2", "modules"): Kept(2, 8, 3, 6, 4, 4, (1, 1, 6)),
}
"""By architecture and by how its layers are computed. With checkpointing only each block's input is kept."""


# ---- parameters -----------------------------------------------------------------------------------------------------


def weights(job: Job) -> float:
    """Bytes of the model's own weights as they are held while training."""
    total = 0.0
    for name, size in job.shape.sizes.items():
        layer, _, kind = name.rpartition(".")
        if job.quantize and layer in job.shape.anatomy.linear and kind == "weight":
            total += size * QUANTIZED_BYTES[job.quantize] + 4 * job.shape.anatomy.linear[layer][1]
        else:
            total += size * (4.0 if name in job.trained and not job.adapts else job.products)
    if job.int8_head:
        held = 0.0 if job.shape.anatomy.tied else job.products
        total += job.shape.vocabulary * (job.shape.width * (1.0 - held) + 4.0)
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
    trained = float(sum(job.trained.values())) / job.shards
    fixed: Bytes = {"base": base(job), "weights": weights(job) / job.shards}
    if reading.stream:
        fixed["stream"] = reading.stream
    elif job.device == "cpu":
        fixed["data"] = 6.0 * reading.tokens + 700.0 * reading.pieces
    if job.adapts:
        fixed["adapter"] = 4.0 * trained
    if job.teacher_bytes:
        fixed["teacher"] = job.teacher_bytes
    one_block = working(job, reading)
    if job.checkpointing:  # what is kept of the block that is computed again
        one_block += block_bytes(job, reading, rows_of(reading))
    passing = {"one block": one_block, "head": head_bytes(job, reading)}
    held: Bytes = {**fixed, "moments": moments_bytes(job) / job.shards}
    grown = {"gradients": 4.0 * trained}
    kept = {"activations": activations(job, reading), **dict([max(passing.items(), key=lambda part: part[1])])}
    training = {**held, **grown, **kept}
    if job.device == "cuda" and reading.per_window <= 1:  # what the ones leave is used for the others at once
        training = max(
            {**held, **kept}, {**held, **grown, "one block": one_block}, key=lambda parts: sum(parts.values())
        )
    if job.device == "cpu" and reading.per_window > 1 and job.quantize not in ("8bit", "4bit"):
        training["holes"] = HOLES * sum(kept.values())
    if job.optimizer == "muon":
        training["one update"] = UPDATE * max(prod(sides) for sides in job.shape.anatomy.linear.values())
    if job.keeps_best:
        training["best weights"] = 4.0 * trained
    if job.shards > 1:
        training["gathered units"] = gathered(job)
    if job.cache == "memory" and job.device == "cpu":
        training["prefix cache"] = cache_bytes(job, reading)
    dev_read = replace(reading, micro=reading.dev_micro)
    dev = {**fixed, "one block": working(job, dev_read), "head": chunk_bytes(job, reading.dev_micro)}
    found = {"loading": {**fixed, "base": base(job, at_start=True), **loading(job)}, "dev": dev, "training": training}
    read_again = (isinstance(job.method, FreezeMethod) and job.precision != "fp32") or job.method == "rows"
    if read_again and job.device == "cpu":
        whole = {"the model read again": 4.0 * sum(job.shape.sizes.values())}
        found["saving"] = {**fixed, **whole, **loading(job)}
    if job.shards > 1 and job.device != "cuda":  # whole before it is cut, and whole in process 0 when it is saved
        whole = {"the whole model": 4.0 * sum(job.shape.sizes.values())}
        found["loading"] = {"base": base(job), **whole, **loading(job)}
        found["saving"] = {**fixed, **whole, **loading(job)}
    return found


def gathered(job: Job) -> float:
    """What FSDP2 holds whole for a while: embeddings, and twice the larger of a block and the head, with a gradient
    each in the type of the products, and one in float32 on its way."""
    embeddings = float(job.shape.vocabulary * job.shape.width)
    block = max(sum(prod(sides) for sides in layers.values()) for layers in job.shape.blocks)
    largest = max(float(block), embeddings)
    return job.products * (2 * embeddings + 3 * largest) + 4.0 * largest


def base(job: Job, *, at_start: bool = False) -> float:
    """What a process holds beside the model. at_start: while weights are loaded, before adapters are put on them."""
    if job.device == "cuda":
        return BASE_ON_GPU
    needed = {
        "peft": job.adapts and not at_start,
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
    if job.way == "modules":  # PEFT keeps an identity matrix for each layer with DoRA
        out += sum(shape.anatomy.linear[name][0] ** 2 for name in job.ranks) * job.products
    if job.checkpointing:
        return out + learning * tokens * shape.width * job.residual
    return out + (learning - 1) * block_bytes(job, reading, tokens) + block_bytes(job, reading, tokens, asked=last)


def block_bytes(job: Job, reading: Reading, tokens: float, asked: float | None = None) -> float:
    """What one block keeps of `tokens` tokens. asked: the last block keeps most of it for so many tokens only."""
    shape, kept = job.shape, kept_of(job, reading)
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
    return tokens * every + (tokens if asked is None else asked) * rest


def kept_of(job: Job, reading: Reading) -> Kept:
    """The line of the table."""
    lies = job.shape.family == "gpt2" and (reading.length > SHORT or job.device == "cuda")
    return KEPT[job.shape.family, "dora, long" if job.way == "dora" and lies else job.way]


def working(job: Job, reading: Reading) -> float:
    """What one block holds only while it is computed: the MLP's parts and a matrix in the type of the products."""
    shape = job.shape
    matrix = max(prod(sides) for sides in shape.anatomy.linear.values()) * job.products
    if job.precision == "fp32" or (job.adapts and job.quantize in (None, "int8")):
        matrix = 0.0
    elif job.device == "cuda" and not job.adapts:
        matrix *= 3  # and its gradient, summed in float32
    a_token = (2 * shape.width * job.residual) + (shape.width + 4 * shape.inner) * job.products
    if job.quantize == "int8":  # what is summed before it is scaled
        a_token += 2 * shape.inner * 4.0
    if job.way == "dora":  # gradients times the gain: one in float32, and both in the type of the products
        a_token += shape.inner * (4.0 + 2 * job.products)
    return rows_of(reading) * a_token + matrix


def chunk_bytes(job: Job, targets: float) -> float:
    """One chunk of the scores of so many targets."""
    at_once = float(CHUNK_TRAINED if job.trains_head else CHUNK)
    if job.device == "cuda":
        at_once = min(max(CHUNK, ON_GPU // job.shape.vocabulary), targets)
    sums = 4.0 if job.int8_head else 0.0
    return at_once * job.shape.vocabulary * (job.products + sums)


def head_bytes(job: Job, reading: Reading) -> float:
    """The chunk of scores, the gradient to the hidden states, and what a trained head's gradient takes on its way."""
    matrix = float(job.shape.vocabulary * job.shape.width)
    targets = rows_of(reading) * min(1.0, reading.targets / reading.tokens)
    total = chunk_bytes(job, targets) + targets * job.shape.width * 2 * job.products
    if job.trains_head:
        total += matrix * (4.0 + (4.0 if job.device == "cuda" else job.products))
        if job.precision != "fp32":
            total += matrix * job.products
    if job.new_rows:
        total += matrix * job.products  # a copy with the new rows in it
    return total


def rows_of(reading: Reading) -> float:
    """Tokens of the largest micro-step's row."""
    return float(-(-reading.micro // WHOLE) * WHOLE)


def cache_bytes(job: Job, reading: Reading) -> float:
    """The frozen lower blocks' output for every token of an epoch and of the dev split."""
    return (reading.tokens + reading.dev) * job.shape.width * job.products if job.frozen_blocks else 0.0


# ---- disk and time --------------------------------------------------------------------------------------------------


def disk(job: Job, reading: Reading) -> Bytes:
    """Bytes written: the finished model, the cache, and four checkpoints, the most that there ever are: three kept
    while the next is written."""
    trained = float(sum(job.trained.values()))
    saved = 4.0 * trained if job.ranks else job.shape.stored_bytes * sum(job.shape.sizes.values())
    state = 4.0 * trained + moments_bytes(job) + (4.0 * trained if job.keeps_best else 0.0)
    found: Bytes = {"model": saved, "checkpoints": 4 * state}
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
        before = (job.frozen_blocks == 0 and (job.new_rows > 0 or not job.adapts)) or any(
            f".{index}." in name and ("norm" in name or "ln_" in name) for name in job.trained
        )
        for name, sides in layers.items():
            reads_input = name.endswith(("q_proj", "k_proj", "v_proj", "c_attn"))
            for_all = not last or name.endswith(("k_proj", "v_proj", "c_attn"))
            tokens = reading.tokens if for_all else reading.targets
            passes_on = learns and (index > job.frozen_blocks or before or not reads_input)
            trains = not job.adapts and f"{name}.weight" in job.trained
            total += tokens * 2.0 * prod(sides) * (1 + passes_on + trains)
            rank = job.ranks.get(name, 0)
            total += tokens * 2.0 * rank * (sides[0] * (2 + passes_on) + sides[1] * 3)
        asked = reading.targets if last else reading.tokens
        total += 4.0 * shape.queries * asked * reading.length / 2 * (3 if learns else 1)
    below = bool(job.trained.keys() - {f"{shape.anatomy.head}.weight"})
    total += reading.targets * 2.0 * job.new_rows * shape.width
    return total + reading.targets * 2.0 * shape.vocabulary * shape.width * (1 + below + job.trains_head)


def seconds(job: Job, reading: Reading, machine: Machine) -> float | None:
    """Time of the whole step; None on a machine whose speed in this type is not known."""
    peak = machine.peaks.get(job.precision)
    if peak is None:
        return None
    share = share_of_peak(job, machine)
    first = operations(job, reading)
    later = operations(job, reading, cached=job.cache != "off" and job.frozen_blocks > 0)
    total = min(1.0, reading.epochs) * first + max(0.0, reading.epochs - 1) * later
    dev = reading.dev / max(1.0, reading.tokens) * first / 3 * (1 + reading.epochs)
    steps = reading.windows * reading.epochs * sum(job.trained.values()) * OPTIMIZER_TRAFFIC / BANDWIDTH[job.device]
    start = START_SECONDS + job.shape.stored_bytes * sum(job.shape.sizes.values()) / 1e9
    return start + (total + dev) / (peak * share) + steps + packing_seconds(job, reading)


def packing_seconds(job: Job, reading: Reading) -> float:
    """What a quantised base takes beside its products: it is made once, and bitsandbytes' is unpacked for each
    micro-step, forward and backward.
    """
    if job.quantize is None:
        return 0.0
    packed = float(sum(prod(sides) for layers in job.shape.blocks for sides in layers.values()))
    once = packed / PACKED[job.device][job.quantize]
    if job.quantize == "int8":
        return once
    passes = reading.windows * reading.epochs * reading.per_window * (3 if job.checkpointing else 2)
    passes += reading.dev / max(1.0, reading.dev_micro) * (1 + reading.epochs)
    return once + passes * packed / UNPACKED[job.device][job.quantize]


def work_name(precision: str, quantize: str | None) -> str:
    """What a share of the peak is reached by: `bf16`, `bf16+int8`. bitsandbytes' bases multiply like any other."""
    return f"{precision}+int8" if quantize == "int8" else precision


def share_of_peak(job: Job, machine: Machine) -> float:
    """What training reaches of the peak of its type: as it was measured near that width, or what is typical."""
    known = machine.share_reached(work_name(job.precision, job.quantize), job.shape.width)
    if known is not None:
        return known
    share = typical_share(job.shape.width)
    own, int8 = machine.peaks.get(job.precision), machine.peaks.get("int8")
    if job.quantize == "int8" and own and int8:
        share *= 1 + KEPT_OF_INT8 * max(0.0, int8 / own - 1)
    return share


def typical_share(width: int) -> float:
    """The share of the peak that training reaches at a width, between the rows of TYPICAL by its logarithm."""
    if width <= TYPICAL[0][0]:
        return TYPICAL[0][1]
    for (low, share), (high, more) in pairwise(TYPICAL):
        if width <= high:
            return share + (more - share) * log(width / low) / log(high / low)
    return TYPICAL[-1][1]
