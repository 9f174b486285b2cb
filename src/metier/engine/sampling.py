"""From logits to the next token: greedy, or drawn with temperature and top-p.

Every row draws from a generator of its own, so what a prompt is answered does not depend on its batch mates.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metier.core.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 takes the likeliest token. top_p: draw only among the likeliest tokens that together reach this
    probability; 1 keeps all. Raises InputError for values outside [0, inf) and (0, 1].
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError("temperature must be 0 or more", where="temperature", value=self.temperature)
        if not 0 < self.top_p <= 1:
            raise InputError("top_p must be above 0 and at most 1", where="top_p", value=self.top_p)

    def choose(self, logits_bv: "Tensor", draws: Sequence[random.Random]) -> list[int]:
        """One token id a row. draws: a generator a row, of which exactly one number is taken, none when greedy.

        Raises ModelError where the logits hold NaN.
        """
        top_b, first_b = logits_bv.max(-1)  # NaN is above all numbers here
        if bool(top_b.isnan().any()):
            raise ModelError(
                "the model's output is not a number", cure="its training diverged: lower the learning rate"
            )
        if self.temperature == 0:
            once = bool(((logits_bv == top_b[:, None]).sum(-1) == 1).all())
            chosen: list[int] = first_b.tolist()
            return chosen if once else greedy(logits_bv)
        uniform = [draw.random() for draw in draws]
        return _drawn(logits_bv, self.temperature, self.top_p, uniform)


def greedy(logits_bv: "Tensor") -> list[int]:
    """The likeliest id of each row; of equally likely ones the lowest, which argmax does not promise."""
    import torch

    ids_v = torch.arange(logits_bv.shape[-1], device=logits_bv.device)
    at_top_bv = logits_bv == logits_bv.amax(-1, keepdim=True)
    lowest_b: list[int] = torch.where(at_top_bv, ids_v, logits_bv.shape[-1]).amin(-1).tolist()
    return lowest_b


def _drawn(logits_bv: "Tensor", temperature: float, top_p: float, uniform: Sequence[float]) -> list[int]:
    """Inverse of the cumulative distribution, in float64: the same number draws the same token on every machine."""
    import torch

    p_bv, order_bv = (logits_bv.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_bv = p_bv.cumsum(-1) - p_bv
    p_bv = p_bv.masked_fill(before_bv >= top_p, 0.0)  # the token that crosses top_p stays, so one always does
    reach_bv = p_bv.cumsum(-1)
    wanted_b1 = torch.tensor(uniform, dtype=torch.float64, device=logits_bv.device)[:, None] * reach_bv[:, -1:]
    rank_b1 = (reach_bv <= wanted_b1).sum(-1, keepdim=True)
    rank_b1 = rank_b1.minimum((p_bv > 0).sum(-1, keepdim=True) - 1)  # rounding at the far end
    chosen: list[int] = order_bv.gather(-1, rank_b1)[:, 0].tolist()
    return chosen


def generators(prompts: Iterable[Sequence[int]], seed: int) -> list[random.Random]:
    """A random generator a prompt, by the seed, the prompt's ids and how often that prompt came before.

    So an answer stays the same when other prompts are added, left out or reordered, and a prompt that is asked twice
    gets two answers.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    made = []
    for prompt in prompts:
        key = tuple(prompt)
        text = f"{seed}:{seen[key]}:{','.join(map(str, key))}"
        made.append(random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest())))
        seen[key] += 1
    return made


def forbid(logits_bv: "Tensor", banned: "torch.Tensor | None") -> "Tensor":
    """The logits with those of `banned` ids at minus infinity, as float32."""
    logits_bv = logits_bv.float()
    return logits_bv if banned is None else logits_bv.index_fill(-1, banned, float("-inf"))
