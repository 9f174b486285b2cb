"""Merge an adapter into its base, and publish the result only if it answers as the adapter did.

The sum is made in float32. Fixed prompts then go through the adapter, through the merged model, and through what was
written to disk and loaded again: the first two must agree within `TOLERANCE`, or nothing is published; what rounding to
bfloat16 costs is measured and reported. Costs twice the model's float32 size in memory, and seconds for a small one.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from metier.core.errors import DataError, MetierError
from metier.core.events import Events
from metier.models.adapter import merge
from metier.models.builtin import base_link, check_folder, is_adapter
from metier.models.load import Loaded, load, stored_dtype
from metier.models.save import save_model
from metier.models.shape import count_parameters
from metier.text.artifacts import write_json
from metier.text.chat import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DtypeName = Literal["base", "float32", "bfloat16"]

TOLERANCE = 1e-4
"""The largest difference of a logit, as a share of the largest logit (at least 1), that a float32 merge may make."""

PROMPTS = (
    "The water was cold and clear, and the small fish swam close to the stones.",
    "Question: What does it eat, and where does it live?\nAnswer:",
    "In 1998, 3.5 % of them (about 120) were found at depths of 40-60 m; why?",
)
_RANDOM_PROMPTS, _RANDOM_LENGTH = 2, 64
_MODEL_SUFFIXES = {".json", ".safetensors", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class Parity:
    """How far a model is from the adapter that it was made of, over every position of the fixed prompts.

    merged: the largest difference of a logit in float32, in memory. written: the same for the files, loaded again
    (rounding to bfloat16 included). largest: the largest logit's magnitude. same_top: share of positions where the
    files rank the same token first. tokens: positions compared.
    """

    merged: float
    written: float
    largest: float
    same_top: float
    tokens: int


@dataclass(frozen=True)
class Merged:
    """What a merge made. parity is None where there was no adapter. bytes: of the weights' files."""

    dtype: str
    total: int
    adapter_parameters: int
    bytes: int
    parity: Parity | None


def merge_model(
    source: Path,
    out: Path,
    *,
    dtype: DtypeName = "base",
    events: Events | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Merged:
    """Write the standalone model of `source` to `out`, with about.json.

    source: an adapter folder, or a whole model, which is passed through. dtype: of the written weights; `base` is
    bfloat16 where the base's files are, else float32. check_stop: called between the slow parts; may raise.
    Raises MetierError where the merged model does not agree with the adapter.
    """
    check_folder(source)
    events = events or Events("merge")
    wanted = _wanted(source, dtype)
    if is_adapter(source):
        merged = _merge_adapter(source, out, wanted, events, check_stop)
        origin: str | None = base_link(source)
    else:
        events.note("the model has no adapter: there is nothing to merge, and it is passed through")
        merged = _pass_through(source, out, dtype, wanted)
        origin = None
    about = {
        "method": "merge",
        "base": origin,
        "dtype": merged.dtype,
        "parameters": {"trained": 0, "total": merged.total},
        "adapter_parameters": merged.adapter_parameters,
        "bytes": merged.bytes,
        "parity": asdict(merged.parity) if merged.parity else None,
    }
    write_json(out / "about.json", about)
    return merged


def _wanted(source: Path, dtype: DtypeName) -> torch.dtype:
    if dtype == "base":
        return torch.bfloat16 if stored_dtype(source) == torch.bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def _merge_adapter(
    source: Path, out: Path, dtype: torch.dtype, events: Events, check_stop: Callable[[], None]
) -> Merged:
    loaded = load(source)
    prompts = _prompts(loaded)
    before = _logits(loaded.model, prompts)
    extra = count_parameters(loaded.model).total
    check_stop()
    plain = merge(loaded)
    total = count_parameters(plain).total
    largest = max(float(part.abs().max()) for part in before)
    in_memory = _difference(before, _logits(plain, prompts))
    _require("the merged model", in_memory, largest, source)
    check_stop()
    save_model(plain.to(dtype), loaded.tokenizer, out, stop=_stop(loaded.tokenizer, events))
    del plain, loaded  # so that two models at most are in memory
    after = _logits(load(out).model, prompts)
    written = _difference(before, after)
    if dtype == torch.float32:
        _require("the written model", written, largest, source)
    tokens = sum(len(prompt) for prompt in prompts)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(before, after, strict=True))
    parity = Parity(in_memory, written, largest, same / tokens, tokens)
    events.note(
        f"merged in float32: logits differ by at most {in_memory:.1e} of {largest:.1f}; as written ({_name(dtype)}) by "
        f"{written:.1e}, with the same first choice at {same} of {tokens} positions"
    )
    return Merged(_name(dtype), total, extra - total, _weight_bytes(out), parity)


def _pass_through(source: Path, out: Path, dtype: DtypeName, wanted: torch.dtype) -> Merged:
    stored = stored_dtype(source)
    if dtype == "base" or stored == wanted:
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix in _MODEL_SUFFIXES and path.name != "about.json":
                shutil.copyfile(path, out / path.name)
        total = count_parameters(load(out, dtype=stored).model).total
        return Merged(_name(stored), total, 0, _weight_bytes(out), None)
    loaded = load(source)
    save_model(loaded.model.to(wanted), loaded.tokenizer, out)
    return Merged(_name(wanted), count_parameters(loaded.model).total, 0, _weight_bytes(out), None)


def _stop(tokenizer: "PreTrainedTokenizerFast", events: Events) -> frozenset[int]:
    if not tokenizer.chat_template:
        return frozenset()
    try:
        return stop_ids(tokenizer)
    except DataError as error:
        events.warning(f"the chat template does not say how a turn ends ({error.what}): only the end token stops")
        return frozenset()


def _prompts(loaded: Loaded) -> list[list[int]]:
    """Ids that every run compares on: sentences, and seeded random ids that reach the whole vocabulary."""
    tokenizer, context = loaded.tokenizer, loaded.context
    prompts = [tokenizer.encode(text, add_special_tokens=True)[:context] for text in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    length = min(context, _RANDOM_LENGTH)
    for _ in range(_RANDOM_PROMPTS):
        prompts.append(torch.randint(0, len(tokenizer), (length,), generator=generator).tolist())
    return prompts


@torch.no_grad()
def _logits(model: "PreTrainedModel", prompts: list[list[int]]) -> list[torch.Tensor]:
    """Each prompt's logits, (tokens, vocabulary), one prompt at a time: padding would change the last digits."""
    return [model(torch.tensor([ids])).logits[0].float() for ids in prompts]


def _difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def _require(what: str, difference: float, largest: float, source: Path) -> None:
    if difference <= TOLERANCE * max(1.0, largest):  # also false for NaN
        return
    raise MetierError(
        f"not published: {what} does not answer as the adapter does",
        where=str(source),
        value=f"logits differ by {difference:.2e}, and the largest is {largest:.2e}",
        cure="answer with the adapter itself, or train it again: its weights may be damaged",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
