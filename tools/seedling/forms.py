"""Sentence forms of every attribute: how an article tells it and how a person asks for it.

A form is a string with slots: `{S}` subject, `{P}` its possessive, `{O}` the subject as an object, `{V}` the value as a
noun phrase, `{L}` the value led by its preposition ("in stone barns"). `[eats|eat]` picks the verb by number. A
question or an indirect question that begins with "where" or "when" is answered with `{L}`, all others with `{V}`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.seedling.tables import table


@dataclass(frozen=True)
class Attr:
    """One attribute: its names in tables, its statements, its questions, and the same as indirect questions."""

    labels: tuple[str, ...]
    say: tuple[str, ...]
    ask: tuple[str, ...]
    wonder: tuple[str, ...]


def _attrs() -> dict[str, Attr]:
    parts = table("forms")
    keys = dict.fromkeys(section.partition(".")[0] for section in parts)
    return {k: Attr(*(tuple(parts[f"{k}.{part}"]) for part in ("labels", "say", "ask", "wonder"))) for k in keys}


ATTRS = _attrs()
"""Every attribute of the world by its key, read from text/forms.txt."""
