"""Recipes: what is read, in which order the steps run, and each thing that is refused, with its place and cure."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_stages import CATALOGUE, Teach
from metier.cli.schema import schema
from metier.core.errors import InputError, ModelError, RecipeError
from metier.recipe import Recipe, load_recipe, match_files

GOOD = """\
name: demo
description: A demonstration.
steps:
  taught:
    kind: teach
    model: base
    documents: articles
    learning_rate: 2e-5
    method: {lora: {r: 4}}
  asked: {kind: ask, models: [base, taught], questions: pairs}
  articles:
    kind: texts
    sources: [{path: "*.txt"}]
  pairs: {kind: pairs, sources: [{path: a.txt}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_text("weights")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.txt").write_text("world")
    return tmp_path


def load(folder: Path, text: str = GOOD, *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", overrides, CATALOGUE)


def refused(folder: Path, old: str, new: str, *overrides: str) -> str:
    """The message about the good recipe with `old` replaced, its folder left out."""
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load(folder, GOOD.replace(old, new, 1), *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


def test_a_good_recipe(folder: Path):
    recipe = load(folder)
    assert recipe.name == "demo"
    assert recipe.description == "A demonstration."
    assert list(recipe.steps) == ["articles", "pairs", "taught", "asked"]
    assert recipe.steps["taught"].learning_rate == 2e-5
    assert [link.step for link in recipe.links["asked"]] == [None, "taught", "pairs"]
    assert [p.name for p in recipe.links["articles"][0].files] == ["a.txt", "b.txt"]
    assert recipe.where("taught", ("learning_rate",)).endswith("recipe.yaml:8: taught.learning_rate")
    assert recipe.where("taught", ("epochs",)).endswith("recipe.yaml:4: taught.epochs")


def test_the_resolved_recipe_has_every_default_and_loads_again(folder: Path):
    recipe = load(folder)
    resolved = recipe.resolved()
    assert resolved["steps"]["taught"]["epochs"] == 1
    again = load(folder, yaml.safe_dump(resolved, sort_keys=False))
    assert dict(again.steps) == dict(recipe.steps)


def test_what_a_step_needs(folder: Path):
    recipe = load(folder)
    assert recipe.needed("taught") == ["articles", "taught"]
    assert recipe.needed("asked") == list(recipe.steps)


@pytest.mark.parametrize(
    ("old", "new", "place", "what", "cure"),
    [
        ("name: demo\n", "", "recipe.yaml:1:", "the recipe has no name", "add `name: my-recipe`"),
        ("name: demo", "name: a/b", "recipe.yaml:1: name:", "not a name for a recipe", "it names a folder"),
        ("name: demo", "name: 3", "recipe.yaml:1: name:", "not a name", "found: 3"),
        ("steps:", "stpes:", "recipe.yaml:3: stpes:", "unknown key 'stpes'", "did you mean 'steps'?"),
        ("description: A demonstration.", "description: 3", "recipe.yaml:2:", "should be text", "quotes"),
        ("  asked:", "  Asked:", "recipe.yaml:10: Asked:", "not a name for a step", "small letters"),
        ("  asked:", "  a/b:", "recipe.yaml:10: a/b:", "not a name for a step", "small letters"),
        ("  asked:", "  seedling:", "recipe.yaml:10:", "name of a built-in model", "rename"),
        ("  asked:", "  taught:", "recipe.yaml:10:", "stands here twice (first on line 4)", "keep one"),
        ("kind: teach", "kind: tech", "recipe.yaml:5: taught.kind:", "no such kind", "did you mean 'teach'?"),
        ("    kind: teach\n", "", "recipe.yaml:4: taught:", "the step has no kind", "one of texts, pairs, teach, ask"),
        ("    model: base\n", "", "recipe.yaml:4: taught.model:", "key is missing", "The model to start from."),
        ("learning_rate:", "learning_rte:", "recipe.yaml:8: taught.learning_rte:", "unknown", "'learning_rate'?"),
        ("2e-5", "-1", "recipe.yaml:8: taught.learning_rate:", "should be greater than 0", "found: -1"),
        ("2e-5", "yes", "recipe.yaml:8: taught.learning_rate:", "should be a number", "found: 'yes'"),
        ("r: 4", "r: x", "recipe.yaml:9: taught.method.lora.r:", "a whole number", "found: 'x'"),
        ("documents: articles", "documents: artcles", "recipe.yaml:7: taught.documents:", "no step", "'articles'?"),
        ("documents: articles", "documents: zzz", "recipe.yaml:7:", "no step", "steps that make documents: articles"),
        ("documents: articles", "documents: pairs", "recipe.yaml:7:", "'pairs' makes examples", "documents: articles"),
        ("models: [base, taught]", "models: [pairs]", "asked.models.0:", "'pairs' makes examples", "model: taught"),
        (
            "models: [base, taught]",
            "models: [tauht]",
            "asked.models.0:",
            "no such model",
            "did you mean 'taught', a step",
        ),
        ("model: base", "model: nobase", "recipe.yaml:6: taught.model:", "no such model", "built in: seedling"),
        ("model: base", "model: taught", "recipe.yaml:6: taught.model:", "circle: taught -> taught", "start from"),
        ("model: base", "model: a.txt", "recipe.yaml:6: taught.model", "a model is a folder", "folder that holds it"),
        ('"*.txt"', "a.tx", "recipe.yaml:13: articles.sources.0.path:", "no file is there", "did you mean 'a.txt'?"),
        ('"*.txt"', "'*.md'", "recipe.yaml:13: articles.sources.0.path:", "no file is there", "recipe's folder"),
        (
            "  asked: {kind: ask,",
            "  asked: [kind, ask]\n  x: {",
            "recipe.yaml:10: asked:",
            "a step is a mapping",
            "kind",
        ),
    ],
)
def test_each_fault_has_place_and_cure(folder: Path, old: str, new: str, place: str, what: str, cure: str):
    message = refused(folder, old, new)
    assert place in message
    assert what in message
    assert cure in message


@pytest.mark.parametrize(
    "text", ["", "- a\n", "3\n", "name: x\nsteps:\n", "name: x\nsteps: {}\n", "name: x\nsteps: [a]\n"]
)
def test_what_is_no_recipe_at_all(folder: Path, text: str):
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d"):
        load(folder, text)


def test_all_faults_are_shown_at_once(folder: Path):
    message = refused(folder, "learning_rate: 2e-5\n", "learning_rte: 2e-5\n    epochs: 0\n    shuffle: maybe\n")
    assert message.count("cure:") == 3
    assert "recipe.yaml:9: taught.epochs" in message
    assert "recipe.yaml:10: taught.shuffle" in message


def test_faults_of_the_wiring_are_shown_at_once(folder: Path):
    message = refused(folder, "documents: articles", "documents: nothing", "asked.models=[none-such]")
    assert "taught.documents" in message
    assert "asked.models.0" in message


def test_a_longer_circle_is_shown_whole(folder: Path):
    text = "name: x\nsteps:\n"
    for name, model in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        text += f"  {name}: {{kind: teach, model: {model}, documents: t}}\n"
    text += "  t: {kind: texts, sources: [{path: a.txt}]}\n"
    with pytest.raises(RecipeError, match="circle: a -> b -> c -> a"):
        load(folder, text)


def test_a_step_that_nothing_can_make_says_which_kind_does(folder: Path):
    text = "name: x\nsteps:\n  a: {kind: teach, model: base, documents: none}\n"
    with pytest.raises(RecipeError, match="add a step of kind texts"):
        load(folder, text)


def test_one_value_means_one_thing_in_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from metier.core.stage import FilePattern

    class Both(Teach):
        kind: str = "both"
        extra: FilePattern

    (folder / "articles").write_text("a file named like a step")
    text = GOOD.replace("kind: teach", "kind: both\n    extra: articles")
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"taught\.extra: the same words mean something else in documents"):
        load_recipe(folder / "recipe.yaml", (), {**CATALOGUE, "both": Both})


def test_a_model_that_could_not_be_loaded_is_refused(folder: Path):
    (folder / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"recipe\.yaml:6: taught\.model: .*weights are missing"):
        load(folder)


def test_a_file_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened = Path.open

    def refuse(self: Path, *args: Any, **named: Any) -> Any:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError, match=r"articles\.sources\.0\.path: the file cannot be read: Permission denied"):
        load(folder)


def test_patterns(folder: Path):
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "c.txt").write_text("c")
    (folder / "deep" / ".hidden").write_text("h")
    (folder / "odd[1].txt").write_text("o")

    def names(pattern: str) -> list[str]:
        return [p.relative_to(folder).as_posix() for p in match_files(pattern, folder)]

    assert names("deep") == ["deep/er/c.txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "deep/er/c.txt", "odd[1].txt"]
    assert names("odd[1].txt") == ["odd[1].txt"]
    assert names(str(folder / "a.txt")) == ["a.txt"]
    (folder / "empty").mkdir()
    with pytest.raises(RecipeError, match="the folder holds no file"):
        names("empty")


def test_overrides(folder: Path):
    recipe = load(
        folder,
        GOOD,
        "taught.learning_rate=5e-5",
        "taught.method.lora.r=16",
        "taught.shuffle=false",
        "articles.sources.0.path=a.txt",
        "asked.models=[taught]",
    )
    assert recipe.steps["taught"].learning_rate == 5e-5
    assert recipe.steps["taught"].model_dump()["method"] == {"lora": {"r": 16, "targets": "all-linear"}}
    assert recipe.steps["taught"].shuffle is False
    assert recipe.steps["asked"].models == ["taught"]
    assert len(recipe.links["articles"][0].files) == 1


def test_an_override_may_fill_in_what_the_recipe_left_out(folder: Path):
    recipe = load(folder, GOOD.replace("    method: {lora: {r: 4}}\n", ""), "taught.method.freeze.blocks=2")
    assert recipe.steps["taught"].model_dump()["method"] == {"freeze": {"blocks": 2}}


@pytest.mark.parametrize(
    ("override", "what", "cure"),
    [
        ("taught.learning_rte=1", "--set taught.learning_rte: taught.learning_rte: unknown key", "'learning_rate'?"),
        ("taught.epochs=two", "--set taught.epochs: taught.epochs: should be a whole number", "found: 'two'"),
        ("tought.epochs=2", "--set: there is no such step", "did you mean 'taught'?"),
        ("taught.epochs", "--set: not an override", "--set step.field=value"),
        ("taught=3", "--set: not an override", "--set step.field=value"),
        ("taught..epochs=3", "--set: not an override", "--set step.field=value"),
        ("taught.learning_rate.x=3", "taught.learning_rate is a single value", "--set 'taught.learning_rate={"),
        ("articles.sources.1.path=a.txt", "no such entry", "articles.sources has 1 entries"),
        ("articles.sources.x=a.txt", "no such entry", "articles.sources has 1 entries"),
        ("taught.epochs=[1", "--set taught.epochs:1: not valid YAML", "brackets"),
        ("taught.kind=asks", "--set taught.kind: taught.kind: there is no such kind", "'ask'?"),
        ("taught.method.lorra.r=1", "--set taught.method.lorra.r: taught.method.lorra: unknown key", "'lora'?"),
    ],
)
def test_each_bad_override_has_place_and_cure(folder: Path, override: str, what: str, cure: str):
    with pytest.raises(RecipeError) as caught:
        load(folder, GOOD, override)
    assert what in str(caught.value)
    assert cure in str(caught.value) or cure == "brackets"


# ---- the schema: checked by a small validator that knows the words our schema uses --------------------------------


def fits(value: Any, rule: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value satisfies a JSON Schema."""
    import re

    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "$ref" in rule and not fits(value, root["$defs"][rule["$ref"].rsplit("/", 1)[-1]], root):
        return False
    if "oneOf" in rule and sum(fits(value, arm, root) for arm in rule["oneOf"]) != 1:
        return False
    if "anyOf" in rule and not any(fits(value, arm, root) for arm in rule["anyOf"]):
        return False
    if "const" in rule and value != rule["const"]:
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    kind = rule.get("type")
    if kind == "null" and value is not None:
        return False
    if kind in kinds and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if isinstance(value, (int, float)) and not (
        value > rule.get("exclusiveMinimum", value - 1) and value >= rule.get("minimum", value)
    ):
        return False
    if isinstance(value, str) and "pattern" in rule and not re.search(rule["pattern"], value):
        return False
    if isinstance(value, list):
        return all(fits(item, rule.get("items", {}), root) for item in value)
    if not isinstance(value, dict):
        return True
    known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    for key, item in value.items():
        inner = known.get(key, others)
        if inner is False or (isinstance(inner, dict) and not fits(item, inner, root)):
            return False
        if not fits(key, rule.get("propertyNames", {}), root):
            return False
    return all(key in value for key in rule.get("required", []))


def test_the_schema_accepts_a_good_recipe_and_refuses_bad_ones():
    found = schema(CATALOGUE)
    assert fits(yaml.safe_load(GOOD.replace("2e-5", "0.1")), found, found)
    for old, new in (
        ("learning_rate:", "learning_rte:"),
        ("kind: teach", "kind: tech"),
        ("    kind: teach\n", ""),
        ("    model: base\n", ""),
        ("2e-5", "fast"),
        ("2e-5", "-1.0"),
        ("r: 4", "q: 4"),
        ("name: demo\n", ""),
        ("steps:", "stpes:"),
        ("  asked:", "  Asked:"),
    ):
        assert not fits(yaml.safe_load(GOOD.replace(old, new)), found, found), (old, new)


def test_the_schema_explains_itself():
    found = schema(CATALOGUE)
    assert found["$defs"]["Teach"]["properties"]["epochs"]["description"] == "Rounds."
    assert found["$defs"]["Teach"]["description"].startswith("Teach a model")
    assert set(found["properties"]["steps"]["additionalProperties"]["discriminator"]["mapping"]) == set(CATALOGUE)
