"""One training step from beginning to end: encode, load, choose parameters, fit, save, write down.

Data is encoded, and found wanting, before any weight is loaded. Costs what `loop` says, plus the frozen weights.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from metier.core.measure import PeakMemory, Stopwatch
from metier.core.stage import Context
from metier.models.adapter import merge
from metier.models.load import load, read_tokenizer, stored_dtype
from metier.models.save import save_adapter, save_model
from metier.models.shape import Parameters, is_tied
from metier.text.artifacts import write_json, write_jsonl
from metier.train.batches import Batches, micros, size_of
from metier.train.checkpoint import Checkpoints
from metier.train.loop import State, fit
from metier.train.material import Material
from metier.train.methods import FreezeMethod, LoraMethod, apply, name_of
from metier.train.packed import check_exact, packed_attention
from metier.train.precision import Precision, choose
from metier.train.stage import Training, context_of, plain_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def train(stage: Training, ctx: Context) -> Mapping[str, float]:
    """Run the stage: its model folder goes to `ctx.out`. Returns the headline metrics."""
    watch = Stopwatch()
    folder = ctx.source(stage.model).path
    length = stage.length(context_of(plain_config(folder)))
    tokenizer = read_tokenizer(folder)
    material = stage.material(tokenizer, length, ctx)
    if not material.dev:
        stage.refuse_without_dev()
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        model = merge(load(folder, dtype=torch.float32))
        with packed_attention(model):
            check_exact(model, material.pieces)
        precision = choose(stage.precision, width=int(model.config.hidden_size))
        adapted, parameters = apply(model, stage.method, seed=stage.seed)
        _announce(stage, ctx, model, parameters, precision)
        state = _fit(stage, ctx, model, material, precision, length)
        _save(stage, ctx, model, adapted, tokenizer)
    _write_about(stage, ctx, material, parameters, state, length)
    _write_measured(ctx, state, seconds=watch.seconds, peak=memory.peak_bytes, precision=precision)
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


def _announce(
    stage: Training, ctx: Context, model: "PreTrainedModel", parameters: Parameters, precision: Precision
) -> None:
    ctx.events.note(
        f"method {name_of(stage.method)}: {parameters.trained:,} of {parameters.total:,} parameters train "
        f"({parameters.share:.2%}); {precision.name}, {precision.why}"
    )
    if isinstance(stage.method, FreezeMethod) and stage.method.freeze.head and is_tied(model):
        ctx.events.note(
            "the output head is tied to the input embeddings, so these train too and gradients go through every "
            "block; head: false is faster"
        )


def _fit(
    stage: Training, ctx: Context, model: "PreTrainedModel", material: Material, precision: Precision, length: int
) -> State:
    batches = Batches(
        material.pieces,
        material.replay,
        material.replay_share,
        material.block_size,
        stage.batch_size,
        stage.accumulation,
        stage.seed,
    )
    return fit(
        model,
        batches=batches,
        dev=micros(material.dev, stage.batch_size * length),
        epochs=stage.epochs,
        max_steps=stage.max_steps,
        optimizer=stage.optimizer,
        learning_rate=stage.peak_rate,
        schedule=stage.schedule,
        warmup=stage.warmup,
        min_learning_rate=stage.min_learning_rate,
        weight_decay=stage.weight_decay,
        clip=stage.clip,
        precision=precision,
        seed=stage.seed,
        dev_every=stage.dev_every,
        log_every=stage.log_every,
        keep_best=stage.keeps_best,
        events=ctx.events,
        check_stop=ctx.check_stop,
        checkpoints=Checkpoints(ctx.scratch),
    )


def _save(
    stage: Training,
    ctx: Context,
    model: "PreTrainedModel",
    adapted: Any,
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """An adapter refers to the model it started from; whole weights are written in the type that the base's are in."""
    if isinstance(stage.method, LoraMethod):
        save_adapter(adapted.eval(), tokenizer, ctx.out, base=ctx.source(stage.model).link)
        return
    stored = stored_dtype(ctx.source(stage.model).path)
    save_model(model.eval().to(stored), tokenizer, ctx.out, stop=stage.stop(tokenizer))


def _write_about(
    stage: Training, ctx: Context, material: Material, parameters: Parameters, state: State, length: int
) -> None:
    saved = state.best_step if stage.keeps_best else state.step
    write_jsonl(ctx.out / "train.jsonl", state.log)
    write_json(
        ctx.out / "about.json",
        {
            "method": name_of(stage.method),
            "parameters": {"trained": parameters.trained, "total": parameters.total},
            "learning_rate": stage.peak_rate,
            stage.length_field: length,
            "steps": state.step,
            "tokens_seen": state.tokens,
            "targets_seen": state.targets,
            "replay_share": material.replay_share,
            "tokens": {
                "train": size_of(material.pieces),
                "replay": size_of(material.replay),
                "dev": size_of(material.dev),
            },
            "best_step": state.best_step,
            "saved_step": saved,
            "dev_loss": {"before": state.dev_losses[0], "last": state.dev_losses[-1], "best": state.best_loss}
            if state.dev_losses
            else None,
            "labels": material.labels.json(),
        },
    )


def _write_measured(ctx: Context, state: State, *, seconds: float, peak: int, precision: Precision) -> None:
    write_jsonl(ctx.measured / "train.jsonl", state.measured)
    write_json(
        ctx.measured / "about.json",
        {
            "seconds": round(seconds, 3),
            "training_seconds": round(state.seconds, 3),
            "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
            "peak_rss_bytes": peak,
            "precision": precision.name,
            "precision_because": precision.why,
            "threads": torch.get_num_threads(),
        },
    )
