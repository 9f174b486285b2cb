"""Make one model of several by arithmetic on their weights: average, task arithmetic, TIES, residual, interpolation.

A task vector is what training changed: a model's weights minus those of the model it was made from (Ilharco et al.
2023, arXiv 2212.04089). All is done on whole weights in float32, adapters merged first, so adapters of any rank, DoRA
and fully trained models mix; the sum of two LoRAs is then exact, which adding their factors would not be. Refuses
models of another base, shape or vocabulary. Costs, in float32: two models at a time; TIES all of them and one more.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metier.core.disk import write_whole
from metier.core.errors import MetierError, ModelError
from metier.core.events import Events
from metier.core.stage import STOP
from metier.engine.documents import document_nll
from metier.measure.statistics import compare
from metier.models.adapter import merge
from metier.models.load import Loaded, load, stored_dtype
from metier.models.save import save_model
from metier.models.shape import cast_, count_parameters
from metier.text.artifacts import write_json
from metier.text.chat import encode_document
from metier.text.nouns import Document

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG2 = math.log(2)
CheckStop = Callable[[], None]


def weighted(base: Path, models: Sequence[Path], weights: Sequence[float], check_stop: CheckStop) -> Loaded:
    """base + the sum of weight x (model - base), as a plain model. Weights that sum to 1 give the models' average.

    Its tokenizer is the first model's.
    """
    made = _plain(base)
    rest = 1.0 - math.fsum(weights)
    with torch.no_grad():
        for value in _parameters(made.model).values():
            value.mul_(rest)
        tokenizer = made.tokenizer
        for place, (folder, weight) in enumerate(zip(models, weights, strict=True)):
            check_stop()
            other = _plain(folder)
            _check_same(made, other, folder)
            theirs = _parameters(other.model)
            for name, value in _parameters(made.model).items():
                value.add_(theirs[name], alpha=weight)
            tokenizer = other.tokenizer if place == 0 else tokenizer
    return Loaded(made.model, tokenizer, base)


def ties(base: Path, models: Sequence[Path], weights: Sequence[float], density: float, check_stop: CheckStop) -> Loaded:
    """base + what the task vectors agree on (TIES, Yadav et al. 2023, arXiv 2306.01708), as a plain model.

    Of each vector the largest `density` of every tensor is kept; the sign that has more weight behind it wins at each
    place; the values of that sign are averaged by weight and added. The tokenizer is the first model's.
    """
    made = _plain(base)
    others = []
    for folder in models:
        check_stop()
        others.append(_plain(folder))
        _check_same(made, others[-1], folder)
    theirs = [_parameters(other.model) for other in others]
    with torch.no_grad():
        for name, value in _parameters(made.model).items():
            check_stop()
            value.add_(agreed([one[name] - value for one in theirs], weights, density))
    return Loaded(made.model, others[0].tokenizer, base)


def agreed(vectors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """What several changes of one tensor agree on: trimmed, signs elected, the winners' values averaged by weight.

    Scaled by the sum of the weights of all, as one vector of weight w gives w times itself.
    """
    kept = torch.stack([_largest(vector, density) for vector in vectors])
    shares = torch.tensor(weights, dtype=kept.dtype).reshape(-1, *[1] * vectors[0].dim())
    sign = (shares * kept).sum(0).sign()
    winning = (kept.sign() == sign) & (sign != 0)
    total = (shares * winning).sum(0)
    mean = (shares * kept * winning).sum(0) / total.clamp(min=torch.finfo(kept.dtype).tiny)
    return torch.where(total > 0, mean * math.fsum(weights) / len(weights), torch.zeros_like(mean))


def _largest(vector: Tensor, density: float) -> Tensor:
    """The vector with all but its largest `density` at zero; at least one number is kept."""
    keep = max(1, round(density * vector.numel()))
    if keep == vector.numel():
        return vector
    places = vector.abs().flatten().topk(keep, sorted=False).indices
    trimmed = torch.zeros_like(vector).flatten()
    trimmed[places] = vector.flatten()[places]
    return trimmed.reshape(vector.shape)


def residual(model: Path, chat: Path, base: Path, weight: float, check_stop: CheckStop) -> Loaded:
    """model + weight x (chat - base): a base that read on gets back what tuning had taught its sibling.

    Source: arXiv 2410.10739. The tokenizer, with its chat template, is the chat model's.
    """
    made = _plain(model)
    with torch.no_grad():
        for folder, share in ((chat, weight), (base, -weight)):
            check_stop()
            other = _plain(folder)
            _check_same(made, other, folder)
            theirs = _parameters(other.model)
            for name, value in _parameters(made.model).items():
                value.add_(theirs[name], alpha=share)
            if folder == chat:
                tokenizer = other.tokenizer
    return Loaded(made.model, tokenizer, model)


@dataclass(frozen=True)
class Try:
    """One weight. bits_per_byte: on the documents; rise: above the base's, with its paired interval."""

    weight: float
    bits_per_byte: float
    rise: float
    low: float | None
    high: float | None
    within: bool


@dataclass(frozen=True)
class Interpolated:
    """The strongest mixture within the limit, and all that was tried."""

    loaded: Loaded
    chosen: Try
    tries: tuple[Try, ...]


def interpolate(
    model: Path,
    base: Path,
    documents: Sequence[Document],
    *,
    weights: Iterable[float],
    limit: float,
    confidence: float = 0.95,
    events: Events | None = None,
    check_stop: CheckStop = lambda: None,
    kept: Path | None = None,
) -> Interpolated:
    """base + weight x (model - base) with the largest weight at which general text is not forgotten past a limit.

    Weights are tried from the largest on. One is within the limit where the bits per byte on the documents are, by the
    upper end of the paired interval, at most `limit` above the base's. Source: WiSE-FT, arXiv 2109.01903.
    kept: a folder where what was measured is remembered, so that a run that was stopped goes on.
    Raises MetierError where none is.
    """
    events = events or Events("interpolate")
    start = _plain(base)
    before = _bits(start, documents, check_stop, kept, "base")
    made = _plain(model)
    _check_same(start, made, model)
    first = _parameters(start.model)
    last = {name: value.clone() for name, value in _parameters(made.model).items()}
    sizes = [len(document.text.encode("utf-8")) for document in documents]
    tries: list[Try] = []
    for weight in sorted(set(weights), reverse=True):
        with torch.no_grad():
            for name, value in _parameters(made.model).items():
                value.copy_(torch.lerp(first[name], last[name], weight))
        bits = _bits(made, documents, check_stop, kept, f"{weight:g}")
        found = compare(bits, before, weights=sizes, confidence=confidence) if len(bits) > 1 else None
        rise = (math.fsum(bits) - math.fsum(before)) / sum(sizes)
        low, high = (found.difference.low, found.difference.high) if found else (None, None)
        within = (rise if high is None else max(rise, high)) <= limit
        tries.append(Try(weight, math.fsum(bits) / sum(sizes), rise, low, high, within))
        events.note(
            f"weight {weight:g}: {tries[-1].bits_per_byte:.4f} bits per byte, {rise:+.4f} against the base; "
            + ("within the limit" if within else f"past the limit of {limit:+g}")
        )
        if within:
            return Interpolated(made, tries[-1], tuple(tries))
    raise MetierError(
        f"every weight forgets more general text than the limit of {limit:g} bits per byte allows",
        where="weights",
        value=[f"{one.weight:g}: {one.rise:+.4f}" for one in tries],
        cure="allow more with max_rise, give smaller weights, or train with more replay",
    )


def write_combined(
    made: Loaded, source: Path, out: Path, dtype: str, about: Mapping[str, object], *, stop: Iterable[int]
) -> dict[str, float]:
    """Write the model and about.json. source: whose number format `base` means. Returns the step's metrics."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    stored = torch.bfloat16 if stored_dtype(source) == torch.bfloat16 else torch.float32
    wanted = stored if dtype == "base" else types[dtype]
    total = count_parameters(made.model).total
    if any(not bool(value.isfinite().all()) for value in made.model.parameters()):
        raise MetierError(
            "a weight of the combined model is no finite number", where="weights", cure="use smaller weights"
        )
    cast_(made.model.parameters(), wanted)
    save_model(made.model, made.tokenizer, out, stop=stop)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    name = str(wanted).removeprefix("torch.")
    facts = {"dtype": name, "parameters": {"trained": 0, "total": total}, "bytes": size}
    write_json(out / "about.json", {**about, **facts})
    return {"parameters": total, "bytes": size}


def _plain(folder: Path) -> Loaded:
    """The model in a folder as a whole one, in float32."""
    loaded = load(folder)
    return Loaded(merge(loaded), loaded.tokenizer, folder)


def _parameters(model: "PreTrainedModel") -> dict[str, Tensor]:
    """The weights by name, a tied one once."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def _check_same(ours: Loaded, theirs: Loaded, folder: Path) -> None:
    """Raise ModelError unless two models have the same weights by name and shape, and the same vocabulary."""
    mine, other = _parameters(ours.model), _parameters(theirs.model)
    if mine.keys() != other.keys():
        name = sorted(mine.keys() ^ other.keys())[0]
        raise _another(f"{name} is in one alone", folder, ours)
    for name, value in mine.items():
        if value.shape != other[name].shape:
            raise _another(f"{name} is {list(other[name].shape)} there, and {list(value.shape)} here", folder, ours)
    if ours.tokenizer.get_vocab() != theirs.tokenizer.get_vocab():
        raise _another("their tokenizers give other ids", folder, ours)


def _another(why: str, folder: Path, ours: Loaded) -> ModelError:
    return ModelError(
        f"the models were not made from one base: {why}",
        where=str(ours.folder),
        value=str(folder),
        cure="combine models that were trained from the same one",
    )


def _bits(
    loaded: Loaded, documents: Sequence[Document], check_stop: CheckStop, kept: Path | None, name: str
) -> list[float]:
    """The bits that each document takes. kept: the folder where they are remembered under `name`."""
    check_stop()
    path = kept / f"bits-{name}.json" if kept else None
    if path is not None and path.is_file():
        known: list[float] = json.loads(path.read_text(encoding="utf-8"))
        return known
    ids = [encode_document(loaded.tokenizer, document.text) for document in documents]
    found = [one.nll / LOG2 for one in document_nll(loaded, ids, should_stop=STOP.get())]
    if path is not None:
        write_whole(path, json.dumps(found))
    return found
