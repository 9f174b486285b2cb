"""Why a judge is to be distrusted beforehand: it is a contender, a contender was made from it, or it is the teacher.

Follows the records of everything that the judged answers were made from. Reads records alone.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.stage import Context, Source
from metier.core.store import RECORD, Artifact
from metier.engine.endpoint import Endpoint
from metier.models.builtin import CONFIG, read_json

if TYPE_CHECKING:
    from metier.judge.stage import AnyJudge

FAMILIES = {
    "gemma": r"gemma",
    "gemini": r"gemini",
    "llama": r"llama|meditron|vicuna|alpaca|pmc",
    "mistral": r"mi[sx]tral|biomistral|zephyr",
    "qwen": r"qwen",
    "gpt": r"gpt|o[134](?:-|$)",
    "claude": r"claude",
    "phi": r"\bphi",
    "falcon": r"falcon",
    "deepseek": r"deepseek",
    "command": r"command|aya",
    "opt": r"\bopt\b",
}
CONTENDER = "it is a contender: it judges its own answers"
PARENT = "a contender was made from it: it judges its own kin"
TEACHER = "it is the teacher whose words the contenders learnt from"
Row = dict[str, Any]


def family_of(model: str, folder: Path | None = None) -> str:
    """The family of a model by its name or, where that tells nothing, by its config."""
    name = model.rsplit("/", 1)[-1].lower()
    for family, pattern in FAMILIES.items():
        if re.search(pattern, name):
            return family
    if folder is not None and (folder / CONFIG).is_file():
        return str(read_json(folder / CONFIG).get("model_type", name))
    return name


def flags(judge: "AnyJudge", answers: Source, contenders: Mapping[str, Row], ctx: Context) -> list[str]:
    """What speaks against a judge, in words."""
    from metier.judge.stage import EvidenceJudge

    if isinstance(judge, str | EvidenceJudge):
        return []
    digest = "" if isinstance(judge, Endpoint) else ctx.source(judge.model).digest
    found: list[str] = []
    same = [one for one in contenders.values() if one.get("kind") != "trivial" and str(one.get("model")) == judge.model]
    records = list(ancestors(answers.path))
    asked = {given.get("digest") for record, _ in records[:1] for given in record.get("inputs", {}).values()}
    if same or (digest and digest in asked):
        found.append(CONTENDER)
    for record, _ in records[1:]:
        for value, given in record.get("inputs", {}).items():
            if "model" in str(given.get("field", "")) and (
                value == judge.model or (digest and given["digest"] == digest)
            ):
                found.append(PARENT)
    for record, _ in records:
        for teacher in teachers(record.get("config", {})):
            given = record.get("inputs", {}).get(teacher, {})
            if teacher == judge.model or (digest and given.get("digest") == digest):
                found.append(TEACHER)
    return list(dict.fromkeys(found))


def ancestors(files: Path, passed: set[Path] | None = None) -> Iterator[tuple[Row, Path]]:
    """The record of an artifact and of all that it was made from, itself first."""
    passed = set() if passed is None else passed
    if files in passed or not (files.parent / RECORD).is_file():
        return
    passed.add(files)
    record = dict(Artifact(files.parent).record)
    yield record, files
    for given in record.get("inputs", {}).values():
        link = str(given.get("link", ""))
        if link.startswith("../"):
            yield from ancestors(Path(os.path.normpath(files / link)), passed)


def teachers(config: Any) -> Iterator[str]:
    """Every model that a stage's config names as a teacher."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name in ("teacher", "teachers"):
                yield from _models(value)
            else:
                yield from teachers(value)
    elif isinstance(config, list):
        for value in config:
            yield from teachers(value)


def _models(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if isinstance(value.get("model"), str):
            yield value["model"]
    elif isinstance(value, list):
        for one in value:
            yield from _models(one)
