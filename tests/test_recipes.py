"""Every recipe that ships loads and its data reads; the quickstart runs whole at smoke size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metier.core.store import Store
from metier.pipeline import check, plan
from metier.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if ROOT / "recipes/data" not in p.parents)
SMALL = {
    "reader.max_steps": 2,
    "specialist-adapter.max_steps": 2,
    "pairs-adapter.max_steps": 2,
    "answers.limit": 6,
    "likelihood.limit": 4,
}
SMOKE = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


def test_all_recipes_are_found():
    names = ["methods", "pruning", "quickstart", "refusals", "synthesis", "unlearning"]
    assert [path.stem for path in RECIPES] == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_and_its_data_are_sound(path: Path, tmp_path: Path):
    recipe = load_recipe(path)
    store = tmp_path / "store"
    check(recipe, plan(recipe, Store(store)))
    assert recipe.name == path.stem
    assert not store.exists()


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
