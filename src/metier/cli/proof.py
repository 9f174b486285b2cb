"""What a training step will read, token by token, and four claims about it that are checked rather than believed.

1. One begin token opens every row, and there is no second.
2. Every answer ends with a token that stops generation, and that token is trained on.
3. No row is without a token to train on.
4. What a model is asked is, token for token, how the trained conversation begins.

Uses the tokenizer alone: no weights are loaded. Rows beyond `MOST` are looked at evenly spaced. Costs about two
seconds per million tokens, and importing transformers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from metier.core.errors import DataError
from metier.core.events import Events
from metier.core.fingerprint import digest
from metier.core.stage import ModelInput, Source, Stage
from metier.evaluate.stage import Answer
from metier.models.builtin import plain_config
from metier.pipeline import Planned
from metier.recipe import Recipe
from metier.text.artifacts import conversation_of, document_of, read_jsonl
from metier.text.nouns import Conversation
from metier.train.known import context_of
from metier.train.stage import Prompted, Training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST = 20_000
"""Rows of a split that are looked at."""
MOST_TOKENS = 400
"""Tokens shown of an example; of a longer one its beginning, its end, and where the first answer begins."""
BINS = 24
NAMED = 5
UNCUT = 10**9
TICK = 500
T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """A stretch of text and the ids it was made of. trained: the model learns to produce it."""

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """An example as it is trained on. left_out: tokens not shown; one without ids stands in their place."""

    id: str
    tokens: tuple[Token, ...]
    length: int
    left_out: int


@dataclass(frozen=True)
class Claim:
    """One of the claims, and of how many rows it was asked. failing: ids of some of which it is not true."""

    what: str
    rows: int
    failing: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True of every row that it is about."""
        return not self.failing


@dataclass(frozen=True)
class Proof:
    """What was found. rows: in the split; looked_at: of them. lengths: in tokens, uncut, sorted. limit: the longest."""

    step: str
    kind: str
    data: str
    prompt: str
    limit: int
    rows: int
    lengths: tuple[int, ...]
    cut: int
    masked: int
    trained_tokens: int
    max_masked: float
    claims: tuple[Claim, ...]
    shown: tuple[Shown, ...]

    @property
    def looked_at(self) -> int:
        """Rows that were encoded."""
        return len(self.lengths)

    def quantile(self, share: float) -> int:
        """The length that this share of the rows does not exceed."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]

    def beyond(self, limit: int) -> float:
        """The share of the rows that are longer than `limit` tokens."""
        return sum(length > limit for length in self.lengths) / len(self.lengths)

    @property
    def histogram(self) -> list[tuple[int, int]]:
        """Pairs (up to this many tokens, rows)."""
        width = max(1, -(-max(self.lengths) // BINS))
        bins = [0] * (-(-max(self.lengths) // width))
        for length in self.lengths:
            bins[(length - 1) // width] += 1
        return [((number + 1) * width, count) for number, count in enumerate(bins)]

    @property
    def trained_share(self) -> float:
        """The share of the tokens that are trained on."""
        return self.trained_tokens / max(1, sum(min(length, self.limit) for length in self.lengths))

    def problems(self) -> Iterator[DataError]:
        """What would stop the step, or make it teach something else than was meant."""
        bad = (self.cut + self.masked) / max(1, self.looked_at)
        if self.kind == "tune" and bad > self.max_masked:
            yield DataError(
                f"{self.cut} of {self.looked_at} examples are longer than {self.limit} tokens and would be cut, "
                f"{self.masked} more would keep no token to train on: the step stops above max_masked "
                f"({self.max_masked:.1%})",
                where="max_length",
                value=f"median {self.quantile(0.5)} tokens, longest {self.lengths[-1]}",
                cure="raise max_length (the model's context allowing), shorten these examples, or raise max_masked",
            )
        for claim in self.claims:
            if not claim.holds:
                yield DataError(
                    f"this does not hold of every row: {claim.what}",
                    where=", ".join(claim.failing),
                    cure="use another `prompt` (plain, zephyr, alpaca, patient-scenario)"
                    if self.kind == "tune"
                    else "use the tokenizer that belongs to the model",
                )


@dataclass
class _Tally:
    """The claims while rows go by. stops: the tokens that end a generated turn."""

    stops: frozenset[int] = frozenset()
    failing: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    cut: int = 0
    masked: int = 0
    trained: int = 0

    def says(self, what: str, holds: bool, row: str) -> None:
        self.rows[what] = self.rows.get(what, 0) + 1
        names = self.failing.setdefault(what, [])
        if not holds and len(names) < NAMED:
            names.append(row)

    def claims(self) -> tuple[Claim, ...]:
        return tuple(Claim(what, self.rows[what], tuple(names)) for what, names in self.failing.items())


BEGIN = "one begin token, at the start"
END = "every answer ends with a trained token that stops generation"
LABEL = "every row that is kept has a token to train on"
PREFIX = "what is asked is how the trained row begins"
DOCUMENT_END = "every document ends with its trained end token"


def prove(
    recipe: Recipe,
    steps: Mapping[str, Planned],
    name: str,
    folder: Path,
    *,
    shown: int,
    events: Events | None = None,
    known: dict[object, "Looked"] | None = None,
) -> Proof | None:
    """Look at what step `name` will read in `folder` (files of its data step). None: no such row, or no tokenizer yet.

    events: are told how far it is. known: what was looked at for other steps; of those that read the same rows in the
    same way, one is looked at. Raises InputError where the tokenizer or the template cannot be used.
    """
    stage = steps[name].stage
    assert isinstance(stage, Training), name
    tokenizer, model = tokenizer_for(recipe, steps, stage.model, steps[name].sources)
    if tokenizer is None or model is None:
        return None
    if isinstance(stage, Prompted):
        stage.dress(tokenizer, steps[name].sources)
    length = stage.length(context_of(plain_config(model)))
    known = {} if known is None else known
    key = (
        folder,
        digest(tokenizer.backend_tokenizer.to_str()),
        tokenizer.chat_template,
        isinstance(stage, Prompted),
        length,
        shown,
    )
    if key not in known:
        known[key] = _look_at_all(tokenizer, folder / "train.jsonl", length, shown, isinstance(stage, Prompted), events)
    looked = known[key]
    if not looked.rows:
        return None
    tally = looked.tally
    return Proof(
        step=name,
        kind=str(type(stage).model_fields["kind"].default),
        data=stage.data,
        prompt=_prompt_name(stage),
        limit=length,
        rows=looked.rows,
        lengths=tuple(sorted(tally.lengths)),
        cut=tally.cut,
        masked=tally.masked,
        trained_tokens=tally.trained,
        max_masked=stage.max_masked if isinstance(stage, Prompted) else 1.0,
        claims=tally.claims(),
        shown=looked.shown,
    )


@dataclass(frozen=True)
class Looked:
    """What was seen of a split's rows. rows: in the split."""

    rows: int
    tally: "_Tally"
    shown: tuple[Shown, ...]


def _look_at_all(
    tokenizer: "PreTrainedTokenizerFast", path: Path, length: int, shown: int, tune: bool, events: Events | None
) -> Looked:
    from metier.text.chat import stop_ids

    rows, chosen = spread_rows(path, MOST)
    tally = _Tally(stop_ids(tokenizer) if tune else frozenset())
    wanted = {index * len(chosen) // shown for index in range(shown)} if shown else set()
    examples = []
    for number, row in enumerate(told(events, "count tokens", chosen)):
        ids, trained = _look(tokenizer, row, length, tally)
        if number in wanted:
            examples.append(_show(tokenizer, str(row["id"]), ids, trained))
    return Looked(rows, tally, tuple(examples))


def too_long(recipe: Recipe, steps: Mapping[str, Planned], name: str, folder: Path) -> list[DataError]:
    """Questions that fill a contender's context, for which an `answer` step would stop: an error a model."""
    stage = steps[name].stage
    assert isinstance(stage, Answer), name
    return [
        DataError(
            f"{len(filling)} of {rows} questions fill the {context} tokens that {model!r} can read",
            where=stage.questions,
            value=", ".join(row.id for row in filling[:NAMED]),
            cure="leave them out (`max_question_chars` of the data step), or use a model with a longer context",
        )
        for model, context, rows, filling in filling_questions(recipe, steps, name, folder, stage.limit or MOST)
        if filling
    ]


def filling_questions(
    recipe: Recipe, steps: Mapping[str, Planned], name: str, folder: Path, most: int = MOST
) -> Iterator[tuple[str, int, int, list[Conversation]]]:
    """(model, its context, questions looked at, those that fill it) for each contender of an `answer` step."""
    from metier.text.chat import encode_prompt

    stage = steps[name].stage
    assert isinstance(stage, Answer), name
    rows = [conversation_of(row) for row in spread_rows(folder / f"{stage.split}.jsonl", most)[1]]
    for model in stage.local:
        tokenizer, base = tokenizer_for(recipe, steps, model, steps[name].sources)
        if tokenizer is None or base is None:
            continue
        context = context_of(plain_config(base))
        filling = [row for row in rows if len(encode_prompt(tokenizer, row.messages[:-1])) >= context]
        yield model, context, len(rows), filling


def tokenizer_for(
    recipe: Recipe, steps: Mapping[str, Planned], model: str, sources: Mapping[str, Source]
) -> "tuple[PreTrainedTokenizerFast, Path] | tuple[None, None]":
    """The tokenizer that a model will have, and a folder with its config.

    Where the model is a step that has not run, that of the model it starts from, with the templates put on it that the
    steps between will put on. None where a step that has not run makes a model from nothing.
    """
    from metier.models.load import read_tokenizer

    for folder in sources[model].paths:
        return read_tokenizer(folder), folder
    before = steps.get(model)
    if before is None:
        return None, None
    base = _model_of(recipe, model)
    if base is None:
        return None, None
    found = tokenizer_for(recipe, steps, base, before.sources)
    if found[0] is not None and isinstance(before.stage, Prompted):
        before.stage.dress(found[0], before.sources)
    return found


def told(events: Events | None, task: str, rows: Sequence[T]) -> Iterator[T]:
    """Pass rows on and tell how far they are."""
    for done, row in enumerate(rows, 1):
        yield row
        if events is not None and (done % TICK == 0 or done == len(rows)):
            events.progress(task, done, len(rows), unit="rows")


def spread_rows(path: Path, most: int) -> tuple[int, list[dict[str, Any]]]:
    """How many rows an artifact's file has, and at most `most` of them, evenly spaced."""
    if not path.is_file():
        return 0, []
    with path.open("rb") as file:
        count = sum(1 for _ in file)
    kept = min(count, most)
    wanted = {index * count // kept for index in range(kept)} if kept else set()
    return count, [row for index, row in enumerate(read_jsonl(path)) if index in wanted]


def _model_of(recipe: Recipe, step: str) -> str | None:
    """The model that a step starts from, if it starts from one."""
    models = [link.reference.value for link in recipe.links[step] if isinstance(link.reference.mark, ModelInput)]
    return models[0] if len(models) == 1 else None


def _prompt_name(stage: Stage) -> str:
    if not isinstance(stage, Prompted):
        return ""
    return stage.prompt if isinstance(stage.prompt, str) else stage.prompt.file


def _look(
    tokenizer: "PreTrainedTokenizerFast", row: Mapping[str, Any], length: int, tally: _Tally
) -> tuple[list[int], list[bool]]:
    """Encode a row as training does, and hold the claims against it. Returns its ids and which are trained, cut."""
    if "messages" in row:
        ids, trained = _look_at_conversation(tokenizer, conversation_of(dict(row)), length, tally)
        kept, labels = ids[:length], trained[:length]
        # training leaves out what is too long to keep an answer, and counts it: so do we
        tally.masked += not any(labels[1:])
        tally.cut += len(ids) > length and any(labels[1:])
        tally.says(LABEL, any(labels[1:]) or len(ids) > length, str(row["id"]))
    else:
        kept, labels = _look_at_document(tokenizer, row, tally)
        ids = kept
    tally.lengths.append(len(ids))
    tally.trained += sum(labels[1:])
    return kept, labels


def _look_at_document(
    tokenizer: "PreTrainedTokenizerFast", row: Mapping[str, Any], tally: _Tally
) -> tuple[list[int], list[bool]]:
    from metier.text.chat import encode_document

    document = document_of(dict(row))
    ids = encode_document(tokenizer, document.text)
    _look_at_begin(tokenizer, ids, document.id, tally)
    tally.says(DOCUMENT_END, ids[-1:] == [tokenizer.eos_token_id], document.id)
    tally.says(LABEL, len(ids) > 1, document.id)
    return ids, [False] + [True] * (len(ids) - 1)


def _look_at_conversation(
    tokenizer: "PreTrainedTokenizerFast", conversation: Conversation, length: int, tally: _Tally
) -> tuple[list[int], list[bool]]:
    from metier.text.chat import encode_conversation, encode_prompt

    whole = encode_conversation(tokenizer, conversation, max_length=UNCUT)
    _look_at_begin(tokenizer, whole.ids, conversation.id, tally)
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    ends = [end for _, end in _stretches(whole.trained)]
    ended = len(ends) == len(answers) and all(whole.ids[end - 1] in tally.stops for end in ends)
    tally.says(END, ended, conversation.id)
    starts = [start for start, _ in _stretches(whole.trained)]
    same = len(starts) == len(answers)
    for index, start in zip(answers, starts, strict=False):
        if start >= length:
            break
        prompt = encode_prompt(tokenizer, conversation.messages[:index])
        same = same and whole.ids[:start] == prompt
    tally.says(PREFIX, same, conversation.id)
    return whole.ids, whole.trained


def _look_at_begin(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int], row: str, tally: _Tally) -> None:
    """GPT-2 has one token for both ends, so only what follows at once would be a second beginning."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is None:
        return
    more = list(ids[1:2]) if begin == end else list(ids[1:])
    tally.says(BEGIN, ids[:1] == [begin] and begin not in more, row)


def _stretches(trained: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where each run of trained tokens starts and ends."""
    start = None
    for index, learned in enumerate([*trained, False]):
        if learned and start is None:
            start = index
        elif not learned and start is not None:
            yield start, index
            start = None


def _show(tokenizer: "PreTrainedTokenizerFast", name: str, ids: Sequence[int], trained: Sequence[bool]) -> Shown:
    tokens = list(_tokens(tokenizer, ids, trained))
    made: list[Token] = []
    at = left_out = 0
    for start, end in _stretches(_worth_showing(tokens)):
        if start > at:
            made.append(_gap(start - at))
            left_out += start - at
        made += tokens[start:end]
        at = end
    return Shown(name, tuple(made), len(ids), left_out)


def _gap(count: int) -> Token:
    """What stands in the place of tokens that are not shown. It has no ids."""
    return Token(f" ... {count:,} tokens ... ", (), False, True)


def _worth_showing(tokens: Sequence[Token]) -> list[bool]:
    """Of a long example its beginning, its end, and where the trained tokens begin."""
    if len(tokens) <= MOST_TOKENS:
        return [True] * len(tokens)
    half, quarter = MOST_TOKENS // 2, MOST_TOKENS // 4
    seam = next((index for index, token in enumerate(tokens) if token.trained), 0)
    if seam < half - quarter // 2:  # it stands in what is shown at the beginning
        return [index < half or index >= len(tokens) - half for index in range(len(tokens))]
    return [
        index < quarter or abs(index - seam) <= quarter // 2 or index >= len(tokens) - quarter
        for index in range(len(tokens))
    ]


def _tokens(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int], trained: Sequence[bool]) -> Iterator[Token]:
    """The text of each token. Tokens that hold parts of one character stand together."""
    specials = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    start = 0
    lead: list[int] = []
    while start < len(ids):
        end = start + 1
        while end < len(ids) and end - start < 4 and "�" in _text(tokenizer, lead, ids[start:end]):
            end += 1
        if "�" in _text(tokenizer, lead, ids[start:end]):
            end = start + 1
        text = _text(tokenizer, lead, ids[start:end])
        yield Token(text, tuple(ids[start:end]), trained[end - 1], ids[start] in specials)
        lead = list(ids[start:end])
        start = end


def _text(tokenizer: "PreTrainedTokenizerFast", lead: Sequence[int], ids: Sequence[int]) -> str:
    """What the ids say behind `lead`: decoding alone would lose SentencePiece's leading spaces."""

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before = decode(lead) if lead else ""
    return decode([*lead, *ids])[len(before) :]
