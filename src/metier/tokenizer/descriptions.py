"""What is written about words, to make their rows of: JSON Lines with `word` and `text`. Imports nothing heavy."""

import json
from collections.abc import Iterable
from pathlib import Path

from metier.core.errors import DataError


def read_descriptions(paths: Iterable[Path]) -> dict[str, str]:
    """Word -> its description. Raises DataError naming file and line for what is no such row, and a word twice."""
    found: dict[str, str] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the file cannot be read ({error})", where=str(path), cure="save it as UTF-8") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            word, text = _row(line, where)
            if word in found:
                raise DataError("the word is described twice", where=where, value=word, cure="keep one of the lines")
            found[word] = text
    return found


def _row(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError("the line is not JSON", where=where, value=line, cure=_CURE) from error
    if not isinstance(row, dict) or set(row) != {"word", "text"}:
        raise DataError("a description has `word` and `text`", where=where, value=row, cure=_CURE)
    if not all(isinstance(value, str) and value.strip() for value in row.values()):
        raise DataError("`word` and `text` are texts that are not empty", where=where, value=row, cure=_CURE)
    return row["word"], row["text"]


_CURE = 'write one object a line: {"word": "hydroxychloroquine", "text": "a drug against malaria"}'
