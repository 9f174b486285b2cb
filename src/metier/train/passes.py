"""Forward and backward over one window of a training run, for `metier.train.loop`.

The window's micro-steps are dealt out among the processes. Where memory runs out, the window is done again in
micro-steps of half the tokens: the same samples, the same gradient.

In fp16 the loss is scaled up so that small gradients survive. A window whose gradients overflow is done again at half
the scale; nothing is skipped for that. The scale doubles after GROWTH steps without one.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metier.core.errors import Interrupted
from metier.core.events import Events
from metier.train.batches import Micro, Window, size_of, weight_of
from metier.train.course import State
from metier.train.forgetting import Objective
from metier.train.forward import Forward
from metier.train.optimizers import Optimizers
from metier.train.precision import Precision
from metier.train.scarce import Foresight, MemoryRanOut, narrowed, ran_out
from metier.train.sharded import norm_of
from metier.train.together import World

FIRST_SCALE = 2.0**16
"""What fp16 losses are multiplied by at first; torch's own choice, like GROWTH."""
GROWTH = 2000
NO_LIMIT = 2**62


@dataclass
class Passes:
    """One run's passes through its model.

    named: the trained parameters. seed: of dropout and noise. clip: the largest gradient norm. state: of the run; its
    scale, steady and micro_tokens are kept here.
    """

    forward: Forward
    named: dict[str, nn.Parameter]
    optimizers: Optimizers
    precision: Precision
    events: Events
    check_stop: Callable[[], None]
    state: State
    seed: int
    clip: float | None
    objective: Objective | None
    world: World
    foresight: Foresight = field(default_factory=Foresight)
    _micro: Micro = ()
    _next: Micro | None = None

    def __post_init__(self) -> None:
        if self.precision.scaler:
            self.state.scale = FIRST_SCALE
        self.foresight.among = self.world.local_size

    def gradients(self, window: Window, following: Micro | None) -> tuple[float, float]:
        """Leave the window's gradients, clipped, in the parameters. Returns its mean loss and their norm before.

        following: the first micro-step that this process computes of the next window.
        """
        state = self.state
        weight = 1.0 if self.objective is not None else sum(weight_of(micro) for micro in window)
        self._next = following
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
            torch.manual_seed(_mix(self.seed, self.state.step, place or 0))
            following = own[index + 1][1] if index + 1 < len(own) else self._next
            with self.foresight.of(micro) if self.precision.device.type == "cpu" else nullcontext():
                scale = 0.0 if place is None else self.state.scale / weight
                loss = self.forward.backward(micro, scale=scale, following=following, weigh=weigh)
                if place is not None:
                    sums[place] = loss
        self._micro = ()
        return sums

    def losses(self, window: Window) -> Tensor:
        """The losses of a window's micro-steps without gradients, of all processes: (micro-steps,)."""
        return self.world.added(self._fitting(window, self._summed))

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
        if self.clip is None:
            return norm_of(nn.utils.get_total_norm(found))
        return norm_of(nn.utils.clip_grad_norm_(self.named.values(), self.clip))


def _mix(seed: int, step: int, micro: int) -> int:
    """One seed from three numbers, different for all that a run can have."""
    return ((seed * 1_000_003 + step) * 1_009 + micro) % 2**63
