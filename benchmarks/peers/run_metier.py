"""Metier's own loading, forward pass and loop on the same rows.

settings: quantize (null or int8), micro_tokens (of a micro-step; null: all examples of a step at once), share_prompts
(true), precision (auto).
"""

from pathlib import Path
from typing import Any

from measure import IGNORED, LEARNING_RATE, begin, end
from pydantic import TypeAdapter

from metier.core.events import Event, Events
from metier.models.load import load
from metier.train.batches import Batches, Piece, shared_prefix, size_of
from metier.train.checkpoint import Checkpoints
from metier.train.forward import Forward
from metier.train.int8 import quantize_
from metier.train.loop import Course, Watch, fit
from metier.train.methods import Method, apply
from metier.train.precision import choose

DEFAULTS = {"quantize": None, "micro_tokens": None, "share_prompts": True, "precision": "auto"}


def piece(number: int, row: dict[str, Any]) -> Piece:
    """A row as the loop reads it."""
    return Piece.of(str(number), row["input_ids"], [label != IGNORED for label in row["labels"]])


def main() -> None:
    job, clock = begin()
    if unknown := set(job.settings) - set(DEFAULTS):
        raise SystemExit(f"unknown settings: {', '.join(sorted(unknown))}")
    settings = DEFAULTS | job.settings
    method: Method = TypeAdapter(Method).validate_python(job.method)
    loaded = load(Path(job.model), dtype=_frozen_type(method))
    precision = choose(settings["precision"], width=int(loaded.model.config.hidden_size))
    if settings["quantize"] == "int8":
        quantize_(loaded.model)
    adapted, _ = apply(loaded.model, method, seed=job.seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # what trains is float32, what is frozen as it lies on disk
    pieces = tuple(piece(number, row) for number, row in enumerate(job.rows()))
    batches = Batches(pieces, (), 0.0, None, job.examples_per_step, 1, job.seed, micro_tokens=settings["micro_tokens"])
    prefix = shared_prefix(pieces) if settings["share_prompts"] else None
    forward = Forward(loaded.model, precision=precision, prefix=prefix)

    def tick(event: Event) -> None:
        if event["event"] == "train":
            clock.tick()

    state = fit(
        loaded.model,
        forward,
        batches,
        course=Course(
            epochs=job.epochs, max_steps=job.all_steps, learning_rate=LEARNING_RATE, schedule="linear", seed=job.seed
        ),
        watch=Watch(log_every=1),
        precision=precision,
        events=Events("train", listeners=[tick]),
        check_stop=lambda: None,
        checkpoints=Checkpoints(Path(job.scratch), every_seconds=float("inf")),
    )
    windows = [window for epoch in range(job.epochs) for window in batches.windows(epoch)]
    timed = [micro for window in windows[job.warmup : job.all_steps] for micro in window]
    clock.tokens = sum(map(size_of, timed))
    clock.losses = state.losses
    about = {"numbers": precision.name, "shared_prompt": 0 if prefix is None else len(prefix)}
    flops = sum(map(forward.flops, timed))
    end(clock, packages=("metier", "transformers", "peft"), settings=settings | about, flops=flops)


def _frozen_type(method: Method) -> Any:
    """An adapter's base is held as it lies on disk; where whole weights train, all are float32."""
    import torch

    return torch.float32 if method == "full" else torch.bfloat16


if __name__ == "__main__":
    main()
