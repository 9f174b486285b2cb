"""Metier's own loading, forward pass and loop on the same rows.

settings: quantize (null, int8, 8bit or 4bit), micro_tokens (of a micro-step; null: all examples of a step at once),
share_prompts (true), prefix_cache (false), precision (auto), checkpointing (false).
"""

from pathlib import Path
from typing import Any

import torch

from measure import IGNORED, LEARNING_RATE, begin, end
from metier.core.events import Event, Events
from metier.models.shape import cast_, input_embeddings
from metier.train.batches import Batches, Piece, shared_prefix, size_of
from metier.train.checkpoint import Checkpoints
from metier.train.course import Course, Watch
from metier.train.forward import Forward
from metier.train.job import load_base
from metier.train.loop import fit
from metier.train.methods import FreezeMethod, apply
from metier.train.precision import best_device, choose
from metier.train.prefix_cache import PrefixCache, room_for
from metier.train.rows import pack
from metier.train.stage import Tune

DEFAULTS = {
    "quantize": None,
    "micro_tokens": None,
    "share_prompts": True,
    "prefix_cache": False,
    "precision": "auto",
    "checkpointing": False,
}


def piece(number: int, row: dict[str, Any]) -> Piece:
    """A row as the loop reads it."""
    return Piece.of(str(number), row["input_ids"], [label != IGNORED for label in row["labels"]])


def main() -> None:
    job, clock = begin()
    if unknown := set(job.settings) - set(DEFAULTS):
        raise SystemExit(f"unknown settings: {', '.join(sorted(unknown))}")
    settings = DEFAULTS | job.settings
    stage = Tune.model_validate(
        {"model": job.model, "examples": "rows", "method": job.method, "quantize": settings["quantize"]}
    )
    precision = choose(settings["precision"], width=2048, device=best_device())
    model = load_base(stage, Path(job.model), precision)
    apply(model, stage.method, seed=job.seed)
    if isinstance(stage.method, FreezeMethod):
        cast_((p for p in model.parameters() if p.requires_grad), torch.float32)
        cast_((p for p in model.parameters() if not p.requires_grad), precision.dtype)
    pieces = tuple(piece(number, row) for number, row in enumerate(job.rows()))
    batches = Batches(pieces, (), 0.0, None, job.examples_per_step, 1, job.seed, micro_tokens=settings["micro_tokens"])
    prefix = shared_prefix(pieces) if settings["share_prompts"] else None
    embeddings = input_embeddings(model).weight
    width, dtype = embeddings.shape[1], embeddings.dtype
    cache = PrefixCache(room_for(pieces, prefix), width, dtype) if settings["prefix_cache"] else None
    forward = Forward(model, precision=precision, prefix=prefix, cache=cache, checkpointing=settings["checkpointing"])
    windows = [window for epoch in range(job.epochs) for window in batches.windows(epoch)]
    if job.turns:
        clock.planned = tuple(sum(map(size_of, window)) for window in windows)
        clock.watch_optimizers()

    def tick(event: Event) -> None:
        if event["event"] == "train" and not job.turns:
            clock.tick()

    state = fit(
        model,
        forward,
        batches,
        course=Course(
            epochs=job.epochs, max_steps=job.all_steps, learning_rate=LEARNING_RATE, schedule="linear", seed=job.seed
        ),
        watch=Watch(log_every=job.all_steps if job.turns else 1),
        precision=precision,
        events=Events("train", listeners=[tick]),
        check_stop=lambda: None,
        checkpoints=Checkpoints(Path(job.scratch), every_seconds=float("inf")),
    )
    timed = [micro for window in windows[job.warmup : job.all_steps] for micro in window]
    clock.losses = state.losses
    if job.turns:
        turns = [windows[job.warmup + n * job.steps :][: job.steps] for n in range(job.turns)]
        each = [sum(forward.flops(micro) for window in turn for micro in window) for turn in turns]
        about = {"numbers": precision.name, "shared_prompt": 0 if prefix is None else len(prefix)}
        end(clock, packages=("metier", "transformers", "peft"), settings=settings | about, flops=each)
        return
    clock.tokens = sum(map(size_of, timed))
    rows = [pack(micro, prefix) for micro in timed]
    computed = sum(row.prefix + sum(end - start for _, start, end in row.parts) for row in rows)
    spared = {"spared_tokens": clock.tokens - computed}
    about = spared | {"numbers": precision.name, "shared_prompt": 0 if prefix is None else len(prefix)}
    flops = sum(map(forward.flops, timed))
    end(clock, packages=("metier", "transformers", "peft"), settings=settings | about, flops=flops)


if __name__ == "__main__":
    main()
