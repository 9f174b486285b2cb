"""What unlearning minimises: the likelihood of what is to be forgotten goes down, that of what is to be kept stays.

    npo                  negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868): the mean over forgotten
                         sequences of -(2 / beta) log sigmoid(-beta log(p / p_start)), where p is the sequence's
                         probability and p_start what the model gave it before. Its gradient fades once p is small
    gradient_difference  minus the mean loss of the forgotten tokens (as in TOFU, Maini et al. 2024, arXiv 2401.06121).
                         Its gradient never fades, so it destroys the model where nothing stops it
    simnpo               (Fan et al. 2024, arXiv 2410.07163): the mean of -(2 / beta) log sigmoid(-(beta / length) log p
                         - gamma): without a start model, by the mean log-probability of a token

To each the mean loss of the retained tokens is added, `retain_weight` times. All of them are functions of the losses
of single targets, so their gradient is that of a weighted sum of those: one pass through the model gives the losses,
from these follow the weights, and the training loop needs to know no more. Pieces to forget carry the weight -1
(`to_forget`); each block is one of them with as many retained pieces as asked for.

Costs, beside training: one more product with the output head, and for npo one pass over the forget set at the start.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from metier.train.batches import Batches, Block, Micro, Piece, Window, targets_of
from metier.train.forward import Forward
from metier.train.rows import Row

Loss = Literal["npo", "gradient_difference", "simnpo"]


def to_forget(piece: Piece) -> Piece:
    """The piece, marked as one to forget."""
    return replace(piece, weights=np.full(len(piece), -1, np.float32))


def is_forgotten(piece: Piece) -> bool:
    """Whether the piece is marked as one to forget."""
    return piece.weights is not None and bool(piece.weights[0] < 0)


@dataclass(frozen=True, eq=False)
class Pairs(Batches):
    """Windows of blocks of one piece to forget and some to retain.

    pieces: to forget, each once an epoch. retain: drawn in passes, each in a new order. each: how many of them stand
    beside a piece to forget.
    """

    retain: tuple[Piece, ...] = ()
    each: int = 1

    def blocks(self, epoch: int) -> list[Block]:
        """An epoch's blocks in the order in which they are read."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.pieces))
        kept = self._passes(random)
        return [(self.pieces[i], *(next(kept) for _ in range(self.each))) for i in order]

    def _passes(self, random: np.random.Generator) -> Iterator[Piece]:
        while True:
            for i in random.permutation(len(self.retain)):
                yield self.retain[i]


@dataclass(frozen=True)
class Objective:
    """The loss with its settings. start: log-probability of each piece to forget under the model at the start (npo)."""

    loss: Loss = "npo"
    beta: float = 0.1
    gamma: float = 0.0
    retain_weight: float = 1.0
    start: Mapping[Piece, float] = field(default_factory=dict)

    def of(self, window: Window) -> Callable[[Row, Tensor], tuple[Tensor, Tensor]]:
        """For the micro-steps of one window: from a row and its targets' losses to their weights and the objective."""
        forgotten = [piece for micro in window for piece in micro if is_forgotten(piece)]
        kept = [piece for micro in window for piece in micro if not is_forgotten(piece)]
        sequences = max(1, len(forgotten))
        tokens, retained = max(1, targets_of(forgotten)), max(1, targets_of(kept))

        def weigh(row: Row, losses: Tensor) -> tuple[Tensor, Tensor]:
            weights = torch.empty_like(losses)
            total = losses.new_zeros(())
            first = 0
            for piece, _, _ in row.parts:
                own = slice(first, first + piece.trained)
                first += piece.trained
                said = losses[own].sum()
                slope: float | Tensor
                if not is_forgotten(piece):
                    slope, value = self.retain_weight / retained, self.retain_weight * said / retained
                elif self.loss == "gradient_difference":
                    slope, value = -1 / tokens, -said / tokens
                else:
                    slope, value = self._preferred(piece, said, sequences)
                weights[own] = slope
                total = total + value
            return weights, total

        return weigh

    def _preferred(self, piece: Piece, said: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """npo and simnpo of one sequence: the slope by its summed loss `said`, and its part of the objective."""
        if self.loss == "npo":
            raised, length = -self.beta * (said + self.start[piece]), 1  # beta log(p / p_start), log p being -said
        else:
            raised, length = self.gamma - self.beta * said / piece.trained, piece.trained
        slope = -2 * torch.sigmoid(raised) / (length * sequences)
        return slope, -2 / self.beta * F.logsigmoid(-raised) / sequences


def log_probabilities(
    forward: Forward, micros: Sequence[Micro], check_stop: Callable[[], None] = lambda: None
) -> dict[Piece, float]:
    """The log-probability of each piece's targets under the model as it is, in nats, without dropout."""
    found: dict[Piece, float] = {}
    was_training = forward.model.training
    forward.model.eval()
    try:
        with forward:
            for micro in micros:
                check_stop()
                losses = forward.losses(micro)
                ends = np.cumsum([piece.trained for piece in micro])
                for piece, end in zip(micro, ends, strict=True):
                    found[piece] = -float(losses[end - piece.trained : end].double().sum())
    finally:
        forward.model.train(was_training)
    assert all(math.isfinite(value) for value in found.values())
    return found
