"""How errors read."""

from metier.core.errors import DataError, InputError, MissingExtra, RecipeError, StoreError, nearest, shorten, together


def test_an_error_says_what_where_value_and_cure():
    error = RecipeError("unknown key", where="r.yaml:3: tune.epoch", value=3, cure="did you mean 'epochs'?")
    assert str(error) == "r.yaml:3: tune.epoch: unknown key\n  found: 3\n  cure:  did you mean 'epochs'?"
    assert error.exit_code == 2
    assert StoreError("x").exit_code == 1


def test_places_nest():
    assert DataError("bad", where="a.jsonl:3").within("r.yaml:1: step").where == "r.yaml:1: step: a.jsonl:3"
    assert DataError("bad").within("r.yaml:1").where == "r.yaml:1"


def test_errors_are_shown_together():
    error = together([RecipeError("one"), DataError("two"), InputError("three")])
    assert isinstance(error, RecipeError)
    assert str(error) == "one\ntwo\nthree"


def test_near_names():
    assert nearest("epoch", ["epochs", "model"]) == "did you mean 'epochs'?"
    assert nearest("zzz", ["b", "a"]) == "known here: a, b"
    assert nearest("zzz", []) == "nothing is known here"


def test_long_values_are_cut():
    assert len(shorten("x" * 1000)) < 130
    assert "pip install 'metier[eval]'" in str(MissingExtra("rouge_score", "eval", needed_by="rouge_l"))
