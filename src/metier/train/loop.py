"""The training loop: the same for pretrain and tune, for whole weights and adapters.

The loss of a window is the sum over all its targets divided by their number, however it is cut into micro-steps, so
batch_size 8 and batch_size 2 with accumulation 4 give the same gradient. Loss and gradient norm are looked at before
the optimizer steps: a number that is not finite stops the run with weights still good. Dropout is seeded by (seed,
step, micro-step) and the data's order by (seed, epoch), so a resumed run ends with the bits of an uninterrupted one,
and so does a second run on the same machine with as many threads.

Costs 16 bytes a trained parameter (weight, gradient, two moments), 4 a frozen one, and the activations of one
micro-step; keeping the best adds 4 bytes a trained parameter.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from metier.core.errors import Interrupted, TrainingError
from metier.core.events import Events
from metier.train.batches import Batches, Micro, Window, size_of, targets_of
from metier.train.checkpoint import Checkpoints
from metier.train.optimizers import Kind, Optimizers
from metier.train.packed import backward, pack, packed_attention, summed_loss
from metier.train.precision import Precision
from metier.train.schedule import Shape, share_of_peak

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class State:
    """What a run has done so far; all of it is kept in checkpoints.

    step: optimizer steps. tokens: that went through the model. targets: that were trained on. log: a row for every step
    and dev loss (deterministic). measured: rows with time and memory. best_step, best_loss: of the lowest dev loss.
    seconds: of training, dev losses not included.
    """

    step: int = 0
    tokens: int = 0
    targets: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    last_dev: int | None = None
    seconds: float = 0.0

    @property
    def losses(self) -> list[float]:
        """The training loss of each step, in nats a target."""
        return [row["loss"] for row in self.log if "loss" in row]

    @property
    def dev_losses(self) -> list[float]:
        """The dev losses, the first from before training."""
        return [row["dev_loss"] for row in self.log if "dev_loss" in row]


def fit(
    model: "PreTrainedModel",
    *,
    batches: Batches,
    dev: Sequence[Micro],
    epochs: int,
    max_steps: int | None,
    optimizer: Kind,
    learning_rate: float,
    schedule: Shape,
    warmup: float,
    min_learning_rate: float,
    weight_decay: float,
    clip: float | None,
    precision: Precision,
    seed: int,
    dev_every: int | None,
    log_every: int,
    keep_best: bool,
    events: Events,
    check_stop: Callable[[], None],
    checkpoints: Checkpoints,
) -> State:
    """Train the parameters of `model` that require gradients, in place. Goes on from the newest checkpoint.

    model: a plain transformers model in float32, perhaps with adapter layers inside (not the PeftModel around it). dev:
    what to measure the dev loss on: before training, at each epoch's end (or every `dev_every` steps) and at the end.
    warmup, min_learning_rate: shares of the steps and of the peak rate. clip: the largest gradient norm. keep_best:
    end with the weights of the lowest dev loss rather than the last.

    Raises TrainingError where a loss or gradient is not finite; Interrupted, with the state kept, when asked to stop.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = Optimizers(named, optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
    loop = _Loop(
        model,
        named,
        optimizers,
        batches,
        dev,
        precision,
        seed,
        clip,
        dev_every,
        log_every,
        keep_best,
        events,
        check_stop,
    )
    epoch_ends = list(accumulate(batches.count(epoch) for epoch in range(epochs)))
    total = epoch_ends[-1] if max_steps is None else min(max_steps, epoch_ends[-1])
    kept = checkpoints.load()
    if kept is not None:
        loop.restore(*kept)
        events.note(f"going on from step {loop.state.step} of {total}")
    was_training = model.training
    model.train()
    try:
        with packed_attention(model), torch.random.fork_rng(devices=[]):
            while True:
                loop.measure_dev(total, epoch_ends)
                step = loop.state.step
                if step == total:
                    break
                share = share_of_peak(step, total, shape=schedule, warmup=warmup, floor=min_learning_rate)
                loop.train_step(learning_rate * share, total, epoch_ends)
                if checkpoints.due():
                    checkpoints.save(loop.state.step, loop.tensors(), asdict(loop.state))
    except Interrupted:
        checkpoints.save(loop.state.step, loop.tensors(), asdict(loop.state))
        raise
    finally:
        model.train(was_training)
        optimizers.zero_grad()
    if keep_best:
        loop.restore_best()
    return loop.state


@dataclass
class _Loop:
    """One run's moving parts."""

    model: "PreTrainedModel"
    named: dict[str, nn.Parameter]
    optimizers: Optimizers
    batches: Batches
    dev: Sequence[Micro]
    precision: Precision
    seed: int
    clip: float | None
    dev_every: int | None
    log_every: int
    keep_best: bool
    events: Events
    check_stop: Callable[[], None]
    state: State = field(default_factory=State)
    best: dict[str, Tensor] = field(default_factory=dict)
    _windows: tuple[int, list[Window]] = (-1, [])
    _since: tuple[int, float] = (0, 0.0)

    @cached_property
    def _process(self) -> psutil.Process:
        return psutil.Process()

    def train_step(self, rate: float, total: int, epoch_ends: Sequence[int]) -> None:
        """One optimizer step on the next window."""
        started = time.perf_counter()
        state = self.state
        epoch = bisect_right(epoch_ends, state.step)
        window = self._window(epoch, state.step - (epoch_ends[epoch - 1] if epoch else 0))
        targets = sum(targets_of(micro) for micro in window)
        loss = torch.zeros(())
        self.optimizers.zero_grad()  # also what a stop amid the window left
        for index, micro in enumerate(window):
            self.check_stop()
            torch.manual_seed(_mix(self.seed, state.step, index))
            loss += backward(self.model, pack(micro), scale=1 / targets, autocast=self.precision.autocast)
        mean, norm = torch.stack([loss / targets, self._clipped()]).tolist()
        self._check_finite(mean, norm, window)
        self.optimizers.step(rate)
        state.step += 1
        state.tokens += sum(size_of(micro) for micro in window)
        state.targets += targets
        state.seconds += time.perf_counter() - started
        state.log.append(
            {
                "step": state.step,
                "epoch": epoch,
                "loss": mean,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": state.tokens,
            }
        )
        if state.step in (1, total) or state.step % self.log_every == 0:
            self._report(total)

    def measure_dev(self, total: int, epoch_ends: Sequence[int]) -> None:
        """Measure the dev loss where one is due and not yet known; remember the best weights."""
        state = self.state
        regular = state.step % self.dev_every == 0 if self.dev_every else state.step in epoch_ends
        if not self.dev or state.last_dev == state.step or not (regular or state.step in (0, total)):
            return
        self.model.eval()
        loss = torch.zeros(())
        for micro in self.dev:
            self.check_stop()
            loss += summed_loss(self.model, pack(micro), autocast=self.precision.autocast)
        self.model.train()
        mean = loss.item() / sum(targets_of(micro) for micro in self.dev)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the dev loss is not finite after step {state.step}",
                value=mean,
                cure="lower learning_rate, or set precision: fp32",
            )
        state.last_dev = state.step
        state.log.append({"step": state.step, "dev_loss": mean})
        if state.best_loss is None or mean < state.best_loss:
            state.best_step, state.best_loss = state.step, mean
            if self.keep_best:
                self.best = {name: p.detach().clone() for name, p in self.named.items()}
        self.events.emit("dev", at=state.step, total=total, dev_loss=mean)

    def restore_best(self) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, value in self.best.items():
                self.named[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the run, by name, for a checkpoint."""
        found = {f"weight/{name}": p.detach().contiguous() for name, p in self.named.items()}
        for name, parameter in self.named.items():
            moments = self.optimizers.state(parameter)
            found |= {f"optimizer/{key}/{name}": value.contiguous() for key, value in moments.items()}
        return found | {f"best/{name}": value.contiguous() for name, value in self.best.items()}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The opposite of `tensors` and `asdict(state)`."""
        self.state = State(**state)
        with torch.no_grad():
            for key, value in tensors.items():
                kind, _, name = key.partition("/")
                if kind == "weight":
                    self.named[name].copy_(value)
                elif kind == "best":
                    self.best[name] = value
                else:
                    moment, _, name = name.partition("/")
                    self.optimizers.state(self.named[name])[moment] = value
        self._since = (self.state.tokens, self.state.seconds)

    def _window(self, epoch: int, position: int) -> Window:
        if self._windows[0] != epoch:
            self._windows = (epoch, self.batches.windows(epoch))
        return self._windows[1][position]

    def _clipped(self) -> Tensor:
        """The norm of all gradients, which are scaled down to `clip` where it is larger."""
        if self.clip is None:
            return nn.utils.get_total_norm([p.grad for p in self.named.values() if p.grad is not None])
        return nn.utils.clip_grad_norm_(self.named.values(), self.clip)

    def _check_finite(self, loss: float, norm: float, window: Window) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        ids = list(dict.fromkeys(piece.id for micro in window for piece in micro))
        raise TrainingError(
            f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite at step {self.state.step + 1}; "
            f"read in it: {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}",
            value={"loss": loss, "grad_norm": norm},
            cure="lower learning_rate, lengthen warmup, or set precision: fp32",
        )

    def _report(self, total: int) -> None:
        state = self.state
        tokens, seconds = self._since
        speed = (state.tokens - tokens) / max(state.seconds - seconds, 1e-9)
        self._since = (state.tokens, state.seconds)
        row = state.log[-1]
        state.measured.append(
            {
                "step": state.step,
                "seconds": round(state.seconds, 3),
                "tokens_per_second": round(speed, 1),
                "rss_bytes": self._process.memory_info().rss,
            }
        )
        self.events.progress(
            "train",
            state.step,
            total,
            unit="steps",
            loss=row["loss"],
            learning_rate=row["learning_rate"],
            tokens_per_second=round(speed, 1),
        )


def _mix(seed: int, step: int, micro: int) -> int:
    """One seed from three numbers, different for all that a run can have."""
    return ((seed * 1_000_003 + step) * 1_009 + micro) % 2**63
