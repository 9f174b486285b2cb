"""One training step from beginning to end: encode, load, choose parameters, fit, save, write down.

Data is encoded, and found wanting, before any weight is loaded. Costs what `loop` says, plus the frozen weights: in the
type of the products, so 2 bytes each in bf16, or quantised.
"""

import gc
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metier.core.errors import ModelError
from metier.core.fingerprint import Json, digest, file_digest, tree
from metier.core.machine import Machine, free_memory
from metier.core.measure import PeakMemory, Stopwatch, versions
from metier.core.stage import Context, identity
from metier.models.adapter import merge
from metier.models.builtin import is_adapter, plain_config
from metier.models.extension import read_extension
from metier.models.load import load, read_tokenizer, stored_dtype
from metier.models.new_rows import new_rows
from metier.models.quantized import as_linear, mark, quantized
from metier.models.save import save_adapter, save_model
from metier.models.shape import Parameters, cast_, count_parameters, input_embeddings, is_tied, output_head
from metier.models.stream import Convert, convert_, give_back, load_converted
from metier.text.artifacts import write_json, write_jsonl
from metier.train.batches import Batches, Ids, digest_of, micros, shared_prefix
from metier.train.checkpoint import EVERY_SECONDS, Checkpoints
from metier.train.course import Course, State, Watch
from metier.train.estimate import cheaper, check_memory, micro_tokens
from metier.train.forward import Forward, check_exact, frozen_blocks
from metier.train.int8 import Int8Linear
from metier.train.known import SAME_VOCABULARY, check_teacher, context_of
from metier.train.loop import fit
from metier.train.material import Material
from metier.train.memory import returned_memory
from metier.train.methods import FreezeMethod, LoraMethod, Quantize, apply, name_of
from metier.train.precision import Precision, best_device, choose
from metier.train.prefix_cache import ROW, Kind, PrefixCache, decide, layout_of, room_for
from metier.train.scarce import MemoryRanOut, ran_out
from metier.train.schedule import DECAY
from metier.train.sharded import shard, whole
from metier.train.stage import Training
from metier.train.streams import Streams
from metier.train.telling import Chosen, write_about, write_measured
from metier.train.together import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHOSEN, CACHE = "chosen.json", "cache.json"
ROOMS = ("train", "models", "text")
"""The packages whose code decides what a training step makes."""


def train(stage: Training, ctx: Context) -> Mapping[str, float]:
    """Run the stage: its model folder goes to `ctx.out`. Returns the headline metrics.

    Raises MemoryRanOut, with what would take less, where it did for one sample or before any was read.
    """
    try:
        return _train(stage, ctx)
    except MemoryRanOut as error:
        error.cure = cheaper(stage, ctx.sources, machine_for(choose_once(stage, ctx).precision, World.of(ctx.team)))
        raise
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        cure = cheaper(stage, ctx.sources, Machine.here())
        raise MemoryRanOut("memory ran out beside the samples", value=str(error), cure=cure) from error


def _train(stage: Training, ctx: Context) -> Mapping[str, float]:
    watch = Stopwatch()
    folder = ctx.source(stage.model).path
    stage.check_machine()
    stage.check_model(folder)
    config = plain_config(folder)
    length, width = stage.length(context_of(config)), _width(config)
    tokenizer = read_tokenizer(folder)
    material = stage.material(tokenizer, length, ctx)
    if not material.dev:
        stage.refuse_without_dev()
    extension = read_extension(folder)
    if stage.method == "rows" and extension is not None and not extension.count:
        return _nothing_new(stage, ctx, folder, tokenizer)
    world = World.of(ctx.team, 1 if stage.micro_batch is not None else stage.accumulation, sharded=stage.shard)
    chosen = world.in_turn(lambda: choose_once(stage, ctx))
    precision = chosen.precision
    check_memory(stage, ctx.sources, machine_for(precision, world))
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        model = load_base(stage, folder, precision, whole=not world.sharded)
        adapted, parameters = apply(model, stage.method, seed=stage.seed, extension=extension)
        if isinstance(stage.method, FreezeMethod):
            cast_((p for p in model.parameters() if p.requires_grad), torch.float32)
            cast_((p for p in model.parameters() if not p.requires_grad), precision.dtype)
        if not world.sharded or precision.device.type == "cpu":  # else it is not there yet
            check_exact(model, material.pieces if material.stream is None else material.stream.some(), precision)
        _announce(stage, ctx, model, parameters, precision)
        _announce_processes(stage, ctx, model, world)
        if world.sharded:
            shard(model, precision)
            gc.collect()  # the whole weights stand in cycles
            give_back()
        state = _fit(stage, ctx, model, material, chosen, length, world)
        if world.sharded:
            model = whole(model, load_base(stage, folder, precision, whole=False) if world.first else None)
        if not world.first:
            return {}
        if isinstance(stage.method, LoraMethod):
            save_adapter(adapted.eval(), tokenizer, ctx.out, base=ctx.source(stage.model).link)
        elif stage.method == "rows":
            _save_rows(folder, ctx, model, tokenizer, stop=stage.stop(tokenizer))
        else:
            _save_whole(stage, ctx, model, tokenizer)
    write_about(stage, ctx, material, parameters, state, length)
    write_measured(stage, ctx, state, seconds=watch.seconds, peak=memory.peak_bytes, chosen=chosen, width=width)
    tail = state.losses[-max(1, len(state.losses) // 10) :]
    metrics: dict[str, float] = {
        "loss": sum(tail) / len(tail),
        "steps": state.step,
        "tokens": state.tokens,
        "trained_parameters": parameters.trained,
        "total_parameters": parameters.total,
    }
    if state.best_loss is not None:
        metrics["dev_loss"] = state.best_loss if stage.keeps_best else state.dev_losses[-1]
    return metrics


def choose_once(stage: Training, ctx: Context) -> Chosen:
    """What the machine is to decide, decided when the step first starts: whoever resumes it goes on with the same."""
    path = ctx.scratch / CHOSEN
    width = _width(plain_config(ctx.source(stage.model).path))
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        precision = replace(choose(kept["precision"], width=width, device=best_device()), why=kept["why"])
        return Chosen(precision, kept["micro_tokens"])
    precision = choose(stage.precision, width=width, device=best_device())
    wanted = stage.micro_batch
    machine = machine_for(precision, World.of(ctx.team))
    chosen = Chosen(precision, micro_tokens(stage, ctx.sources, machine) if wanted == "auto" else wanted)
    write_json(
        path,
        {
            "precision": chosen.precision.name,
            "why": chosen.precision.why,
            "micro_tokens": chosen.micro_tokens,
        },
    )
    return chosen


def load_base(stage: Training, folder: Path, precision: Precision, *, whole: bool = True) -> "PreTrainedModel":
    """The model that is trained from, on its device; in this machine's memory where that is not to hold it `whole`.

    An adapter is merged in float32. Below a LoRA and new rows all weights are then held in the type of the products, or
    quantised as they are read. For freeze they come as they are stored, as what trains must start from exactly that.
    """
    frozen = isinstance(stage.method, LoraMethod) or stage.method == "rows"
    held = precision.dtype if frozen else torch.float32
    if is_adapter(folder):
        model = merge(load(folder, dtype=torch.float32))
        cast_(model.parameters(), held)
        if stage.quantize is not None:
            convert_(model, converter(stage.quantize, precision.dtype))
    elif stage.quantize is not None:
        convert = converter(stage.quantize, precision.dtype)
        with returned_memory():  # each layer stands in several forms for a moment
            model = load_converted(folder, convert, dtype=held, device=precision.device)
    else:
        model = load(folder, dtype=stored_dtype(folder) if isinstance(stage.method, FreezeMethod) else held).model
    if stage.quantize in ("8bit", "4bit"):
        mark(model, stage.quantize)
    return model.to(precision.device) if whole else model


def _teacher(
    stage: Training, ctx: Context, model: "PreTrainedModel", precision: Precision, prefix: Ids | None
) -> tuple[Forward, float] | None:
    """The teacher's forward pass, all of it frozen, and its share of the loss. Raises ModelError for other tokens."""
    if stage.teacher is None:
        return None
    folder = ctx.source(stage.teacher).path
    check_teacher(ctx.source(stage.model).path, folder)
    known, own = read_tokenizer(folder).get_vocab(), read_tokenizer(ctx.source(stage.model).path).get_vocab()
    plain = (
        merge(load(folder, dtype=torch.float32)) if is_adapter(folder) else load(folder, dtype=precision.dtype).model
    )
    rows = [len(input_embeddings(one).weight) for one in (plain, model)]
    if known != own or rows[0] != rows[1]:
        raise ModelError(
            "the teacher's tokens are not the model's", where="teacher", value=stage.teacher, cure=SAME_VOCABULARY
        )
    cast_(plain.parameters(), precision.dtype)
    plain.requires_grad_(False)
    return Forward(plain.to(precision.device).eval(), precision=precision, prefix=prefix), stage.teacher_weight


def converter(quantize: Quantize, compute: torch.dtype) -> Convert:
    """What makes a quantised layer of a linear one. compute: the type of bitsandbytes' products."""
    if quantize == "int8":
        return _to_int8
    return partial(quantized, kind=quantize, compute=compute)


def _to_int8(layer: nn.Module) -> nn.Module:
    return Int8Linear(as_linear(layer))


def machine_for(precision: Precision, world: World) -> Machine:
    """This machine with the memory that a process may take now, on the device that training will run on."""
    device = precision.device
    cuda = device.type == "cuda"  # each process has a GPU for itself
    free = float(torch.cuda.mem_get_info(device)[0]) if cuda else free_memory() / world.local_size
    return Machine(free, device.type, precision.name, processes=world.size)


def _width(config: Mapping[str, Any]) -> int:
    return int(config["hidden_size"] if "hidden_size" in config else config["n_embd"])


def _announce(
    stage: Training, ctx: Context, model: "PreTrainedModel", parameters: Parameters, precision: Precision
) -> None:
    base = f"; base in {stage.quantize}" if stage.quantize else ""
    ctx.events.note(
        f"method {name_of(stage.method)}: {parameters.trained:,} of {parameters.total:,} parameters train "
        f"({parameters.share:.2%}); {precision.name}, {precision.why}{base}"
    )
    if isinstance(stage.method, FreezeMethod) and stage.method.freeze.head and is_tied(model):
        ctx.events.note(
            "the output head is tied to the input embeddings, so these train too and gradients go through every "
            "block; head: false is faster"
        )


def _announce_processes(stage: Training, ctx: Context, model: "PreTrainedModel", world: World) -> None:
    if world.alone:
        if stage.shard:
            ctx.events.note("shard has no effect with one process: run with --processes, or under torchrun")
        return
    ctx.events.note(f"{world.size} processes train together, {world.local_size} of them on this machine")
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if not world.whole and (drops or stage.neftune is not None):
        ctx.events.note(
            "micro-steps are cut for the processes, so that dropout or noise draws other numbers than with one: with "
            f"an accumulation that is a multiple of {world.size} and no micro_batch it would draw the same"
        )


def _fit(
    stage: Training,
    ctx: Context,
    model: "PreTrainedModel",
    material: Material,
    chosen: Chosen,
    length: int,
    world: World,
) -> State:
    steps = stage.most_steps(length)
    batches: Batches | Streams = stage.batches(material, chosen.micro_tokens)
    if material.stream is not None:
        assert steps is not None, "looked at before"
        sizes = stage.batch_size, stage.accumulation, chosen.micro_tokens
        batches = Streams(material.stream, steps, *sizes, world, ctx.events, ctx.check_stop)
    course = Course(
        epochs=stage.epochs,
        max_steps=steps,
        optimizer=stage.optimizer,
        learning_rate=stage.peak_rate,
        schedule=stage.schedule,
        warmup=stage.warmup,
        decay=DECAY if stage.decay is None else stage.decay,
        min_learning_rate=stage.min_learning_rate,
        weight_decay=stage.weight_decay,
        clip=stage.clip,
        seed=stage.seed,
    )
    micro = chosen.micro_tokens or stage.batch_size * length
    watch = Watch(
        dev=micros(material.dev, micro),
        every=stage.dev_every,
        log_every=stage.log_every,
        keep_best=stage.keeps_best,
        patience=stage.patience,
        most=stage.most_loss,
    )
    prefix = shared_prefix((*material.pieces, *material.retain))
    forward = Forward(
        model,
        precision=chosen.precision,
        prefix=prefix,
        cache=_prefix_cache(stage, ctx, model, material, prefix, micro, world),
        label_smoothing=stage.label_smoothing,
        neftune=stage.neftune,
        checkpointing=stage.gradient_checkpointing,
        teacher=_teacher(stage, ctx, model, chosen.precision, prefix),
        sharded=world.sharded,
    )
    objective = stage.objective(forward, material, micro, ctx.check_stop)
    return fit(
        model,
        forward,
        batches,
        course=course,
        watch=watch,
        precision=chosen.precision,
        events=ctx.events,
        check_stop=ctx.check_stop,
        checkpoints=Checkpoints(
            ctx.scratch,
            every_seconds=float(os.environ.get("METIER_CHECKPOINT_SECONDS", EVERY_SECONDS)),
            made_from=made_from(stage, ctx, material, chosen),
            warn=ctx.events.warning,
        ),
        objective=objective,
        world=world,
    )


def made_from(stage: Training, ctx: Context, material: Material, chosen: Chosen) -> dict[str, Json]:
    """What the run's state depends on: the settings, the tokens that are read, the code and the machine."""
    read = {"train": material.pieces, "replay": material.replay, "refusals": material.refusals, "dev": material.dev}
    read |= {"retain": material.retain} if material.retain else {}
    stream = {} if material.stream is None else {"stream": material.stream.corpus.identity()}
    shares = {"replay": material.replay_share, "refusals": material.refusal_share, "domains": list(material.domains)}
    return {
        "config": identity(stage, lambda reference: ctx.source(reference.value).digest),
        "data": {**{name: digest_of(pieces) for name, pieces in read.items()}, "shares": shares, **stream},
        "code": {"source": _code(), **versions()},
        "machine": {
            "device": chosen.precision.device.type,
            "precision": chosen.precision.name,
            "micro_tokens": chosen.micro_tokens,
            "threads": torch.get_num_threads(),
            **({"processes": ctx.team.size} if ctx.team is not None else {}),
        },
    }


@cache
def _code() -> str:
    """One digest of the modules that decide what comes out."""
    package = Path(__file__).parents[1]
    return digest(
        {f"{room}/{n}": file_digest(p) for room in ROOMS for n, p in tree(package / room).items() if p.suffix == ".py"}
    )


def _prefix_cache(
    stage: Training,
    ctx: Context,
    model: "PreTrainedModel",
    material: Material,
    prefix: Ids | None,
    micro: int,
    world: World,
) -> PrefixCache | None:
    """Where the output of the frozen lower blocks is kept, if any are and it is read more than once.

    Whether it is kept at all changes the last bits, so what `auto` means is decided when the step first starts.
    """
    below = frozen_blocks(model)
    if below == 0 or stage.epochs == 1 or stage.neftune is not None or stage.prefix_cache == "off":
        return None
    embeddings = input_embeddings(model).weight
    pieces = (*material.pieces, *material.dev, *material.replay, *material.refusals, *material.retain)
    tokens, width, dtype = room_for(pieces, prefix), embeddings.shape[1], embeddings.dtype

    def decided() -> Kind:
        path, kind = ctx.scratch / CACHE, stage.prefix_cache
        if kind == "auto" and path.is_file():
            kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
        kind = decide(kind, tokens=tokens, width=width, dtype=dtype, folder=ctx.scratch)
        write_json(path, {"kind": kind})
        return kind

    kind = world.decide(decided)
    kept = "not kept: it would take" if kind == "off" else "computed once and kept:"
    size = tokens * width * dtype.itemsize
    ctx.events.note(f"the output of the {below} lowest blocks, which are frozen, is {kept} {size / 1e9:.2f} GB")
    if kind == "off":
        return None
    layout = layout_of(pieces, prefix, min(ROW, micro))
    folder = None
    if kind == "disk":
        folder = ctx.scratch if world.first else ctx.scratch / f"process-{world.rank}"
        folder.mkdir(exist_ok=True)
    return PrefixCache(tokens, width, dtype, folder, layout=layout, prefix=prefix)


def _save_whole(stage: Training, ctx: Context, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Whole weights are written in the type that the base's are in, frozen ones with the bits that they had there."""
    folder = ctx.source(stage.model).path
    stored = stored_dtype(folder)
    held = {p.dtype for p in model.parameters() if not p.requires_grad}
    if held - {torch.float32, stored}:
        trained = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
        model = merge(load(folder, dtype=torch.float32))
        _put(model, trained)
    save_model(model.eval().to(stored), tokenizer, ctx.out, stop=stage.stop(tokenizer))


def _nothing_new(stage: Training, ctx: Context, folder: Path, tokenizer: "PreTrainedTokenizerFast") -> dict[str, float]:
    """What `method: rows` makes of a model that `extend_tokenizer` passed through: the same model."""
    ctx.events.note("the model was passed through by extend_tokenizer, so there are no new rows to train: it stays")
    stored = stored_dtype(folder)
    model = merge(load(folder)).to(stored) if is_adapter(folder) else load(folder, dtype=stored).model
    total = count_parameters(model).total
    save_model(model.eval(), tokenizer, ctx.out, stop=stage.stop(tokenizer))
    write_jsonl(ctx.out / "train.jsonl", [])
    told = {"method": "rows", "parameters": {"trained": 0, "total": total}, "steps": 0, "tokens_seen": 0}
    write_json(ctx.out / "about.json", told)
    return {"steps": 0, "tokens": 0, "trained_parameters": 0, "total_parameters": total}


def _save_rows(
    folder: Path,
    ctx: Context,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    *,
    stop: frozenset[int],
) -> None:
    """The base with the bits that it has on disk, and the trained rows in it."""
    found = [new_rows(model.get_input_embeddings()), new_rows(model.get_output_embeddings())]
    stored = stored_dtype(folder)
    base = merge(load(folder)).to(stored) if is_adapter(folder) else load(folder, dtype=stored).model
    with torch.no_grad():
        for fresh, matrix in zip(found, (input_embeddings(base).weight, output_head(base).weight), strict=True):
            assert fresh is not None
            fresh.into(matrix.data)
    save_model(base.eval(), tokenizer, ctx.out, stop=stop)


def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
