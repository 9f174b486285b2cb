"""From a model's folder to the folder of a smaller one: choose, cut, refit, write, read back.

What is written is loaded again by stock `AutoModelForCausalLM`, and must give the same logits to the last bit; else it
is not handed on. Costs the model in float32 once, with reconstruction twice, and what each way of choosing says.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metier.core.errors import DataError, MetierError
from metier.core.events import Events
from metier.models.adapter import merge
from metier.models.load import Loaded, load, stored_dtype
from metier.models.save import save_model
from metier.models.shape import cast_
from metier.prune.anatomy import Cut, Shape, shape_of
from metier.prune.importance import Scores, choose, scores
from metier.prune.methods import HeadsMethod, Importance, Method, WeightsMethod, WidthMethod
from metier.prune.reconstruct import reconstruct_
from metier.prune.sparse import thin_
from metier.prune.stream import Pieces
from metier.prune.surgery import Chosen, smaller
from metier.text.chat import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROBE_TOKENS = 48


@dataclass(frozen=True)
class Work:
    """What pruning is done with. ids: of calibration data, where it is needed."""

    source: Path
    method: Method
    reconstruct: bool
    ids: Pieces | None
    events: Events
    check_stop: Callable[[], None]


def load_plain(folder: Path) -> Loaded:
    """The model in float32, an adapter merged into its base, whose configuration then is the model's."""
    loaded = load(folder)
    return Loaded(merge(loaded), loaded.tokenizer, folder)


def shape_in(loaded: Loaded) -> Shape:
    """The shape of a loaded model. Raises ModelError for an architecture that cannot be pruned."""
    return shape_of(loaded.model.config.to_dict())


def importance(loaded: Loaded, work: Work, cut: Cut) -> Scores | None:
    """The scores that units are chosen by; None for weights, which are scored on the way."""
    if cut.what in ("weights", "2:4") or not cut.taken:
        return None
    method = work.method
    how: Importance = "activation"
    if isinstance(method, HeadsMethod):
        how = method.heads.importance
    elif isinstance(method, WidthMethod):
        how = method.width.importance
    return scores(loaded.model, shape_in(loaded), cut, how, work.ids, check_stop=work.check_stop)


def make(work: Work, cut: Cut, found: Scores | None, out: Path) -> Chosen:
    """Write the model without what the cut takes to `out`. found: by what to choose. Returns what was taken.

    Weights are written in the type that the source's are in. Raises MetierError where what was written is not what was
    made.
    """
    loaded = load_plain(work.source)
    shape, dtype = shape_in(loaded), stored_dtype(work.source)
    model, tokenizer = loaded.model, loaded.tokenizer
    chosen: Chosen = {}
    if isinstance(work.method, WeightsMethod):
        if cut.taken:
            thin_(
                model,
                cut,
                work.method.weights.rank,
                work.ids,
                check_stop=work.check_stop,
                on_block=lambda done, total: work.events.progress("pruning", done, total, unit="blocks"),
            )
    else:
        if found is not None:
            chosen = choose(found, shape, cut)
        model = smaller(model, work.source, cut, shape, chosen)
        del loaded
        if work.reconstruct and found is not None:
            assert work.ids is not None
            reconstruct_(
                model,
                load_plain(work.source).model,
                shape,
                cut,
                chosen,
                work.ids,
                check_stop=work.check_stop,
                on_block=lambda done, total: work.events.progress("reconstruction", done, total, unit="blocks"),
            )
    work.check_stop()
    cast_(model.parameters(), dtype)
    save_model(model, tokenizer, out, stop=stop_of(tokenizer))
    _check_written(model, out)
    del model
    gc.collect()  # a model's modules refer to one another in circles
    return chosen


@torch.no_grad()
def _check_written(model: "PreTrainedModel", out: Path) -> None:
    """Raise MetierError unless stock classes read from `out` a model with the same logits."""
    ids = _probe_ids(model)
    dtype = next(model.parameters()).dtype
    read = load(out, dtype=dtype).model
    if not torch.equal(model.eval()(ids).logits, read(ids).logits):
        raise MetierError(
            "not handed on: the pruned model, loaded again, does not answer as it did in memory",
            where=str(out),
            cure="this is a defect of the tool: the architecture has parts that it does not know",
        )


def _probe_ids(model: "PreTrainedModel") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, int(model.config.max_position_embeddings))
    return torch.randint(0, int(model.config.vocab_size), (2, length), generator=generator)


def stop_of(tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    """The ids that end a turn, beside the end token; none where the template does not say."""
    if not tokenizer.chat_template:
        return frozenset()
    try:
        return stop_ids(tokenizer)
    except DataError:  # a template that does not say how a turn ends: the end token stops
        return frozenset()
