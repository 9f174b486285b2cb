"""The chat template that is published: one source, and the same ids in every runtime.

transformers, llama.cpp and Ollama add the begin token at different places, and SentencePiece puts a space before the
first word of a text that does not write it. So the published template writes both itself, and is tried: stock
`apply_chat_template` must give exactly the ids that the model was trained to answer after.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metier.core.errors import DataError, MetierError
from metier.text.artifacts import message_rows
from metier.text.chat import encode_prompt
from metier.text.nouns import Message, Role
from metier.text.prompts import FALLBACK, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MARKS = ("One\ufff9", "Two\ufff9", "Three\ufff9", "Four\ufff9", "Five\ufff9", "Six\ufff9")
"""Contents that no template writes by itself."""
_PROBES: tuple[tuple[Role, ...], ...] = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


def publish_template(tokenizer: "PreTrainedTokenizerFast", chats: Sequence[Sequence[Message]]) -> None:
    """Give the tokenizer the template to publish: its own (else the one it is answered with), beginning written out.

    chats: conversations that it is tried on. Raises MetierError where no beginning gives the trained ids.
    """
    trained = [(chat, ids) for chat in chats if (ids := _trained_ids(tokenizer, chat)) is not None]
    own = str(tokenizer.chat_template or template_text(FALLBACK))
    begin = "{{ bos_token }}" if tokenizer.bos_token else ""
    for before in ("", begin, begin + "{{ ' ' }}"):
        tokenizer.chat_template = before + own
        if all(_stock_ids(tokenizer, chat) == ids for chat, ids in trained):
            return
    raise MetierError(
        "not published: stock `apply_chat_template` gives other token ids than the model is trained and asked with",
        where=str(tokenizer.name_or_path),
        cure="train with one of the built-in templates (`prompt: zephyr`), which are the same everywhere",
    )


def _trained_ids(tokenizer: "PreTrainedTokenizerFast", chat: Sequence[Message]) -> list[int] | None:
    try:
        return encode_prompt(tokenizer, chat)
    except DataError:  # the template refuses such a conversation, with a system message, say
        return None


def _stock_ids(tokenizer: "PreTrainedTokenizerFast", chat: Sequence[Message]) -> list[int]:
    ids = tokenizer.apply_chat_template(message_rows(chat), add_generation_prompt=True, return_dict=False)
    return [int(i) for i in ids]


@dataclass(frozen=True)
class Parts:
    """A template as what is written between messages.

    before: by the roles of the message before (None: it is the first) and after, what stands between their contents.
    ending: what follows the last message, a user's, up to where the answer begins. refuses_system: it takes none.
    """

    before: Mapping[tuple[Role | None, Role], str]
    ending: str

    def render(self, messages: Sequence[tuple[Role, str]]) -> str:
        """A conversation whose last message is a user's."""
        text, last = "", None
        for role, content in messages:
            text += self.before[last, role] + content
            last = role
        return text + self.ending

    def go(self) -> str:
        """The same as a Go template for Ollama, which gives .Messages with .Role and .Content."""
        text = '{{ $last := "" }}{{ range .Messages }}'
        for place, role in enumerate(dict.fromkeys(role for _, role in self.before)):
            text += f"{{{{ {'else ' if place else ''}if eq .Role {_go(role)} }}}}"
            cases = [(last or "", between) for (last, to), between in self.before.items() if to == role and between]
            for nth, (last, between) in enumerate(cases):
                text += f"{{{{ {'else ' if nth else ''}if eq $last {_go(last)} }}}}{{{{ {_go(between)} }}}}"
            text += "{{ end }}" if cases else ""
            text += f"{{{{ .Content }}}}{{{{ $last = {_go(role)} }}}}"
        return text + "{{ end }}{{ end }}" + (f"{{{{ {_go(self.ending)} }}}}" if self.ending else "")


def parts_of(tokenizer: "PreTrainedTokenizerFast") -> Parts | None:
    """The tokenizer's template as parts, without the begin token; None where it cannot be told that way.

    What depends on more than the two messages' roles (tools, dates, the text of a message) cannot.
    """
    rendered = {roles: text for roles in _PROBES if (text := _render(tokenizer, roles)) is not None}
    before: dict[tuple[Role | None, Role], str] = {}
    ending: str | None = None
    for roles, text in rendered.items():
        last: Role | None = None
        for role, mark in zip(roles, _MARKS, strict=False):
            between, found, text = text.partition(mark)
            if not found or before.setdefault((last, role), between) != between:
                return None
            last = role
        if ending not in (None, text):
            return None
        ending = text
    if ending is None or (None, "user") not in before:
        return None
    parts = Parts(before, ending)
    for roles, text in rendered.items():
        if parts.render(list(zip(roles, _MARKS, strict=False))) != text:
            return None
    return parts


def _render(tokenizer: "PreTrainedTokenizerFast", roles: Sequence[Role]) -> str | None:
    from jinja2.exceptions import TemplateError

    rows = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=False)]
    try:
        text = str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True))
    except TemplateError:
        return None
    begin = str(tokenizer.bos_token or "")
    return text.removeprefix(begin)


def _go(text: str) -> str:
    """A Go string literal."""
    return json.dumps(text, ensure_ascii=False)
