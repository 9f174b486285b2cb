"""The training loop: the same for pretrain and tune, for whole weights and adapters.

The loss of a window is the sum over all its targets divided by their weight (their number, unless prompts count less),
however it is cut into micro-steps, so batch_size 8 and batch_size 2 with accumulation 4 give the same gradient. Loss
and gradient norm are looked at before the optimizer steps (`mishaps`): a window with bad numbers is left out, after a
few of them training goes back some steps and on at half the learning rate, and then it stops, with weights still good.
Dropout is seeded by (seed, step, micro-step) and the data's order by (seed, epoch), so a resumed run ends with the bits
of an uninterrupted one, and so does a second run on the same machine with as many threads.

Where memory runs out, the window is done again in micro-steps of half the tokens: the same samples, the same gradient.

In fp16 the loss is scaled up so that small gradients survive. A window whose gradients overflow is done again at half
the scale; nothing is skipped for that. The scale doubles after GROWTH steps without one.

Costs 16 bytes a trained parameter (weight, gradient, two moments; 10 with 8-bit moments), what the frozen ones are held
in, and the activations of one micro-step; keeping the best adds 4 bytes a trained parameter.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
from torch import Tensor, nn

from metier.core.errors import InputError, Interrupted, TrainingError
from metier.core.events import Events
from metier.train.batches import Batches, Micro, Window, digest_of, size_of, targets_of, weight_of
from metier.train.checkpoint import Checkpoints, differences
from metier.train.forgetting import Objective
from metier.train.forward import Forward
from metier.train.mishaps import RECENT, SLOWER, Mishap, back_to, follows, hopeless, judge, limit, mishap, names
from metier.train.optimizers import Kind, Optimizers
from metier.train.precision import Precision, gemm_peak
from metier.train.scarce import Foresight, MemoryRanOut, narrowed, ran_out
from metier.train.schedule import DECAY, Shape, share_of_peak
from metier.train.sharded import norm_of, write
from metier.train.together import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

FIRST_SCALE = 2.0**16
"""What fp16 losses are multiplied by at first; torch's own choice, like GROWTH."""
GROWTH = 2000
PLACE = "place"
NO_LIMIT = 2**62


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


def fit(
    model: "PreTrainedModel",
    forward: Forward,
    batches: Batches,
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
    batches: Batches
    course: Course
    watch: Watch
    precision: Precision
    events: Events
    check_stop: Callable[[], None]
    objective: Objective | None = None
    world: World = ALONE
    state: State = field(default_factory=State)
    best: dict[str, Tensor] = field(default_factory=dict)
    foresight: Foresight = field(default_factory=Foresight)
    _micro: Micro = ()
    _next: Micro | None = None
    _windows: tuple[int, list[Window]] = (-1, [])
    _last: Window = ()
    _since: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        if self.precision.scaler:
            self.state.scale = FIRST_SCALE
        self.foresight.among = self.world.local_size

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
        self._next = self._first_of(epoch, position + 1) if state.step + 1 < epoch_ends[epoch] else None
        rate = self._rate(state.step, total)
        scaled = state.scale, state.steady
        loss, norm = self._gradients(window)
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
        sums = [self.world.added(self._fitting(group, self._summed)) for group in groups]
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
        state = {**asdict(self.state), PLACE: self.place(total, epoch_ends)} if world.first else {}
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
        return found

    def restore(
        self, tensors: dict[str, Tensor], state: dict[str, Any], total: int, epoch_ends: Sequence[int], folder: Path
    ) -> None:
        """The opposite of `tensors` and `asdict(state)`. Raises InputError where other data would come next."""
        was = state.pop(PLACE)
        self.state = State(**state)
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
        if self._windows[0] != epoch:
            self._windows = (epoch, self.batches.windows(epoch))
        return self._windows[1][position]

    def _gradients(self, window: Window) -> tuple[float, float]:
        """Leave the window's gradients, clipped, in the parameters. Returns its mean loss and their norm before."""
        state = self.state
        weight = 1.0 if self.objective is not None else sum(weight_of(micro) for micro in window)
        while True:
            sums = self._fitting(self.world.cut(window), self._backward)
            loss = self.world.added(sums).sum() / weight
            self.world.sum_gradients(self.named)
            found, norm = self.world.same(torch.stack([loss, self._clipped()]).tolist())
            state.steady += 1
            if math.isfinite(norm) or not math.isfinite(found) or state.scale <= 1:
                break
            state.scale, state.steady = state.scale / 2, 0
        if self.precision.scaler and state.steady >= GROWTH:
            state.scale, state.steady = state.scale * 2, 0
        return found, norm

    def _backward(self, window: Window) -> Tensor:
        """Add the gradients of this process's micro-steps. Returns their losses at their places, (micro-steps,)."""
        weigh = None if self.objective is None else self.objective.of(window)
        weight = sum(weight_of(micro) for micro in window) if weigh is None else 1.0
        self.optimizers.zero_grad()  # also what a stop amid the window left
        own = self.world.own(window)
        sums = torch.zeros(len(window), device=self.precision.device)
        for index, (place, micro) in enumerate(own):
            self._micro = micro
            self._look()
            torch.manual_seed(_mix(self.course.seed, self.state.step, place or 0))
            following = own[index + 1][1] if index + 1 < len(own) else self._next
            with self.foresight.of(micro) if self.precision.device.type == "cpu" else nullcontext():
                scale = 0.0 if place is None else self.state.scale / weight
                loss = self.forward.backward(micro, scale=scale, following=following, weigh=weigh)
                if place is not None:
                    sums[place] = loss
        self._micro = ()
        return sums

    def _summed(self, window: Window) -> Tensor:
        """The losses of this process's micro-steps, without gradients, at their places: (micro-steps,)."""
        sums = torch.zeros(len(window), device=self.precision.device)
        for place, micro in self.world.own(window):
            self._micro = micro
            self._look()
            loss = self.forward.summed_loss(micro)
            if place is not None:
                sums[place] = loss
        self._micro = ()
        return sums

    def _look(self) -> None:
        """Stop where that was asked for. Several processes stop together, see `_fitting`."""
        if self.world.alone:
            self.check_stop()

    def _asked(self) -> bool:
        if self.world.alone:
            return False
        try:
            self.check_stop()
        except Interrupted:
            return True
        return False

    def _fitting(self, window: Window, work: Callable[[Window], Tensor]) -> Tensor:
        """`work` on the window; where memory runs out, on the same pieces in smaller micro-steps, from then on too.

        Several processes then do it again together, and stop together where any of them was asked to.
        """
        while True:
            short, said = 0, ""
            try:
                done = work(narrowed(window, self.state.micro_tokens))
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error) or not self._micro or self.world.sharded:
                    raise
                said = str(error) or type(error).__name__
            if said:  # out here what the failed attempt held is free
                short = self._too_large(said)
            # the least limit is the largest of their negatives, and none is below all
            stop, least = self.world.largest(self._asked(), -short if short else -NO_LIMIT)
            if stop:
                raise Interrupted("stopped on request", cure="run the same command again: it goes on from here")
            if least == -NO_LIMIT:
                return done
            self._narrow(-least)

    def _too_large(self, said: str) -> int:
        """The tokens of a micro-step that may fit. Raises MemoryRanOut where one sample does not."""
        micro, self._micro = self._micro, ()
        if len(micro) < 2:
            raise MemoryRanOut(
                f"memory ran out at step {self.state.step + 1}, on one sample ({micro[0].id})", value=said
            )
        return size_of(micro) // 2

    def _narrow(self, tokens: int) -> None:
        self.optimizers.zero_grad()
        if self.precision.device.type == "cuda":
            torch.cuda.empty_cache()
        self.state.micro_tokens = tokens
        self.events.warning(
            f"memory ran out in a micro-step of some {2 * tokens} tokens: they have at most {tokens} from here on; "
            "each step has the same samples and gradients as before"
        )

    def _clipped(self) -> Tensor:
        """The norm of all gradients, which lose the loss's scale and are made smaller to `clip` where it is larger."""
        found = [p.grad for p in self.named.values() if p.grad is not None]
        if self.state.scale != 1:
            torch._foreach_mul_(found, 1 / self.state.scale)
        if self.course.clip is None:
            return norm_of(nn.utils.get_total_norm(found))
        return norm_of(nn.utils.clip_grad_norm_(self.named.values(), self.course.clip))

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


def _mix(seed: int, step: int, micro: int) -> int:
    """One seed from three numbers, different for all that a run can have."""
    return ((seed * 1_000_003 + step) * 1_009 + micro) % 2**63
