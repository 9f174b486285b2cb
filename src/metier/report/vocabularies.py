"""Vocabularies: what an extension of a tokenizer saved, in tokens and seconds, and what it did to the model.

Bits per byte is the one measure by which models with different tokenizers can be compared; a model of the same run that
was trained on the same texts without the extension is what it is compared with. Says so where there is none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metier.report.collect import Run, Score, Step
from metier.report.wording import count, cut, duration, interval, number

EXAMPLES = 12
LONGEST_PIECE = 40
NONE = "none"
BEGAN = {
    "mean": "Each began as the mean of its old pieces.",
    "weighted": "Each began as the mean of its old pieces, weighted by their letters.",
    "description": "Each began as the mean of what is written about it, or of its old pieces.",
    "random": "Each began at random.",
}


@dataclass(frozen=True)
class Fertility:
    """One kind of text under both tokenizers, as shown. after: empty for a tokenizer made from nothing."""

    text: str
    words: str
    per_word: tuple[str, str]
    per_byte: tuple[str, str]
    saved: str


@dataclass(frozen=True)
class Example:
    """A new token, its old pieces, and how often it stands in the measured text."""

    token: str
    pieces: tuple[str, ...]
    count: str


@dataclass(frozen=True)
class Vocabulary:
    """One step. sentence: what it came to. fresh: made from nothing, so that there is no before."""

    step: str
    sentence: str
    fresh: bool
    fertility: tuple[Fertility, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Twin:
    """A contender of a text score.

    rows: how its new rows began, `none` without new ones. bits, verdicts: by text; a verdict names whom it is against.
    tokens, seconds: of all training in this run. answer_tokens, answer_seconds: of a mean answer.
    """

    name: str
    role: str
    rows: str
    bits: tuple[str, ...]
    verdicts: tuple[str, ...]
    tokens: str
    seconds: str
    answer_tokens: str
    answer_seconds: str


@dataclass(frozen=True)
class Ablation:
    """Contenders with and without new tokens side by side, on each text."""

    texts: tuple[str, ...]
    twins: tuple[Twin, ...]
    note: str


def vocabularies(run: Run) -> list[Vocabulary]:
    """Every step that changed or made a tokenizer."""
    return [_vocabulary(step) for step in run.steps if step.vocabulary is not None]


def ablation(run: Run, roles: Mapping[str, str]) -> Ablation | None:
    """Models with new tokens beside those without, by bits per byte; None where no such model was scored.

    roles: contender -> its role on the leaderboard.
    """
    extended = {s.name: s for s in run.steps if s.kind == "extend_tokenizer"}
    scores = next(
        (s for s in run.scores if s.of_text and any(_extension(run, r.contender, extended) for r in s.rows)), None
    )
    if scores is None:
        return None
    texts = tuple(dict.fromkeys(r.group for r in scores.rows if r.metric == "bits_per_byte" and r.group != "all"))
    names = dict.fromkeys(r.contender for r in scores.rows)
    twins = []
    for name in names:
        rows = [scores.row(name, "bits_per_byte", text) for text in texts]
        tokens, seconds = _training(run, name)
        answer_tokens, answer_seconds = _answers(run, name)
        twins.append(
            Twin(
                run.label(name),
                roles.get(name, ""),
                _rows(_extension(run, name, extended)),
                tuple(f"{number(r.mean, 3)} {interval(r.low, r.high, 3)}".strip() if r else "" for r in rows),
                tuple(_verdict(run, row) for row in rows),
                tokens,
                seconds,
                answer_tokens,
                answer_seconds,
            )
        )
    alone = all(twin.rows != NONE for twin in twins)
    note = (
        "There is no model without the new tokens here, so what they did to the model cannot be told."
        if alone
        else "A fair twin read the same texts, and so the same bytes, without the new tokens."
    )
    return Ablation(texts, tuple(twins), note)


def _vocabulary(step: Step) -> Vocabulary:
    assert step.vocabulary is not None
    about = step.vocabulary.about
    fresh = step.kind == "train_tokenizer"
    found = about.get("fertility") or {}
    texts = [(name, found[name]) for name in ("domain", "general") if found.get(name)]
    return Vocabulary(
        step.name,
        _sentence(about, fresh=fresh),
        fresh,
        tuple(_fertility(name, row, fresh=fresh) for name, row in texts),
        tuple(
            Example(
                cut(str(row.get("token", "")).strip(), LONGEST_PIECE),
                tuple(cut(str(piece).replace(" ", "␣"), LONGEST_PIECE) for piece in row.get("pieces") or ()),
                count(row.get("count")),
            )
            for row in step.vocabulary.tokens[:EXAMPLES]
        ),
    )


def _sentence(about: Mapping[str, Any], *, fresh: bool) -> str:
    if fresh:
        return (
            f"A {about.get('tokenizer', '')} tokenizer of {count(about.get('vocabulary'))} tokens, made from the texts."
        )
    if not about.get("extended"):
        return f"Not extended: {about.get('reason', '')}. The model was passed through."
    saving = ((about.get("fertility") or {}).get("domain") or {}).get("saving")
    share = number(100 * (saving or 0), 1)
    began = BEGAN.get(str(about.get("initialise")), "")
    return f"{count(about.get('new_tokens'))} new tokens save {share} % of the domain's tokens. {began}"


def _fertility(name: str, row: Mapping[str, Any], *, fresh: bool) -> Fertility:
    def pair(key: str, digits: int) -> tuple[str, str]:
        value = row.get(key)
        if fresh:
            return number(value, digits), ""
        value = value or {}
        return number(value.get("before"), digits), number(value.get("after"), digits)

    saving = None if fresh else row.get("saving")
    saved = "" if saving is None else f"{number(100 * saving, 2)} %"
    return Fertility(name, count(row.get("words")), pair("tokens_per_word", 3), pair("tokens_per_byte", 4), saved)


def _extension(run: Run, name: str, extended: Mapping[str, Step]) -> Step | None:
    """The extension that a model was made from, if it was extended at all."""
    made_from = run.ancestors(name)
    found = (step for step_name, step in extended.items() if step_name in made_from)
    return next((step for step in found if step.vocabulary and step.vocabulary.about.get("extended")), None)


def _rows(step: Step | None) -> str:
    if step is None or step.vocabulary is None:
        return NONE
    about = step.vocabulary.about
    return f"{about.get('initialise', '')}, {count(about.get('new_tokens'))} ({step.name})"


def _verdict(run: Run, row: Score | None) -> str:
    return "; ".join(f"{v.verdict} ({run.label(v.against)})" for v in row.versus) if row else ""


def _chain(run: Run, name: str) -> Iterator[Step]:
    """The steps that trained a model one after another."""
    made_from = run.ancestors(name)
    return (step for step in run.steps if step.name in made_from and step.training and step.training.about)


def _training(run: Run, name: str) -> tuple[str, str]:
    steps = list(_chain(run, name))
    if not steps:
        return "", ""
    tokens = sum(int(s.training.about.get("tokens_seen") or 0) for s in steps if s.training)
    seconds = [s.training.measured.get("training_seconds") for s in steps if s.training]
    known = [float(s) for s in seconds if s is not None]
    return count(tokens), duration(sum(known)) if known else ""


def _answers(run: Run, name: str) -> tuple[str, str]:
    """Tokens and seconds of a mean answer, where it was asked."""
    for answers in run.answers:
        texts = answers.texts.get(name)
        if not texts:
            continue
        tokens = [float(row["tokens"]) for row in texts.values() if row.get("tokens") is not None]
        measured = next((c.measured for c in answers.contenders if c.name == name), {})
        seconds = measured.get("seconds")
        return (
            number(sum(tokens) / len(tokens), 1) if tokens else "",
            duration(seconds / len(texts)) if seconds is not None else "",
        )
    return "", ""
