"""From text to token ids: chat templates, which tokens train, where generation stops.

One rule makes training and serving agree: the ids that a model is trained to answer after are exactly the ids that
`encode_prompt` gives when it is asked. A conversation is cut where each assistant's turn starts and ends; what stands
before a cut is encoded without looking behind it. Where a tokenizer would merge a piece across a cut, the cut wins.

Text inside a message or document is only ever text: `</s>` in a user's question becomes ordinary tokens and cannot end
a turn or open another. U+FDD0, a code point that Unicode bars from interchange, marks such places and is dropped from
messages.

Refuses: a template that rewrites earlier turns when later ones follow (its prompt at serving is not what was trained),
and a tokenizer without any token to end a turn with. Costs: two renderings and about three encodings a turn.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

from metier.core.errors import DataError
from metier.text.artifacts import message_rows
from metier.text.nouns import Conversation, Message
from metier.text.prompts import FALLBACK, TEMPLATES, template_text

_SEAM = "\ufdd0"


class Tokenizer(Protocol):
    """What is used of a transformers `PreTrainedTokenizerFast`."""

    bos_token: Any
    eos_token: Any
    bos_token_id: Any
    eos_token_id: Any
    chat_template: Any
    name_or_path: Any

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id, each with `content` and `special`."""
        ...

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Token ids of many texts, under `input_ids`."""
        ...

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids of a text."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        """The conversation as one text (with tokenize=False), rendered in a sandbox."""
        ...

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Encoded:
    """A conversation's token ids and, for each, whether it is trained on. truncated: it did not fit `max_length`."""

    ids: list[int]
    trained: list[bool]
    truncated: bool

    @property
    def masked(self) -> bool:
        """No token at all is trained on: the row teaches nothing."""
        return not any(self.trained)


@dataclass(frozen=True)
class _Part:
    """A stretch of the rendered conversation. response: it is what the assistant has to produce."""

    text: str
    response: bool


@dataclass(frozen=True)
class _Closed:
    """A part as it is encoded. end: the token that ends it, where it is a response."""

    text: str
    end: int | None


AtOnce = Callable[[Sequence[str]], Sequence[list[int]]]


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text between the tokenizer's begin and end tokens, where it has them.

    GPT-2 has one token for both, so its documents start and end with the same id.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return begin + ids + end


def encode_reading(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text whose likelihood is read: what its first token follows, then the text, without an end."""
    ids = encode_document(tokenizer, text)
    return ids[:-1] if tokenizer.bos_token_id is not None else [ids[-1], *ids[:-1]]


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids to generate an assistant's turn after: begin token, the messages, the template's generation prompt."""
    encoder = _Encoder(tokenizer)
    return encoder.encode([encoder.closed(part) for part in _parts(tokenizer, messages, prompt=True)])[0]


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation, *, max_length: int) -> Encoded:
    """The ids of a conversation of which every assistant's turn is trained on, with the token that ends it.

    Cut after `max_length` ids. Raises DataError for a template that cannot be trained on as it is served.
    """
    (encoded,) = encode_conversations(tokenizer, [conversation], max_length=max_length)
    return encoded


def encode_conversations(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], *, max_length: int, at_once: AtOnce | None = None
) -> Iterator[Encoded]:
    """As `encode_conversation` for each.

    at_once: encodes many texts faster than the tokenizer does one by one, to the same ids as its `encode` without
    special tokens added. Raises DataError naming the conversation.
    """
    encoder = _Encoder(tokenizer)
    closed: list[list[_Closed]] = []
    for conversation in conversations:
        try:
            closed.append([encoder.closed(part) for part in _parts(tokenizer, conversation.messages, prompt=False)])
        except DataError as error:
            raise DataError(
                error.what, where=f"conversation {conversation.id}", value=error.value, cure=error.cure
            ) from error
    if at_once is not None:
        encoder.look_ahead(closed, at_once)
    for parts in closed:
        ids, trained = encoder.encode(parts)
        yield Encoded(ids[:max_length], trained[:max_length], truncated=len(ids) > max_length)


@dataclass(frozen=True)
class Prompted:
    """A prompt as text, and what a template writes for answers to it: a leading space, maybe, and the answer itself.

    Special tokens that messages and answers mention are parted by a mark, so that they are read as text.
    """

    context: str
    continuations: tuple[str, ...]


def prompt_choices(
    tokenizer: Tokenizer, messages: Sequence[Message], choices: Sequence[str], *, template: str | None = None
) -> Prompted:
    """The messages as a prompt, and each choice as the answer to it. template: Jinja instead of the model's own."""
    safe = [Message(m.role, _defuse(tokenizer, m.content)) for m in messages]
    answers = [_defuse(tokenizer, choice) for choice in choices]
    asked = _render(tokenizer, safe, generation_prompt=True, template=template)
    said = [*safe, Message("assistant", answers[0])]
    written = _after(tokenizer, _render(tokenizer, said, generation_prompt=False, template=template), asked)
    before, found, _ = written.partition(answers[0])
    if not found:
        raise DataError(
            "the chat template does not write an answer as it is given",
            value=written[:200],
            cure="set the step's `prompt` to plain",
        )
    return Prompted(asked, tuple(before + answer for answer in answers))


def encode_choices(tokenizer: Tokenizer, prompted: Sequence[Prompted]) -> list[tuple[list[int], list[list[int]]]]:
    """For each prompt the ids of its context and of its continuations, split as lm-evaluation-harness does.

    White space that ends a context belongs to its continuations, so that words keep the space they are learnt with;
    a continuation's ids are those of the whole text behind as many as the context has alone. One begin token, where the
    tokenizer has one. Source: `_encode_pair` in lm_eval/api/model.py, 0.4.13.
    """
    encoder = _Encoder(tokenizer)
    texts = []
    for prompt in prompted:
        bare = prompt.context.rstrip()
        space = prompt.context[len(bare) :]
        texts.append([bare, *(bare + space + continuation for continuation in prompt.continuations)])
    encoder.know(text for group in texts for text in group)
    found = []
    for group in texts:
        context, *wholes = (encoder.whole(text) for text in group)
        found.append((context, [whole[len(context) :] for whole in wholes]))
    return found


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end a generated turn: the end token, and the one that the chat template closes a turn with."""
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    probe = (Message("user", "Hello"), Message("assistant", "Hello"))
    encoder = _Encoder(tokenizer)
    ids, trained = encoder.encode([encoder.closed(part) for part in _parts(tokenizer, probe, prompt=False)])
    found.add([i for i, learned in zip(ids, trained, strict=True) if learned][-1])
    return frozenset(found)


def _parts(tokenizer: Tokenizer, messages: Sequence[Message], *, prompt: bool) -> Iterator[_Part]:
    """Cut the rendered conversation before and after each assistant's turn.

    Each part continues the text of all parts before it, so a prompt's parts are the first of its conversation's.
    """
    safe = [Message(m.role, _defuse(tokenizer, m.content)) for m in messages]
    done = ""
    for index, message in enumerate(safe):
        if message.role != "assistant":
            continue
        asked = _render(tokenizer, safe[:index], generation_prompt=True)
        answered = _render(tokenizer, safe[: index + 1], generation_prompt=False)
        yield _Part(_after(tokenizer, asked, done), response=False)
        yield _Part(_after(tokenizer, answered, asked), response=True)
        done = answered
    if prompt:
        yield _Part(_after(tokenizer, _render(tokenizer, safe, generation_prompt=True), done), response=False)
    elif safe and safe[-1].role != "assistant":
        yield _Part(_after(tokenizer, _render(tokenizer, safe, generation_prompt=False), done), response=False)


def _after(tokenizer: Tokenizer, text: str, start: str) -> str:
    if not text.startswith(start):
        raise DataError(
            "the chat template does not keep what it wrote for earlier turns: the prompt it makes for an answer is not "
            f"how the trained conversation begins (tokenizer {tokenizer.name_or_path or 'without a name'})",
            value=text[:200],
            cure=f"set the step's `prompt` to one of {', '.join(TEMPLATES)}",
        )
    return text[len(start) :]


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool, template: str | None = None
) -> str:
    from jinja2.exceptions import TemplateError

    template = template or tokenizer.chat_template or template_text(FALLBACK)
    try:
        text = tokenizer.apply_chat_template(
            message_rows(messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except (TemplateError, TypeError) as error:  # TypeError: it includes a file, for which there is no loader
        raise DataError(
            f"the chat template refuses the conversation: {error}",
            value=[m.role for m in messages],
            cure=f"set the step's `prompt` to one of {', '.join(TEMPLATES)}, or leave out what it refuses",
        ) from error
    return str(text)


class _Encoder:
    """Turns parts into ids with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {text: i for i, text in _specials(tokenizer, len(tokenizer)).items()}
        self._pattern = _special_pattern(tokenizer, len(tokenizer))
        self._known: dict[str, list[int]] = {}

    def closed(self, part: _Part) -> _Closed:
        """The part, surely ended where it is a response."""
        return _Closed(*self._closed(part.text)) if part.response else _Closed(part.text, None)

    def look_ahead(self, conversations: Sequence[Sequence[_Closed]], at_once: AtOnce) -> None:
        """Encode what `encode` will ask for, of all these together."""
        texts = dict.fromkeys(
            text for parts in conversations for text in accumulate(part.text for part in parts) if _SEAM not in text
        )
        self._known = dict(zip(texts, at_once(list(texts)), strict=True))

    def know(self, texts: Iterable[str]) -> None:
        """Encode many texts at once, for `whole`. Texts with a seam are left for later."""
        plain = [text for text in dict.fromkeys(texts) if _SEAM not in text]
        if plain:
            found = self._tokenizer(plain, add_special_tokens=False, return_attention_mask=False, verbose=False)
            self._known = dict(zip(plain, found["input_ids"], strict=True))

    def whole(self, text: str) -> list[int]:
        """The ids of a whole text, behind one begin token where the tokenizer has one."""
        return self._begin(self._ids(text, first=True))

    def encode(self, parts: Sequence[_Closed]) -> tuple[list[int], list[bool]]:
        """The ids of all parts, and for each whether it is trained on. One begin token, where the tokenizer has one."""
        ids: list[int] = []
        trained: list[bool] = []
        text = ""
        for part in parts:
            text += part.text
            grown = self._grow(ids, text, part.text)
            new = grown[len(ids) :]
            wanted = 0 if part.end is None else len(new) - new[::-1].index(part.end)
            trained += [True] * wanted + [False] * (len(new) - wanted)  # what follows the end is not generated
            ids = grown
        return ids, trained

    def _grow(self, ids: list[int], text: str, piece: str) -> list[int]:
        """`ids`, unchanged, followed by those of `piece`, which is how `text` ends."""
        whole = self._begin(self._ids(text, first=True))
        if whole[: len(ids)] == ids:
            return whole
        return ids + self._ids(piece, first=False)

    def _begin(self, ids: list[int]) -> list[int]:
        begin = self._tokenizer.bos_token_id
        return ids if begin is None or ids[:1] == [begin] else [int(begin), *ids]

    def _ids(self, text: str, *, first: bool) -> list[int]:
        """The ids of a text. first: it starts the sequence, where some tokenizers put a space."""
        ids: list[int] = []
        for index, piece in enumerate(text.split(_SEAM)):
            ids += self._plain(piece) if first and index == 0 else self._continued(piece)
        return ids

    def _plain(self, text: str) -> list[int]:
        known = self._known.get(text)
        return self._tokenizer.encode(text, add_special_tokens=False, verbose=False) if known is None else known

    def _continued(self, text: str) -> list[int]:
        """As `_plain`, but as text that follows other text: SentencePiece adds its space only at the very start."""
        lead = self._tokenizer.eos_token or self._tokenizer.bos_token
        return self._plain(text) if lead is None else self._plain(lead + text)[1:]

    def _closed(self, text: str) -> tuple[str, int]:
        """A response that surely ends its turn, and the id of the token that ends it.

        That is the last special token which the template wrote (a message's text holds none that count, and an unknown
        character's token is not looked for), or else the tokenizer's end token, appended.
        """
        written = self._pattern.findall(text) if self._pattern else []
        if written:
            return text, self._special[written[-1]]
        if self._tokenizer.eos_token is None:
            raise DataError(
                "nothing ends an assistant's turn: the chat template writes no special token after it and the "
                f"tokenizer ({self._tokenizer.name_or_path or 'without a name'}) has no end token",
                cure="give the tokenizer an `eos_token`",
            )
        return text + str(self._tokenizer.eos_token), int(self._tokenizer.eos_token_id)


def _defuse(tokenizer: Tokenizer, content: str) -> str:
    """The content with a seam inside everything that the tokenizer would read as a special token."""
    pattern = _special_pattern(tokenizer, len(tokenizer))
    plain = content.replace(_SEAM, "")
    return pattern.sub(lambda m: m[0][0] + _SEAM + m[0][1:], plain) if pattern else plain


@lru_cache(maxsize=8)
def _specials(tokenizer: Tokenizer, size: int) -> dict[int, str]:  # noqa: ARG001
    """Special tokens by id. `size`, the vocabulary's, makes the answer new when tokens were added."""
    return {int(i): str(t.content) for i, t in tokenizer.added_tokens_decoder.items() if t.special}


@lru_cache(maxsize=8)
def _special_pattern(tokenizer: Tokenizer, size: int) -> re.Pattern[str] | None:
    texts = sorted(_specials(tokenizer, size).values(), key=len, reverse=True)
    return re.compile("|".join(re.escape(t) for t in texts)) if texts else None
