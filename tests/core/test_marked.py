"""YAML as plain data: how scalars are read, which line things stand on, and what is refused."""

from pathlib import Path

import pytest

from metier.core.errors import RecipeError
from metier.core.marked import parse_marked, read_marked


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1.0E+3", 1000.0),
        (".5", 0.5),
        ("12", 12),
        ("-7", -7),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ("2020-01-01", "2020-01-01"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("[1, a, {b: c}]", [1, "a", {"b": "c"}]),
        ("!!str 5", "5"),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text: str, value: object):
    read = parse_marked(f"key: {text}\n", "x").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_every_value_has_its_line():
    lines = parse_marked("a: 1\nb:\n  - x\n  - y: 2\n    z: 3\n", "x").lines
    assert lines[("a",)] == 1
    assert lines[("b",)] == 2
    assert lines[("b", 0)] == 3
    assert lines[("b", 1, "z")] == 5


def test_an_alias_is_its_anchor():
    assert parse_marked("a: &x [1]\nb: *x\n", "x").value == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands here twice (first on line 1)"),
        ("a:\n  b: 1\n  b: 2\n", 3, "'b' stands here twice"),
        ("a: 1\n2: 3\n", 2, "a key must be text"),
        ("true: 3\n", 1, "a key must be text"),
        ("[1]: 3\n", 1, "a key must be text"),
        ("a: !!python/name:os.system x\n", 1, "tag"),
        ("a: !mine x\n", 1, "tag"),
        ("a: !!timestamp 2020-01-01\n", 1, "tag"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", 3, "merge keys"),
        ("a: &x [*x]\n", 1, "alias refers to itself"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a:\n\tb: 1\n", 2, "indent with spaces"),
        ("a: 1\n b: 2\n", 2, "not valid YAML"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: !!int x\n", 1, "not a int"),
        ("a: \x07\n", 1, "does not allow"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text: str, line: int, message: str):
    with pytest.raises(RecipeError) as caught:
        parse_marked(text, "r.yaml")
    assert f"r.yaml:{line}:" in str(caught.value)
    assert message in str(caught.value)


def test_aliases_may_not_multiply():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(RecipeError, match="too many values"):
        parse_marked(bomb, "x")


def test_depth_has_an_end():
    with pytest.raises(RecipeError, match="nested too deeply"):
        parse_marked("[" * 5000, "x")


def test_encodings(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_bytes("﻿a: Qualle ü\n".encode())
    assert read_marked(path).value == {"a": "Qualle ü"}
    path.write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:2: the file is not UTF-8"):
        read_marked(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_marked(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_marked(tmp_path)
