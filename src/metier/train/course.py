"""What a training run is told, and what it has done so far: the nouns of `metier.train.loop`.

`Course` says how the weights change, `Watch` what is looked at on the way; `State` is what a checkpoint keeps beside
tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metier.train.batches import Micro
from metier.train.mishaps import Mishap
from metier.train.optimizers import Kind
from metier.train.schedule import DECAY, Shape, share_of_peak


@dataclass(frozen=True)
class Course:
    """How the weights change, and for how long.

    max_steps: stop there, even amid an epoch. warmup, decay: shares of the steps over which the learning rate rises
    and, with wsd, falls. min_learning_rate: a share of the peak. clip: the largest gradient norm. seed: of dropout and
    noise.
    """

    epochs: int = 1
    max_steps: int | None = None
    optimizer: Kind = "adamw"
    learning_rate: float = 2e-5
    schedule: Shape = "cosine"
    warmup: float = 0.01
    decay: float = DECAY
    min_learning_rate: float = 0.1
    weight_decay: float = 0.01
    clip: float | None = 1.0
    seed: int = 0

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step, 0 to total - 1."""
        return self.learning_rate * share_of_peak(
            step, total, shape=self.schedule, warmup=self.warmup, floor=self.min_learning_rate, decay=self.decay
        )


@dataclass(frozen=True)
class Watch:
    """What is looked at on the way.

    dev: what to measure the dev loss on: before training, at each epoch's end (or every `every` steps) and at the end.
    log_every: steps between reports. keep_best: end with the weights of the lowest dev loss rather than the last.
    patience: stop after so many dev losses in a row that were no new lowest. most: stop once the dev loss is more than
    that many times what it was before training, and end with the weights of the last that was not.
    """

    dev: Sequence[Micro] = ()
    every: int | None = None
    log_every: int = 10
    keep_best: bool = False
    patience: int | None = None
    most: float | None = None


@dataclass
class State:
    """What a run has done so far; all of it is kept in checkpoints.

    step: optimizer steps. tokens: that went through the model. targets: that were trained on. log: a row for every step
    and dev loss (deterministic). measured: rows with time and memory. best_step, best_loss: of the lowest dev loss.
    dev_since_best: dev losses measured since that. seconds: of training, dev losses not included. scale: what losses
    are multiplied by (fp16), steady: steps since it last changed. mishaps: windows that were left out. slower_from: the
    step that training went back to and since when the learning rate is halved; known: the mishaps that led there.
    micro_tokens: the most that memory has room for at once, where it ran out.
    """

    step: int = 0
    tokens: int = 0
    targets: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    last_dev: int | None = None
    dev_since_best: int = 0
    seconds: float = 0.0
    scale: float = 1.0
    steady: int = 0
    mishaps: list[Mishap] = field(default_factory=list)
    slower_from: int | None = None
    known: int = 0
    micro_tokens: int | None = None

    @property
    def losses(self) -> list[float]:
        """The training loss of each step, in nats a target (by weight; smoothed where labels are)."""
        return [row["loss"] for row in self.log if "loss" in row]

    @property
    def dev_losses(self) -> list[float]:
        """The dev losses, the first from before training."""
        return [row["dev_loss"] for row in self.log if "dev_loss" in row]
