"""References and identities of stages, and the words for values that do not fit."""

from typing import Literal

import pytest
from pydantic import field_validator, model_validator

from fake_stages import Ask, Teach, Texts
from metier.core.explain import Problem, validate
from metier.core.stage import Config, ModelInput, Needs, identity, references

TEACH = {"kind": "teach", "model": "base", "documents": "d"}


class Limits(Config):
    a: int = 1
    b: int = 1
    c: int = 1
    d: int = 1
    e: int = 1


class Watched(Config):
    guard: Limits | Literal[False]


def problems(cls: type[Config], value: object) -> list[Problem]:
    found = validate(cls, value)
    assert isinstance(found, list)
    return found


def test_a_block_of_many_keys_is_told_in_one_and_yaml_in_its_own_words():
    (problem,) = problems(Watched, {"guard": True})
    assert problem.cure == "write false or a block of a, b, c, d, e"


def test_references_are_found_in_field_order():
    found = references(Teach(model="m", documents="d"))
    assert [(r.field, r.value) for r in found] == [("model", "m"), ("documents", "d")]
    assert isinstance(found[0].mark, ModelInput)
    assert found[1].mark == Needs("documents")
    assert [r.field for r in references(Ask(models=["a", "b"]))] == ["models.0", "models.1"]
    assert [r.field for r in references(Ask(models=[], questions="q"))] == ["questions"]
    assert [r.field for r in references(Texts(sources=[{"path": "a"}, {"path": "b"}]))] == [
        "sources.0.path",
        "sources.1.path",
    ]


def test_runtime_fields_are_no_part_of_the_identity():
    found = identity(Teach(model="m", documents="d", seconds=9), lambda ref: f"<{ref.value}>")
    assert found["model"] == "<m>"
    assert "seconds" not in found
    assert found["epochs"] == 1


@pytest.mark.parametrize(
    ("change", "where", "what", "cure"),
    [
        ({"learning_rte": 1}, ("learning_rte",), "unknown key", "did you mean 'learning_rate'?"),
        ({"zzz": 1}, ("zzz",), "unknown key", "known here: broken, documents"),
        ({"epochs": "3"}, ("epochs",), "should be a whole number", "without quotes"),
        ({"epochs": 1.5}, ("epochs",), "should be a whole number", "Rounds."),
        ({"epochs": True}, ("epochs",), "should be a whole number", "Default: 1"),
        ({"epochs": 0}, ("epochs",), "should be greater than or equal to 1", "Rounds."),
        ({"learning_rate": "fast"}, ("learning_rate",), "should be a number", "without quotes"),
        ({"learning_rate": float("nan")}, ("learning_rate",), "should be a finite number", "Peak"),
        ({"learning_rate": float("inf")}, ("learning_rate",), "should be a finite number", "Peak"),
        ({"shuffle": "yes"}, ("shuffle",), "should be true or false", "Default: true"),
        ({"shuffle": 1}, ("shuffle",), "should be true or false", "Default: true"),
        ({"model": 7}, ("model",), "should be text", "quotes"),
        ({"model": None}, ("model",), "should be text", "quotes"),
        ({"broken": "yess"}, ("broken",), "not a value that this key takes", "known here: bug, loss, nan, no"),
        ({"broken": "los"}, ("broken",), "not a value that this key takes", "did you mean 'loss'?"),
        ({"method": "ful"}, ("method",), "not a value that this key takes", "did you mean 'full'?"),
        ({"method": 3}, ("method",), "not a value that this key takes", "{freeze: ...} or {lora: ...}"),
        ({"method": {"lorra": {}}}, ("method", "lorra"), "unknown key", "did you mean 'lora'?"),
        ({"method": {"lora": 3}}, ("method", "lora"), "should be a mapping", "known here: r, targets"),
        ({"method": {"lora": {"r": 0}}}, ("method", "lora", "r"), "greater than or equal to 1", "Rank."),
        ({"method": {"lora": {"q": 0}}}, ("method", "lora", "q"), "unknown key", "known here: r, targets"),
        ({"method": {"freeze": {}}}, ("method", "freeze", "blocks"), "this key is missing", "How many."),
        ({"method": {"lora": {"targets": 3}}}, ("method", "lora", "targets"), "not a value", "'all-linear' or a list"),
        ({"method": {"lora": {"targets": [3]}}}, ("method", "lora", "targets", 0), "should be text", "quotes"),
        ({"method": {"lora": {}, "freeze": {"blocks": 1}}}, ("method",), "cannot stand together", "keep one of"),
    ],
)
def test_each_value_that_does_not_fit_has_its_words(change: dict, where: tuple, what: str, cure: str):
    (problem,) = problems(Teach, {**TEACH, **change})
    assert problem.where == where
    assert what in problem.what
    assert cure in (problem.cure or "")


def test_all_problems_are_found_at_once():
    found = problems(Teach, {"kind": "teach", "epochs": 0, "modell": "x", "method": {"lora": {"r": 0, "q": 1}}})
    assert {p.where for p in found} >= {("model",), ("documents",), ("epochs",), ("modell",), ("method", "lora", "r")}


def test_lists_and_missing_values():
    assert problems(Texts, {"kind": "texts", "sources": "a"})[0].what == "should be a list"
    assert problems(Texts, {"kind": "texts", "sources": ["a"]})[0].cure == "known here: field, path"
    assert problems(Texts, {"kind": "texts"})[0].cure == "add `sources:`. What to read."
    assert problems(Texts, {"kind": "texts", "sources": [{"field": "a"}]})[0].where == ("sources", 0, "path")


class Ranged(Config):
    low: int = 0
    """Least."""
    high: int = 1
    """Most."""
    unit: Literal["a", "b"] = "a"
    """Unit."""

    @field_validator("low")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("should be even")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "Ranged":
        if self.low > self.high:
            raise ValueError("low should not exceed high")
        return self


def test_a_class_may_have_its_own_words():
    assert problems(Ranged, {"low": 3}) == [Problem(("low",), "should be even", 3, "Least. Default: 0.")]
    assert problems(Ranged, {"low": 4}) == [Problem((), "low should not exceed high")]


def test_good_values_make_an_instance():
    made = validate(Teach, {**TEACH, "method": {"lora": {"r": 4}}, "learning_rate": 1})
    assert isinstance(made, Teach)
    assert made.learning_rate == 1.0
