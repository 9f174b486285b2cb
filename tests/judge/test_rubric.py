"""Rubrics: ours are whole, a user's is read or refused with its line."""

from pathlib import Path

import pytest

from metier.core.errors import DataError
from metier.judge.rubric import SHIPPED, parse, read, shipped

OWN = """# Bedside manner

Decide whether the answer is kind.

## Labels

- kind: it is warm
  and patient
- cold: it is not
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_ours_have_three_labels_of_which_the_last_is_unknown(name: str):
    rubric = shipped(name)
    assert len(rubric.labels) == 3
    assert rubric.labels[-1] == "unknown"
    assert len(rubric.text) > 100
    assert (rubric.good, rubric.bad) == rubric.labels[:2]


def test_one_of_ones_own(tmp_path: Path):
    path = tmp_path / "manner.md"
    path.write_text(OWN, encoding="utf-8")
    rubric = read(path)
    assert (rubric.name, rubric.title) == ("manner", "Bedside manner")
    assert rubric.meanings == {"kind": "it is warm and patient", "cold": "it is not"}
    assert rubric.digest != shipped("consistency").digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"r\.md: the rubric has no title"),
        ("# T\n\ntext\n", r"r\.md: the rubric has 0 headings"),
        ("# T\n\n## Labels\n- a: b\n- c: d\n", r"says nothing between its title and its labels"),
        ("# T\nx\n## Labels\n- a: b\n", r"has 2 to 6 labels"),
        ("# T\nx\n## Labels\n- a: b\n- a: c\n", r"r\.md:5: a label stands there twice"),
        ("# T\nx\n## Labels\n- a: b\n- Z!: c\n", r"r\.md:5: not a name for a label"),
        ("# T\nx\n## Labels\n- a: b\nprose\n", r"r\.md:5: not a label with its meaning"),
        ("# T\nx\n## Labels\n- a: b\n- c:\n", r"r\.md:5: a label has no meaning"),
        ("# T\n" + "x" * 21_000 + "\n## Labels\n- a: b\n- c: d\n", r"more than 20,000"),
    ],
)
def test_what_is_none_is_refused(text: str, said: str):
    with pytest.raises(DataError, match=said):
        parse(text, "r.md", "r")


def test_unknown_names_and_encodings_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="did you mean 'consistency'"):
        shipped("consistancy")
    path = tmp_path / "latin.md"
    path.write_bytes("# T\nl\xe4rm\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.md:2: the rubric is not UTF-8"):
        read(path)
