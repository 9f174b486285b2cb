"""What a tokenizer was extended by: `extension.json` beside it, so that training knows which rows are new.

It goes wherever the tokenizer goes (`save.save_tokenizer`). Imports no torch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from metier.core.errors import ModelError
from metier.models.builtin import base_link, follow, is_adapter, read_json

EXTENSION = "extension.json"


@dataclass(frozen=True)
class Extension:
    """The new tokens: `count` ids from `first` on. rows: of the embeddings, padding included.

    count 0: an extension was asked for and did not pay.
    """

    first: int
    count: int
    rows: int

    @property
    def ids(self) -> range:
        """The new ids."""
        return range(self.first, self.first + self.count)


def write_extension(extension: Extension, folder: Path) -> None:
    """Write it beside a tokenizer."""
    text = json.dumps(asdict(extension), indent=1) + "\n"
    (folder / EXTENSION).write_text(text, encoding="utf-8")


def read_extension(folder: Path) -> Extension | None:
    """What the tokenizer of a model (or of an adapter, else of its base) was extended by; None for one that was not.

    Raises ModelError for a file that does not say.
    """
    if not (folder / EXTENSION).is_file():
        return read_extension(follow(base_link(folder), folder)) if is_adapter(folder) else None
    raw = read_json(folder / EXTENSION)
    found = [raw.get(name) for name in ("first", "count", "rows")]
    if not all(isinstance(number, int) and number >= 0 for number in found):
        raise ModelError(
            "the file does not say which tokens are new",
            where=str(folder / EXTENSION),
            value=raw,
            cure="copy it from where the model came from: first, count and rows are whole numbers",
        )
    first, count, rows = found
    assert isinstance(first, int)
    assert isinstance(count, int)
    assert isinstance(rows, int)
    return Extension(first, count, rows)
