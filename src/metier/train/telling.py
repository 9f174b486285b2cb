"""What a training step writes of itself: `files/about.json` and its log, and what this machine measured."""

from dataclasses import dataclass
from statistics import median

import torch

from metier.core.stage import Context
from metier.models.shape import Parameters
from metier.text.artifacts import write_json, write_jsonl
from metier.train.batches import size_of
from metier.train.course import State
from metier.train.estimate import learned
from metier.train.material import Material
from metier.train.methods import name_of
from metier.train.precision import Precision, gemm_peak
from metier.train.stage import Training
from metier.train.together import World


@dataclass(frozen=True)
class Chosen:
    """What was left to the machine. micro_tokens: of a micro-step (None: batch_size blocks)."""

    precision: Precision
    micro_tokens: int | None


def write_about(
    stage: Training, ctx: Context, material: Material, parameters: Parameters, state: State, length: int
) -> None:
    """The step's `about.json` and its log of every step. length: tokens of the longest sequence."""
    back = stage.most_loss is not None and state.best_step is not None
    saved = state.best_step if stage.keeps_best or back else state.step
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
                "train": state.tokens if material.stream is not None else size_of(material.pieces),
                "replay": size_of(material.replay),
                "dev": size_of(material.dev),
                **({"retain": size_of(material.retain)} if material.retain else {}),
            },
            "quantize": stage.quantize,
            "best_step": state.best_step,
            "saved_step": saved,
            "dev_loss": {"before": state.dev_losses[0], "last": state.dev_losses[-1], "best": state.best_loss}
            if state.dev_losses
            else None,
            "labels": material.labels.json(),
            **({"left_out": state.mishaps, "slower_from": state.slower_from} if state.mishaps else {}),
        },
    )


def write_measured(
    stage: Training, ctx: Context, state: State, *, seconds: float, peak: int, chosen: Chosen, width: int
) -> None:
    """Time, memory and speed, here. seconds: of the whole step. peak: bytes. width: of the model's hidden states."""
    write_jsonl(ctx.measured / "train.jsonl", state.measured)
    precision, reached = chosen.precision, [row["utilisation"] for row in state.measured[1:]]
    if reached:  # the first step prepares kernels
        peak_speed = gemm_peak(precision.device, precision.dtype)
        told = learned(precision.name, stage.quantize, width=width, peak=peak_speed, utilisation=median(reached))
        write_json(ctx.measured / "machine.json", told)
    write_json(
        ctx.measured / "about.json",
        {
            "seconds": round(seconds, 3),
            "training_seconds": round(state.seconds, 3),
            "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
            "peak_rss_bytes": peak,
            "precision": chosen.precision.name,
            "precision_because": chosen.precision.why,
            "micro_tokens": chosen.micro_tokens if state.micro_tokens is None else state.micro_tokens,
            "device": str(chosen.precision.device),
            "threads": torch.get_num_threads(),
            "processes": World.of(ctx.team).size,
        },
    )
