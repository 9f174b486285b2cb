"""What a training step will take in memory, disk and time, from config.json and the settings alone. No torch.

A stage becomes a `Job` and a `Reading` (`described`), and `costs` says what these take. Here is also what follows from
it: `micro_batch: auto`, where the frozen blocks' output is kept, and the refusal of a step that does not fit, with what
would. `benchmarks/estimates.py` holds the two figures beside what was measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from metier.core.errors import InputError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Source
from metier.models.builtin import CONFIG, base_link, follow, is_adapter, read_json
from metier.models.extension import read_extension
from metier.train.costs import BASE, QUANTIZED_BYTES, UNPACKED, WHOLE, cache_bytes, disk, memory, seconds, work_name
from metier.train.methods import LoraMethod, trains_new_rows
from metier.train.reading import model_folder, reading_of
from metier.train.sizes import SHORT_TYPES_FROM, Job, Reading, Shape, Type

if TYPE_CHECKING:
    from metier.train.stage import Training

LARGEST = {"cpu": 2048, "cuda": 16_384}
"""The largest micro-step that `micro_batch: auto` takes: more is not faster."""
MARGIN = 0.85
"""The share of the free memory that `micro_batch: auto` plans to use: what the estimates may be off."""
USUAL_NEW_ROWS = 2000
"""What `extend_tokenizer` adds at most, where it is not told."""
NVIDIA = Path("/proc/driver/nvidia/version")


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
    told: dict[str, dict[str, Any]] = {"peaks": {precision: peak}}
    if quantize not in UNPACKED["cpu"]:  # where unpacking takes a part that depends on the micro-step
        told["reached"] = {work_name(precision, quantize): {str(width): round(utilisation, 4)}}
    return told


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
        new_rows=_new_rows(stage, folder),
        teacher_bytes=_teacher_bytes(stage, sources, machine),
        shards=machine.processes if stage.shard else 1,
    )
    job = replace(job, cache=_cache(stage, job, read, machine))
    wanted = stage.micro_batch
    if wanted == "auto":
        wanted = fitting_micro_tokens(job, read, machine.memory_bytes)
    return job, read if wanted is None else with_micro(read, min(wanted, read.tokens))


def _new_rows(stage: "Training", folder: Path) -> int:
    """How many rows train apart; those of a step that has not run are guessed."""
    if not trains_new_rows(stage.method):
        return 0
    extension = read_extension(folder)
    return USUAL_NEW_ROWS if extension is None else extension.count


def _teacher_bytes(stage: "Training", sources: Mapping[str, Source], machine: Machine) -> float:
    """What a teacher's weights take in the type of the products; 0 where there is none, or it is not known."""
    folder = None if stage.teacher is None else model_folder(sources[stage.teacher])
    shape = None if folder is None else Shape.of(read_json(_plain(folder) / CONFIG))
    if shape is None:
        return 0.0
    return sum(shape.sizes.values()) * (4.0 if precision_of(stage.precision, shape.width, machine) == "fp32" else 2.0)


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


def estimate(job: Job, reading: Reading, machine: Machine) -> Estimate:
    """All three."""
    note = (
        f"{reading.tokens:,.0f} tokens of a stream are read; how many it holds is not known beforehand, and none go to "
        "the disk"
        if reading.stream
        else ""
    )
    return Estimate(memory(job, reading), disk(job, reading), seconds(job, reading, machine), reading.about, note)


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


LESS = 0.9
"""What a change may need of the memory that ran out, to be worth a try."""


def cheaper(stage: "Training", sources: Mapping[str, Source], machine: Machine) -> str:
    """What to do where memory ran out on one sample: the three cheapest changes that would take clearly less."""
    shorter = f"a smaller {stage.length_field} (longer ones are cut)"
    found = described(stage, sources, machine)
    if found is None:
        return f"gradient_checkpointing: true; or {shorter}; or method: {{lora: {{r: 16}}}}"
    job, reading = found
    reading = with_micro(reading, min(reading.micro, stage.length(job.shape.context)))
    needed = _needed(job, reading) - BASE
    enough: list[str] = []
    for text, other, read in changes(job, reading):
        plain = text.replace(" with micro_batch: 256", "").replace(" and micro_batch: 256", "")
        same = plain.startswith(("gradient_checkpointing: true", "micro_batch"))
        if plain.startswith("micro_batch") or (same and any("gradient_checkpointing" in one for one in enough)):
            continue
        if plain not in enough and _needed(other, read) - BASE <= LESS * needed:
            enough.append(plain)
    enough.insert(min(2, len(enough)), shorter)
    return "; or ".join(enough[:3])


def _needed(job: Job, reading: Reading) -> float:
    return sum(memory(job, reading).values())
