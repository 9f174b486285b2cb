"""Every recipe that ships loads and its data reads; the quickstart runs whole at smoke size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metier.core.errors import InputError
from metier.core.marked import read_marked
from metier.core.store import Store
from metier.data.settings import TextSource
from metier.pipeline import check, plan
from metier.recipe import load_recipe
from metier.trial.reshape import Trial

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if ROOT / "recipes/data" not in p.parents)
SPECIALISTS = ["marine-biology", "medication", "pharma", "pubmedqa", "sleep-stress"]
SMALL = {
    "reader.max_steps": 2,
    "specialist-adapter.max_steps": 2,
    "pairs-adapter.max_steps": 2,
    "answers.limit": 6,
    "likelihood.limit": 4,
}
SMOKE = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


def test_all_recipes_are_found():
    names = ["methods", "pruning", "quickstart", "refusals", "safer", "synthesis", "unlearning"]
    assert sorted(path.stem for path in RECIPES) == sorted([*names, *SPECIALISTS])


def readings() -> list[tuple[Path, Trial]]:
    """Every recipe in every way that it can be read here: the specialists' models are not here, so theirs are smoke."""
    found = []
    for path in RECIPES:
        smoke = path.stem in SPECIALISTS
        variants = read_marked(path).value.get("variants") or {}
        found += [(path, Trial(variant, smoke)) for variant in (None, *variants)]
    return found


@pytest.mark.parametrize(("path", "trial"), readings(), ids=lambda one: getattr(one, "stem", None) or one.suffix)
def test_recipe_and_its_data_are_sound(path: Path, trial: Trial, tmp_path: Path):
    recipe = load_recipe(path, trial=trial)
    store = tmp_path / "store"
    check(recipe, plan(recipe, Store(store)))
    assert recipe.name == path.stem + trial.suffix
    assert not store.exists()


def test_every_recipe_was_read_in_every_way():
    assert len(readings()) == 7 + 5 * 2 + 1  # seven as they are; five specialists with their variant; pharma has two


@pytest.mark.parametrize("name", SPECIALISTS)
def test_a_specialist_says_how_its_models_come(name: str):
    path = ROOT / "recipes" / f"{name}.yaml"
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    said = str(caught.value)
    assert "metier fetch" in said or "no file is there" in said
    assert f"metier fetch recipes/{name}.yaml" in path.read_text(encoding="utf-8")


def test_the_streaming_sources_of_pharma_are_sound_once_pinned(tmp_path: Path):
    text = (ROOT / "recipes/pharma.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"^    # (- \{hub: .*)$", text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        (source,) = yaml.safe_load(line.replace("COMMIT", "a" * 40))
        assert TextSource.model_validate(source).hub.streaming


def metier(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [str(Path(sys.executable).with_name("metier")), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    done = metier("run", str(ROOT / "recipes/quickstart.yaml"), *SMOKE, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout.splitlines()[-1]
    return folder


def test_quickstart_runs_whole(smoke: Path):
    out = smoke / "runs/quickstart"
    board = json.loads((out / "leaderboards_full.json").read_text(encoding="utf-8"))
    models = {"seedling", "reader", "pairs-only", "specialist"}
    needing_none = {"copy of the question", "nearest training answer"}
    assert {place["name"] for place in board["contenders"]} == models | needing_none
    assert (out / "model/model.safetensors").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)


def test_a_second_run_does_nothing_and_a_changed_rate_says_why(smoke: Path):
    recipe = str(ROOT / "recipes/quickstart.yaml")
    objects = sorted(p.name for p in (smoke / ".metier/objects").iterdir())
    assert metier("run", recipe, *SMOKE, cwd=smoke).returncode == 0
    assert sorted(p.name for p in (smoke / ".metier/objects").iterdir()) == objects
    planned = metier("plan", recipe, *SMOKE, "--set", "specialist-adapter.learning_rate=5e-5", cwd=smoke).stdout
    told = " ".join(planned.split())
    assert "-> 5e-05" in told or "-> 5e-5" in told
    assert planned.count("cached") == 6  # the data, the reader and the comparison run


def test_the_published_model_loads_with_stock_classes(smoke: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smoke / "runs/quickstart/model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does the narwhal eat?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]


def test_chat_answers_once(smoke: Path):
    done = metier(
        "chat", "quickstart/specialist", "--ask", "What does the narwhal eat?", "--max-new-tokens", "4", cwd=smoke
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_command_in_the_readme_exists():
    help_text = metier("--help", cwd=ROOT).stdout
    named = set(re.findall(r"`metier (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(named) >= 8
    assert [c for c in named if c not in help_text] == []
