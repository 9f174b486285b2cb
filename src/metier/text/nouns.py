"""The nouns: what a corpus, a set of examples and a model's answers are made of.

Plain frozen values. Nothing here is checked again: the readers of `data` refuse bad input before one is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Document:
    """One text to read. id: given by the source, or its content's digest; never a path."""

    id: str
    text: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last is the assistant's. group: a name that scores are broken down by, or "".

    meta: what else its row told, such as the `choices` ("yes|no|maybe") and the `label` of a question with choices.
    """

    id: str
    messages: tuple[Message, ...]
    group: str = ""
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Question:
    """What a model is asked (messages up to a user's turn) and what it should say. group, meta: as in Conversation."""

    id: str
    messages: tuple[Message, ...]
    reference: str
    group: str = ""
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Answer:
    """What a model said to the question of the same id.

    tokens: how many it generated, the end token included. stopped: it ended its turn itself, rather than at the limit.
    """

    id: str
    text: str
    tokens: int
    stopped: bool
