"""No dead settings: every key of the schema is part of a step's identity, is read by the program and tried by a test.

Three things are looked at for each key of each kind of step and of all that may stand inside one. A changed value has
to change the step's key in the store, or the key is a declared `Runtime` field; the program has to read the attribute
somewhere outside its declaration; and some test has to set it by name, so that one whose effect nobody shows is found.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from metier.core.stage import Config, Runtime, identity
from metier.stages import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = {
    "prefix_cache": "tests/train/test_prefix_cache.py: the same bytes, by another way",
    "shard": "tests/train/test_together.py: the same losses, each process with a part of the weights",
    "resources": "tests/scale/test_ray.py: the same bytes by other numbers of workers, and the refusals",
    "log_every": "tests/train/test_training_stages.py: how often progress is told",
    "key_env": "tests/engine/test_remote.py: the key that is sent, and the refusal without one",
    "timeout_seconds": "tests/engine/test_remote.py: a request that takes longer is made again",
    "tries": "tests/engine/test_remote.py: how often",
    "concurrency": "tests/engine/test_remote.py: requests under way at a time",
    "requests_per_minute": "tests/engine/test_engines.py: the pace",
    "prices": "tests/engine/test_remote.py: the cost that is told",
    "budget": "tests/engine/test_engines.py: where it stops",
}
"""The keys that change no result, each with what shows their effect."""
TITLE = re.compile(r"^(kind)$")


def classes() -> list[type[Config]]:
    """Every kind of step and all that may stand inside one."""
    found: dict[type[Config], None] = {}
    for kind in CATALOGUE:
        _walk(CATALOGUE[kind], found)
    return list(found)


def _walk(cls: type[Config], found: dict[type[Config], None]) -> None:
    if cls in found:
        return
    found[cls] = None
    waiting: list[Any] = [field.annotation for field in cls.model_fields.values()]
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and issubclass(one, Config):
            _walk(one, found)
        else:
            waiting += get_args(one)


KEYS = [(cls, name) for cls in classes() for name in cls.model_fields if not TITLE.match(name)]
NAMES = sorted({name for _, name in KEYS})


def is_runtime(cls: type[Config], name: str) -> bool:
    return any(isinstance(mark, Runtime) for mark in cls.model_fields[name].metadata)


def test_all_keys_are_found():
    assert len(classes()) >= 71
    assert len(KEYS) >= 530
    assert len(NAMES) >= 250


def test_every_key_changes_what_a_step_is():
    still = []
    for cls, name in KEYS:
        fields = dict.fromkeys(cls.model_fields)
        before, after = (
            identity(cls.model_construct(**{**fields, name: value}), lambda ref: ref.value) for value in (1, 2)
        )
        if (before == after) != is_runtime(cls, name):
            still.append(f"{cls.__name__}.{name}")
    assert still == []


def test_runtime_fields_are_those_that_are_known_to_change_no_result():
    found = {name for cls, name in KEYS if is_runtime(cls, name)}
    assert found == set(RUNTIME)
    for name, place in RUNTIME.items():
        path = ROOT / place.partition(":")[0]
        assert name in path.read_text(encoding="utf-8"), f"{name} is not in {path.name}"


@cache
def attributes() -> frozenset[str]:
    """All attributes that the program reads, and names that it gives to getattr."""
    found: set[str] = set()
    for path in (ROOT / "src/metier").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                found |= {
                    one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    return frozenset(found)


def test_the_program_reads_every_key():
    assert sorted(set(NAMES) - attributes()) == []


@cache
def all_tests() -> str:
    """All other tests, and the benchmarks and recipes that prove what takes too long for one."""
    places = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "recipes").glob("*.yaml")]
    return "\n".join(path.read_text(encoding="utf-8") for path in places if path != Path(__file__))


@pytest.mark.parametrize("name", NAMES)
def test_some_test_sets_the_key(name: str):
    found = re.search(rf"""(?:["'.]{name}["']|\b{name}\s*[=:]|\.{name}=)""", all_tests()) is not None
    assert found, f"nothing tries {name!r}"
