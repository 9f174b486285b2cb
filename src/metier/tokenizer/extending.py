"""The stage `extend_tokenizer` at work: mine, judge whether it pays, extend, give rows, measure, write.

Costs seconds a million words of text and the model's weights in memory, as they are stored.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from metier.core.errors import DataError
from metier.core.measure import Stopwatch
from metier.core.stage import Context
from metier.models.adapter import merge
from metier.models.builtin import is_adapter
from metier.models.extension import Extension, write_extension
from metier.models.load import load, read_config, read_tokenizer, stored_dtype
from metier.models.save import save_model
from metier.models.shape import cast_, count_parameters, skeleton
from metier.text.artifacts import read_jsonl, write_json, write_jsonl
from metier.tokenizer import sentencepiece_file
from metier.tokenizer.descriptions import read_descriptions
from metier.tokenizer.extend import PIECES, Parsed, parsed, write
from metier.tokenizer.fertility import Fertility, Seen, compare, seen
from metier.tokenizer.initialise import Recipe, by_letters, evenly, resize
from metier.tokenizer.kinds import Kind, pieces
from metier.tokenizer.mining import Mined, count, mine, whole_words
from metier.tokenizer.sizes import check_size
from metier.tokenizer.stage import ExtendTokenizer, check_model, check_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOKENS = "tokens.jsonl"


@dataclass(frozen=True)
class Texts:
    """Where texts to learn words from and to measure on are. split: of the domain's, what is measured on."""

    domain: Callable[[], Iterator[str]]
    measured: Callable[[], Iterator[str]]
    split: str
    general: Callable[[], Iterator[str]] | None
    general_measured: Callable[[], Iterator[str]] | None


@dataclass(frozen=True)
class Plan:
    """The new vocabulary, not yet the model's. tokens: merged pieces and then added ones; made_of: their old pieces."""

    base: Parsed
    old: "PreTrainedTokenizerFast"
    new: "PreTrainedTokenizerFast"
    tokens: tuple[str, ...]
    made_of: tuple[tuple[str, ...], ...]
    added: tuple[str, ...]
    mined: Mined
    domain: Fertility
    general: Fertility | None
    seen: list[Seen]


def extend(stage: ExtendTokenizer, ctx: Context) -> dict[str, float]:
    """Run the stage. Raises InputError for what cannot be extended."""
    watch = Stopwatch()
    folder = ctx.source(stage.model).path
    check_model(folder, spare_rows=stage.spare_rows, words=stage.words)
    check_size(ctx.source(stage.documents).path, stage.documents)
    plan = _plan(stage, ctx, folder)
    mining_seconds = watch.seconds
    ctx.check_stop()
    reason = _reason(stage, plan)
    if reason:
        ctx.events.note(f"not extended: {reason}; the model is passed through")
        _pass_through(folder, ctx.out, plan.base.first_id)
    else:
        _extend_model(stage, ctx, folder, plan)
    write_jsonl(ctx.out / TOKENS, (one.json() for one in plan.seen))
    write_json(ctx.out / "about.json", _about(stage, plan, folder, ctx.out, reason))
    write_json(
        ctx.measured / "about.json",
        {"seconds": round(watch.seconds, 3), "mining_seconds": round(mining_seconds, 3)},
    )
    saving = plan.domain.saving
    found = {"new_tokens": 0 if reason else len(plan.tokens), "projected_saving": round(saving, 6)}
    if plan.general is not None:
        found["general_saving"] = round(plan.general.saving, 6)
    return found


def _plan(stage: ExtendTokenizer, ctx: Context, folder: Path) -> Plan:
    """Mine, and write the extended tokenizer to the scratch folder."""
    tokenizer = read_tokenizer(folder)
    base = parsed(tokenizer)
    check_rows(int(read_config(folder).vocab_size), base.first_id, spare_rows=stage.spare_rows, where=str(folder))
    backend, kind = tokenizer.backend_tokenizer, base.kind
    texts = _texts(stage, ctx)
    if texts.general is None:
        ctx.events.note(
            "there is no general text to leave as it is: name a step with `general`, or give the documents step replay"
        )
    domain = count(backend, kind, texts.domain(), _tick(ctx, "domain"))
    general = count(backend, kind, texts.general(), _tick(ctx, "general")) if texts.general else Counter[str]()
    plain, odd = _wanted(stage, base, tokenizer)
    search = mine if stage.style == "merges" else whole_words
    mined = search(
        backend,
        kind,
        domain,
        general,
        most=max(0, stage.max_new_tokens - len(odd)),
        least_count=stage.min_count,
        general_share=stage.max_general,
        wanted=[kind.written(f" {word}") for word in plain],
        tick=_tick(ctx, "new tokens", stage.max_new_tokens),
    )
    if stage.style == "merges":
        made, added = mined.pieces, tuple(odd)
    else:
        made, added = (), tuple(dict.fromkeys([*stage.words, *mined.pieces]))[: stage.max_new_tokens]
    _check_count(stage, len(made) + len(added))
    new = write(tokenizer, base, made, added, _fresh(ctx.scratch / "tokenizer"))
    _check_made(kind, plain, new)
    if (new_file := ctx.scratch / "tokenizer" / PIECES).is_file():
        if added:
            new_file.unlink()
            ctx.events.note(f"{PIECES} is left out, as it knows no added tokens: use tokenizer.json")
        else:
            measured = texts.measured()
            told = sentencepiece_file.keep_in_step(new_file.parent, tokenizer, new, made, base.first_id, measured)
            ctx.events.note(told)
    old_pieces = [pieces(backend, piece) for piece in made] + [
        [backend.id_to_token(i) for i in backend.encode(word, add_special_tokens=False).ids] for word in added
    ]
    fertility, used = compare(backend, new.backend_tokenizer, texts.measured(), base.first_id, _tick(ctx, "measure"))
    left = None
    if texts.general_measured is not None:
        left, _ = compare(backend, new.backend_tokenizer, texts.general_measured(), base.first_id)
    found = seen(kind, made, added, old_pieces, used, base.first_id)
    tokens = (*made, *added)
    return Plan(base, tokenizer, new, tokens, tuple(map(tuple, old_pieces)), added, mined, fertility, left, found)


def _check_count(stage: ExtendTokenizer, count: int) -> None:
    """Refuse words of which the steps alone are more than may be added."""
    if count > stage.max_new_tokens:
        raise DataError(
            f"`words` and the steps to them are {count:,} tokens, and max_new_tokens is {stage.max_new_tokens:,}",
            where="words",
            value=len(stage.words),
            cure=f"set max_new_tokens to {count} or more, or use `style: added`, which takes no steps",
        )


def _check_made(kind: Kind, words: list[str], new: "PreTrainedTokenizerFast") -> None:
    """Refuse words that merges do not make after all."""
    for word in words:
        if len(pieces(new.backend_tokenizer, kind.written(f" {word}"))) != 1:
            raise DataError(
                "merges do not make this word one token",
                where="words",
                value=word,
                cure="leave it out, or use `style: added`",
            )


def _wanted(stage: ExtendTokenizer, base: Parsed, tokenizer: "PreTrainedTokenizerFast") -> tuple[list[str], list[str]]:
    """The user's own words: those that merges can make, and those that they cannot."""
    if len(stage.words) > stage.max_new_tokens:
        raise DataError(
            f"there are {len(stage.words):,} words, and max_new_tokens allows {stage.max_new_tokens:,} new tokens",
            where="words",
            cure="raise max_new_tokens; with merges, each step to a word is a token too",
        )
    if stage.style == "added":
        return [], []
    vocabulary = tokenizer.get_vocab()
    plain: list[str] = []
    odd: list[str] = []
    for word in stage.words:
        piece = base.kind.written(f" {word}")
        parts = pieces(tokenizer.backend_tokenizer, piece)
        steps = ["".join(parts[:end]) for end in range(2, len(parts) + 1)]
        fits = all(base.kind.is_word(step) and step not in vocabulary for step in steps)
        (plain if fits else odd).append(word)
    return plain, odd


def _texts(stage: ExtendTokenizer, ctx: Context) -> Texts:
    """The domain's texts, and held-out ones to measure on where there are any; the general ones likewise, or halved."""
    domain = ctx.source(stage.documents).path
    split = "heldout" if _has_rows(domain / "heldout.jsonl") else "train"
    if split == "train":
        ctx.events.note(
            "the documents have no held-out texts, so fertility is measured on those that words were taken from: "
            "a little too good"
        )
    learn, measure = _general(stage, ctx, domain)
    return Texts(_reader(domain / "train.jsonl"), _reader(domain / f"{split}.jsonl"), split, learn, measure)


Reader = Callable[[], Iterator[str]]


def _general(stage: ExtendTokenizer, ctx: Context, domain: Path) -> tuple[Reader | None, Reader | None]:
    if stage.general is None:
        replay = domain / "replay.jsonl"
        return (_reader(replay, 0), _reader(replay, 1)) if _has_rows(replay) else (None, None)
    folder = ctx.source(stage.general).path
    train, held = folder / "train.jsonl", folder / "heldout.jsonl"
    if _has_rows(train) and _has_rows(held):
        return _reader(train), _reader(held)
    only = next((path for path in (train, held) if _has_rows(path)), None)
    if only is None:
        raise DataError("the step has no texts", where="general", value=stage.general, cure="name another step")
    return _reader(only, 0), _reader(only, 1)


def _reader(path: Path, half: int | None = None) -> Reader:
    """A file's texts, or one half (0 or 1) of them: by what they hold, as kinds of text may take turns in a file."""

    def texts() -> Iterator[str]:
        for row in read_jsonl(path):
            text = str(row["text"])
            if half is None or crc32(text.encode("utf-8")) % 2 == half:
                yield text

    return texts


def _has_rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _tick(ctx: Context, task: str, total: float | None = None) -> Callable[[int], None]:
    def tick(done: int) -> None:
        ctx.check_stop()
        ctx.events.progress(task, done, total, unit="tokens" if total else "texts")

    return tick


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _reason(stage: ExtendTokenizer, plan: Plan) -> str:
    """Why the model is not extended; empty where it is."""
    if not plan.tokens:
        what = f"no piece of the domain's words occurs {stage.min_count} times and is not there already"
        if stage.extend == "auto":
            return what
        raise DataError(what, where="documents", value=stage.documents, cure="give it more texts, or lower min_count")
    if plan.domain.saving < stage.wanted_saving:
        return (
            f"{len(plan.tokens):,} new tokens would save {plan.domain.saving:.1%} of the domain's tokens, and "
            f"min_saving is {stage.wanted_saving:.1%}"
        )
    return ""


def _extend_model(stage: ExtendTokenizer, ctx: Context, folder: Path, plan: Plan) -> None:
    """Load, add rows, save."""
    model = _plain_model(folder)
    old_rows = model.get_input_embeddings().weight.shape[0]
    needed = max(old_rows, plan.base.first_id + len(plan.tokens))
    multiple = stage.pad_to_multiple or 1
    rows = -(-needed // multiple) * multiple
    write_extension(Extension(plan.base.first_id, len(plan.tokens), rows), ctx.scratch / "tokenizer")
    recipe = Recipe(stage.initialise, _made_of(stage, ctx, plan), stage.match_norms, stage.seed)
    resize(model, recipe, first=plan.base.first_id, rows=rows)
    save_model(model, plan.new, ctx.out)
    domain = plan.domain
    ctx.events.note(
        f"{len(plan.tokens):,} new tokens: {domain.tokens[0] / domain.words:.3f} -> "
        f"{domain.tokens[1] / domain.words:.3f} tokens a word on domain text ({domain.saving:.1%} fewer), "
        f"{stage.initialise} rows"
    )


def _plain_model(folder: Path) -> "PreTrainedModel":
    dtype = stored_dtype(folder)
    if not is_adapter(folder):
        return load(folder, dtype=dtype).model
    model = merge(load(folder))
    cast_(model.parameters(), dtype)
    return model


def _pass_through(folder: Path, out: Path, first: int) -> None:
    """The model as it is; an adapter merged, so that what comes after finds one kind of model."""
    model = _plain_model(folder)
    save_model(model, read_tokenizer(folder), out)
    write_extension(Extension(first, 0, model.get_input_embeddings().weight.shape[0]), out)


def _made_of(stage: ExtendTokenizer, ctx: Context, plan: Plan) -> tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]:
    """For each new token the old ids that its row is made of, with their weights."""
    backend = plan.old.backend_tokenizer
    told = read_descriptions(ctx.source(stage.descriptions).paths) if stage.descriptions else {}
    left = dict(told)
    found = []
    for token, parts in zip(plan.tokens, plan.made_of, strict=True):
        word = token if token in plan.added else plan.base.kind.shown(token).strip()
        text = told.get(word)
        left.pop(word, None)
        ids = [backend.token_to_id(part) for part in parts]
        if text is not None:
            ids = backend.encode(text, add_special_tokens=False).ids
        weights = evenly(len(ids))
        if stage.initialise == "weighted":
            weights = by_letters([plan.base.kind.shown(part) for part in parts])
        found.append((tuple(ids), weights))
    if left:
        ctx.events.warning(
            f"{len(left)} of {len(told)} descriptions are of words that are no new tokens, such as {next(iter(left))!r}"
        )
    return tuple(found)


def _about(stage: ExtendTokenizer, plan: Plan, folder: Path, out: Path, reason: str) -> dict[str, Any]:
    config = read_config(out)
    mined = plan.mined
    return {
        "method": "extend_tokenizer",
        "extended": not reason,
        "reason": reason,
        "tokenizer": plan.base.kind.name,
        "style": stage.style,
        "new_tokens": 0 if reason else len(plan.tokens),
        "added_tokens": 0 if reason else len(plan.added),
        "first_id": plan.base.first_id,
        "rows": {"before": int(read_config(folder).vocab_size), "after": int(config.vocab_size)},
        "initialise": stage.initialise,
        "stopped": mined.stopped,
        "fertility": {
            "domain": plan.domain.json(),
            "general": plan.general.json() if plan.general else None,
        },
        "parameters": {"trained": 0, "total": count_parameters(skeleton(config)).total},
    }
