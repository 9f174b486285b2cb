"""The training loop: the same for pretrain and tune, for whole weights and adapters.

The loss of a window is the sum over all its targets divided by their weight (their number, unless prompts count less),
however it is cut into micro-steps, so batch_size 8 and batch_size 2 with accumulation 4 give the same gradient. Loss
and gradient norm are looked at before the optimizer steps (`mishaps`): a window with bad numbers is left out, after a
few of them training goes back some steps and on at half the learning rate, and then it stops, with weights still good.
Dropout is seeded by (seed, step, micro-step) and the data's order by (seed, epoch), so a resumed run ends with the bits
of an uninterrupted one, and so does a second run on the same machine with as many threads.

What happens within a window stands in `metier.train.passes`, what a run is told and keeps in `metier.train.course`.

Costs 16 bytes a trained parameter (weight, gradient, two moments; 10 with 8-bit moments), what the frozen ones are held
in, and the activations of one micro-step; keeping the best adds 4 bytes a trained parameter.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from metier.core.errors import InputError, Interrupted, TrainingError
from metier.core.events import Events
from metier.train.batches import Batches, Micro, Window, digest_of, size_of, targets_of
from metier.train.checkpoint import Checkpoints, differences
from metier.train.course import Course, State, Watch
from metier.train.forgetting import Objective
from metier.train.forward import Forward
from metier.train.mishaps import RECENT, SLOWER, Mishap, back_to, follows, hopeless, judge, limit, mishap, names
from metier.train.optimizers import Optimizers
from metier.train.passes import Passes
from metier.train.precision import Precision, gemm_peak
from metier.train.sharded import write
from metier.train.streams import Streams
from metier.train.together import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACE = "place"


def fit(
    model: "PreTrainedModel",
    forward: Forward,
    batches: Batches | Streams,
    *,
    course: Course,
    watch: Watch,
    precision: Precision,
    events: Events,
    check_stop: Callable[[], None],
    checkpoints: Checkpoints,
    objective: Objective | None = None,
    world: World = ALONE,
) -> State:
    """Train the parameters of `model` that require gradients, in place. Goes on from the newest checkpoint.

    model: a plain transformers model, perhaps with adapter layers inside (not the PeftModel around it), whose trained
    parameters are float32. forward: of that model. objective: what is minimised, where that is not the mean loss.
    world: the processes that do this together, each with the same model and data.

    Raises TrainingError where losses or gradients stay bad, or one sample needs too much memory; Interrupted, with the
    state kept, when asked to stop.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizers = Optimizers(
        named, course.optimizer, learning_rate=course.learning_rate, weight_decay=course.weight_decay
    )
    loop = _Loop(
        model, forward, named, optimizers, batches, course, watch, precision, events, check_stop, objective, world
    )
    epoch_ends = list(accumulate(batches.count(epoch) for epoch in range(course.epochs)))
    total = epoch_ends[-1] if course.max_steps is None else min(course.max_steps, epoch_ends[-1])
    kept = loop.kept(checkpoints)
    if kept is None:
        loop.save(checkpoints, total, epoch_ends)
    else:
        loop.restore(*kept, total, epoch_ends, checkpoints.folder)
        events.note(f"going on from step {loop.state.step} of {total}")
    was_training = model.training
    model.train()
    devices = [precision.device] if precision.device.type == "cuda" else []
    try:
        with forward, torch.random.fork_rng(devices=devices):
            loop.fill_cache(total, epoch_ends)
            while True:
                loop.measure_dev(total, epoch_ends)
                if loop.state.step == total or loop.out_of_patience or loop.past_limit:
                    break
                if not loop.train_step(total, epoch_ends):
                    loop.go_back(checkpoints, total, epoch_ends)
                if world.decide(checkpoints.due):
                    loop.save(checkpoints, total, epoch_ends)
    except Interrupted:
        loop.save(checkpoints, total, epoch_ends)
        raise
    finally:
        model.train(was_training)
        optimizers.zero_grad()
    if loop.state.mishaps and not loop.state.losses:
        raise loop.hopeless()
    if loop.state.step < total or loop.past_limit:
        loop.report(total)
        why = (
            f"the dev loss rose to {loop.state.dev_losses[-1]:.4f}, past {watch.most} x the "
            f"{loop.state.dev_losses[0]:.4f} at the start; step {loop.state.best_step} is kept"
            if loop.past_limit
            else f"the last {loop.state.dev_since_best} dev losses were not below the {loop.state.best_loss:.4f} of "
            f"step {loop.state.best_step}"
        )
        said = f"stopped after step {loop.state.step} of {total}: {why}"
        if loop.past_limit and loop.state.best_step == 0:
            events.warning(f"{said}, so the model is as it was: lower learning_rate, or look sooner (dev_every)")
        else:
            events.note(said)
    if watch.keep_best or loop.past_limit:
        loop.restore_best()
    return loop.state


@dataclass
class _Loop:
    """One run's moving parts."""

    model: "PreTrainedModel"
    forward: Forward
    named: dict[str, nn.Parameter]
    optimizers: Optimizers
    batches: Batches | Streams
    course: Course
    watch: Watch
    precision: Precision
    events: Events
    check_stop: Callable[[], None]
    objective: Objective | None = None
    world: World = ALONE
    state: State = field(default_factory=State)
    best: dict[str, Tensor] = field(default_factory=dict)
    _windows: tuple[int, list[Window]] = (-1, [])
    _last: Window = ()
    _since: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        self.passes = Passes(
            self.forward,
            self.named,
            self.optimizers,
            self.precision,
            self.events,
            self.check_stop,
            self.state,
            seed=self.course.seed,
            clip=self.course.clip,
            objective=self.objective,
            world=self.world,
        )

    @cached_property
    def _process(self) -> psutil.Process:
        return psutil.Process()

    @property
    def out_of_patience(self) -> bool:
        """Whether as many dev losses in a row as allowed were no new lowest."""
        return self.watch.patience is not None and self.state.dev_since_best >= self.watch.patience

    @property
    def past_limit(self) -> bool:
        """Whether the last dev loss is past what it may be."""
        losses, most = self.state.dev_losses, self.watch.most
        return most is not None and bool(losses) and losses[-1] > most * losses[0]

    def fill_cache(self, total: int, epoch_ends: Sequence[int]) -> None:
        """Compute what frozen blocks make of all pieces, where at least an epoch of them is still to be read.

        Else they are computed as they are asked for: the bits are the same.
        """
        if total - self.state.step < epoch_ends[0] or not self.world.alone:  # a process asks for its share alone
            return
        started = time.perf_counter()
        for done, rows in self.forward.fill_cache():
            self.events.progress("prefix cache", done, rows, unit="rows")
            self.check_stop()
        self.state.seconds += time.perf_counter() - started
        self._since = (self.state.tokens, self.state.seconds)

    def train_step(self, total: int, epoch_ends: Sequence[int]) -> bool:
        """One optimizer step on the next window, or its leaving out. False: training has to go back."""
        started = time.perf_counter()
        state = self.state
        epoch = bisect_right(epoch_ends, state.step)
        known = next((one for one in state.mishaps if one["step"] == state.step + 1), None)
        if known is not None:
            self._pass_over(known, epoch)
            return True
        position = state.step - (epoch_ends[epoch - 1] if epoch else 0)
        window = self._window(epoch, position)
        following = self._first_of(epoch, position + 1) if state.step + 1 < epoch_ends[epoch] else None
        rate = self._rate(state.step, total)
        scaled = state.scale, state.steady
        loss, norm = self.passes.gradients(window, following)
        targets = sum(targets_of(micro) for micro in window)
        usual = state.targets / max(1, state.step - self._left_out())
        # two losses that pull against one another rise and fall without anything being wrong with a sample
        most = math.inf if self.objective else limit(self._recent(), targets=targets, usual=usual)
        what = judge(loss, norm, most)
        if what is not None:
            state.scale, state.steady = scaled
            return self._mishap(mishap(state.step + 1, what, loss, norm, window), epoch)
        self._last = window
        self.optimizers.step(rate)
        state.step += 1
        state.tokens += sum(size_of(micro) for micro in window)
        state.targets += targets
        state.seconds += time.perf_counter() - started
        state.log.append(
            {
                "step": state.step,
                "epoch": epoch,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": state.tokens,
            }
        )
        if state.step in (1, total) or state.step % self.watch.log_every == 0:
            self.report(total)
        return True

    def _rate(self, step: int, total: int) -> float:
        slower = self.state.slower_from is not None and step >= self.state.slower_from
        return self.course.rate(step, total) * (SLOWER if slower else 1.0)

    def _recent(self) -> list[float]:
        """The last few losses that were trained on."""
        return list(islice((row["loss"] for row in reversed(self.state.log) if "loss" in row), RECENT))

    def _left_out(self) -> int:
        """How many steps so far were none."""
        return sum(one["step"] <= self.state.step for one in self.state.mishaps)

    def _pass_over(self, one: Mishap, epoch: int) -> None:
        """Count a window as read without having learned from it."""
        self.state.step += 1
        self.state.log.append({"step": self.state.step, "epoch": epoch, "left_out": one["what"], "read": one["read"]})

    def _mishap(self, one: Mishap, epoch: int) -> bool:
        """Leave a window out, or say that training has to go back. Raises TrainingError where it did already."""
        state = self.state
        state.mishaps.append(one)
        course = follows(state.mishaps, went_back=state.slower_from is not None, known=state.known)
        if course == "stop":
            raise self.hopeless()
        self.optimizers.zero_grad()
        if course == "back":
            return False
        self.events.warning(
            f"step {one['step']} is left out: {one['what']} ({one['found']}); read: {names(one['read'])}"
        )
        self._pass_over(one, epoch)
        return True

    def hopeless(self) -> TrainingError:
        bad = [name for name, p in self.model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
        slopes = [name for name, p in self.named.items() if p.grad is not None and not p.grad.isfinite().all()]
        return hopeless(self.state.mishaps, went_back=self.state.slower_from, broken=bad, slopes=slopes)

    def go_back(self, checkpoints: Checkpoints, total: int, epoch_ends: Sequence[int]) -> None:
        """Take up the newest checkpoint from before the last mishaps, and on at half the learning rate.

        The step from which on it is halved does not depend on when checkpoints were written: what lies between the two
        is trained as it was.
        """
        mishaps, to = self.state.mishaps, back_to(self.state.mishaps)
        kept = self.kept(checkpoints, at_most=to)
        if kept is None:
            raise self.hopeless()
        self.restore(*kept, total, epoch_ends, checkpoints.folder)
        if self.world.first:
            checkpoints.drop_after(self.state.step)
        self.state.mishaps, self.state.slower_from, self.state.known = mishaps, to, len(mishaps)
        last = mishaps[-1]
        steps = ", ".join(str(one["step"]) for one in mishaps)
        self.events.warning(
            f"{last['what']} at step {last['step']} too ({last['found']}; read: {names(last['read'])}): training goes "
            f"back to step {to}, on at half the learning rate, and leaves out steps {steps}"
        )

    def measure_dev(self, total: int, epoch_ends: Sequence[int]) -> None:
        """Measure the dev loss where one is due and not yet known; remember the best weights."""
        state, watch = self.state, self.watch
        regular = state.step % watch.every == 0 if watch.every else state.step in epoch_ends
        if not watch.dev or state.last_dev == state.step or not (regular or state.step in (0, total)):
            return
        self.model.eval()
        several = self.world.size
        groups = (tuple(watch.dev[start : start + several]) for start in range(0, len(watch.dev), several))
        sums = [self.passes.losses(group) for group in groups]
        self.model.train()
        mean = torch.cat(sums).sum().item() / sum(targets_of(micro) for micro in watch.dev)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the dev loss is not finite after step {state.step}",
                value=mean,
                cure="lower learning_rate, or set precision: fp32",
            )
        state.last_dev = state.step
        state.log.append({"step": state.step, "dev_loss": mean})
        state.dev_since_best += 1
        if not self.past_limit if watch.most else state.best_loss is None or mean < state.best_loss:
            state.best_step, state.best_loss, state.dev_since_best = state.step, mean, 0
            if watch.keep_best or watch.most:
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
            found |= {f"optimizer/{key}/{name}": value for key, value in moments.items()}
        return found | {f"best/{name}": value.contiguous() for name, value in self.best.items()}

    def save(self, checkpoints: Checkpoints, total: int, epoch_ends: Sequence[int]) -> None:
        """Keep all of it in a checkpoint."""
        step, world = self.state.step, self.world
        place = self.place(total, epoch_ends)  # of a stream all processes read the next window
        state = {**asdict(self.state), PLACE: place} if world.first else {}
        if not world.sharded:
            if world.first:
                checkpoints.save(step, self.tensors(), state)
        elif not world.decide(lambda: checkpoints.has(step)):  # damaged ones are not
            aside = Path(world.decide(lambda: str(checkpoints.begin(step))))
            write(self.tensors(), aside)
            world.wait()
            if world.first:
                checkpoints.finish(step, state)
        elif world.first:
            checkpoints.finish(step, None)

    def kept(
        self, checkpoints: Checkpoints, at_most: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What the newest whole checkpoint holds. Process 0 says which that is, and deletes none that others read."""
        step = self.world.decide(lambda: checkpoints.newest(at_most))
        found = None if step is None else checkpoints.read(step, self.named if self.world.sharded else {})
        self.world.wait()
        return found

    def place(self, total: int, epoch_ends: Sequence[int]) -> dict[str, Any]:
        """Where in the data and the schedule the run is: what comes next, of how much, and at which learning rate.

        next: a digest of the next window, in the order in which it is read, so of what packing and drawing made of the
        epoch. random: what all random numbers follow from.
        """
        step = self.state.step
        found: dict[str, Any] = {"step": step, "steps": total, "random": {"seed": self.course.seed}}
        if step < total:
            epoch = bisect_right(epoch_ends, step)
            before = epoch_ends[epoch - 1] if epoch else 0
            found |= {"epoch": epoch, "window": step - before, "windows": epoch_ends[epoch] - before}
            found |= {
                "learning_rate": self.course.rate(step, total),
                "next": [digest_of(micro) for micro in self._window(epoch, step - before)],
            }
            if isinstance(self.batches, Streams):
                found["lanes"] = self.batches.cursors(step)
        return found

    def restore(
        self, tensors: dict[str, Tensor], state: dict[str, Any], total: int, epoch_ends: Sequence[int], folder: Path
    ) -> None:
        """The opposite of `tensors` and `asdict(state)`. Raises InputError where other data would come next."""
        was = state.pop(PLACE)
        self.state = self.passes.state = State(**state)
        if isinstance(self.batches, Streams) and "lanes" in was:
            self.batches.go_to(self.state.step, was["lanes"])
        changed = list(differences(was, self.place(total, epoch_ends), ""))
        if changed:
            raise InputError(
                f"training cannot go on where it was: {', '.join(changed)}",
                where=str(folder),
                cure="put settings, data and code back as they were, or delete the folder to begin anew",
            )
        self.optimizers.forget()
        self.best = {}
        with torch.no_grad():
            for key, value in tensors.items():
                kind, _, name = key.partition("/")
                if kind == "weight":
                    self.named[name].copy_(value)
                elif kind == "best":
                    self.best[name] = value
                else:
                    moment, _, name = name.partition("/")
                    self.optimizers.restore(self.named[name], moment, value)
        self._since = (self.state.tokens, self.state.seconds)

    def _first_of(self, epoch: int, position: int) -> Micro | None:
        """The first micro-step of a window that this process will compute."""
        own = self.world.own(self.world.cut(self._window(epoch, position)))
        return own[0][1] if own else None

    def _window(self, epoch: int, position: int) -> Window:
        if isinstance(self.batches, Streams):
            return self.batches.window(position)
        if self._windows[0] != epoch:
            self._windows = (epoch, self.batches.windows(epoch))
        return self._windows[1][position]

    def report(self, total: int) -> None:
        """Say how far training is, unless that was said or nothing has been trained since a resume."""
        state = self.state
        if not self._last or (state.measured and state.measured[-1]["step"] == state.step):
            return
        tokens, seconds = self._since
        speed = (state.tokens - tokens) / max(state.seconds - seconds, 1e-9)
        self._since = (state.tokens, state.seconds)
        row = next(row for row in reversed(state.log) if "loss" in row)
        told = {key: row[key] for key in ("epoch", "loss", "learning_rate", "grad_norm", "tokens")}
        measured = {
            "tokens_per_second": round(speed, 1),
            "utilisation": round(self._flops_a_token() * speed / self._peak(), 4),
            "rss_bytes": self._process.memory_info().rss,
        }
        state.measured.append({"step": state.step, "seconds": round(state.seconds, 3), **measured})
        self.events.emit("train", at=state.step, total=total, **told, **measured)
        self.events.progress(
            "train",
            state.step,
            total,
            unit="steps",
            loss=row["loss"],
            learning_rate=row["learning_rate"],
            tokens_per_second=measured["tokens_per_second"],
            utilisation=measured["utilisation"],
        )

    def _peak(self) -> float:
        """What large products reach, all processes together."""
        return self.world.size * gemm_peak(self.precision.device, self.precision.dtype)

    def _flops_a_token(self) -> float:
        """Arithmetic that the last window needed, over its tokens."""
        return sum(self.forward.flops(micro) for micro in self._last) / sum(size_of(micro) for micro in self._last)
