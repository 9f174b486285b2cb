"""Rows that are appended as they come, and read again after the writer was cut off anywhere."""

import json
from pathlib import Path

import pytest

from metier.core.appended import append, appended
from metier.core.errors import StoreError

ROWS = [{"at": 0, "text": "Größe\u2028"}, {"at": 1, "text": "two\nlines"}, {"at": 2, "text": ""}]


def test_cut_anywhere_the_whole_lines_are_read_and_the_next_ones_follow(tmp_path: Path):
    append(full := tmp_path / "below" / "full.jsonl", ROWS)
    data = full.read_bytes()
    for length in range(len(data) + 1):
        path = tmp_path / f"{length}.jsonl"
        path.write_bytes(data[:length])
        whole = appended(path, "rows")
        assert whole == ROWS[: data[:length].count(b"\n")]
        append(path, ROWS[len(whole) :])
        assert path.read_bytes() == data


def test_no_file_has_no_rows_and_no_rows_make_no_file(tmp_path: Path):
    append(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()
    assert appended(tmp_path / "none.jsonl", "rows") == []


@pytest.mark.parametrize("line", ["{", "[1]", "\udcff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(ROWS[0]) + "\n" + line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match="rows cannot be read"):
        appended(path, "rows")
