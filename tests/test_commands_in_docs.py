"""Every command that the README and the pages show is run, in a folder with short copies of the recipes."""

import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from safetensors.torch import load_file

from metier.cli import main
from metier.models.builtin import BUILTIN
from test_site import PAGES, ROOT, blocks, spans

METIER = str(Path(sys.executable).with_name("metier"))
LEAST = 40
"""Fewer found means that the search for them broke."""
PLACES = {
    "RECIPE": "recipes/quickstart.yaml",
    "STEP": "reader",
    "MODEL": "quickstart/specialist",
    "MODEL...": "quickstart/specialist",
    "A": "quickstart/specialist",
    "B": "quickstart/pairs-only",
    "A,B": "seedling,quickstart/reader",
    "DATA...": "texts.jsonl questions.jsonl --out data.yaml",
    "FOLDER": "another",
    "FILE": "old/pytorch_model.bin",
    "...": "quickstart/specialist pushed",
}
"""What a reader puts where the pages say what stands there."""
BEFORE = [
    "metier run recipes/quickstart.yaml",
    "metier run recipe.yaml",
    "metier run monday.yaml",
    "metier run tuesday.yaml",
    "metier init texts.jsonl questions.jsonl --out my-trade.yaml",
]
"""What the pages take for done."""
AFTER = ("metier gc", "metier store verify")
"""What would take from the others what they need."""
TOO_LARGE = ["metier run recipes/pharma.yaml --rehearse --tokenizers TOKENIZERS"]
"""What takes a model's true size: `python -m benchmarks.recipes rehearse` runs these."""
ELSEWHERE = [
    "metier run recipe.yaml --store s3://bucket/prefix",
    "metier run recipe.yaml --on local",
    "metier run recipe.yaml --on auto",
    "metier run recipe.yaml --on node-a:6379",
    "metier run recipe.yaml --on ray://node-a:10001",
]
"""What needs a server or a cluster: tests/core/test_elsewhere.py and tests/scale/test_ray.py start them."""
SAID = {"chat": "What does the narwhal eat?\n/quit\n", "label": "q\n"}
CUT: dict[str, dict[str, Any]] = {
    "pretrain": {"max_steps": 1},
    "tune": {"max_steps": 1},
    "unlearn": {"max_steps": 1},
    "answer": {"limit": 2, "max_new_tokens": 2},
    "judge": {"limit": 2},
    "perplexity": {"limit": 1},
    "knowledge": {"limit": 8},
    "knows": {"rounds": 1, "max_new_tokens": 2},
    "choose": {"limit": 2},
}
"""What makes a step of each kind short."""
SMALL_GUARD = {"limit": 45, "max_new_tokens": 2}
JUDGED = {
    "answers": {"kind": "answer", "models": ["seedling"], "questions": "questions", "limit": 4, "max_new_tokens": 2},
    "verdicts": {"kind": "judge", "answers": "answers", "judges": ["evidence"]},
}


def shown() -> list[str]:
    """Each command once, in the order of the pages, with something where a page only says what stands there."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        found += [*blocks(text), *(line for line in spans(text) if _complete(line))]
    return list(dict.fromkeys(map(_filled, found)))


def _complete(line: str) -> bool:
    """A sentence may name a command without what it takes; these take nothing."""
    words = line.split()
    takes_nothing = words[1] in ("doctor", "schema", "gc")
    return takes_nothing or len(words) > 3 or (len(words) == 3 and not words[2].startswith("-"))


def _filled(line: str) -> str:
    words = shlex.split(line, comments=True)
    places = {**PLACES, "RECIPE": "recipe.yaml"} if words[1] == "label" else PLACES
    if words[1] == "init" and not {"--out", "DATA..."} & set(words):
        words += ["--out", "begun.yaml"]
    return " ".join(places.get(word, shlex.quote(word)) for word in words)


def _cut(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with short steps; what --smoke changes is cut too, since it has the last word."""
    kinds = {name: step["kind"] for name, step in recipe["steps"].items()}
    smoke = recipe.get("smoke", {}).get("steps", {})
    for steps in (recipe["steps"], smoke):
        for name, step in steps.items():
            step.update(CUT.get(step.get("kind") or kinds[name], {}))
            for guard in ("guard", "conditions"):
                if isinstance(step.get(guard), dict):
                    step[guard].update(SMALL_GUARD, **({"margin": 0.6} if "examples" in step[guard] else {}))
    return recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader's: the recipes, data of one's own, recipes of other days, an old file of weights."""
    folder = tmp_path_factory.mktemp("reader")
    recipes = folder / "recipes"
    recipes.mkdir()
    (recipes / "data").symlink_to(ROOT / "recipes/data")
    for path in (ROOT / "recipes").glob("*.yaml"):
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        (recipes / path.name).write_text(yaml.safe_dump(_cut(text), sort_keys=False), encoding="utf-8")
    own(folder)
    for name in ("recipe", "monday", "tuesday"):
        steps = {
            "questions": {"kind": "examples", "sources": [{"path": "questions.jsonl"}], "test_fraction": 0.2},
            "specialist": {"kind": "tune", "model": "seedling", "examples": "questions", "max_steps": 1},
            **JUDGED,
            "scores": {"kind": "score", "answers": "answers"},
        }
        steps["answers"] = {**steps["answers"], "models": ["seedling", "specialist"]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "steps": steps}, sort_keys=False))
    old = shutil.copytree(BUILTIN["seedling"], folder / "old")
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    return folder


def own(folder: Path) -> None:
    tools = ("lathe", "plane", "vice", "anvil", "forge", "file", "chisel", "drill", "saw", "clamp")
    makers = ("Ada", "Ben", "Cleo", "Dov", "Eva", "Finn", "Gwen", "Hal")
    pairs = [(maker, tool) for maker in makers for tool in tools]
    texts = [
        {"text": f"The {tool} of {maker} stands in room {i}, beside the door."} for i, (maker, tool) in enumerate(pairs)
    ]
    asked = [
        {"question": f"Where does {maker}'s {tool} stand?", "answer": f"In room {i}."}
        for i, (maker, tool) in enumerate(pairs)
    ]
    (folder / "notes").mkdir()
    for name, rows in (("texts", texts), ("questions", asked), ("notes/texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = ["question,answer", *(f"{row['question']},{row['answer']}" for row in asked)]
    (folder / "questions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process: its exit code, and all that it said."""
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.StringIO(SAID.get(words[1], "")))
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    code = ended.value.code
    return code if isinstance(code, int) else 0, told.out + told.err


def ready(line: str) -> None:
    """Make room for what a command writes: another may have written it already."""
    words = shlex.split(line)
    for word in words[2:]:
        if word in ("another", "sea-model", "pushed"):
            shutil.rmtree(word, ignore_errors=True)
    if "--out" in words and words[1] == "init":
        Path(words[words.index("--out") + 1]).unlink(missing_ok=True)


def fault(line: str, code: int, said: str) -> str:
    """What is wrong with how a command ended, or nothing."""
    if "--push" in line:  # no test reaches a hub
        return "" if code and "the hub cannot be reached" in said else f"{line}: pushed? {said[-500:]}"
    return "" if code == 0 else f"{line}: exit code {code}: {said[-800:]}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], record_property: Any
):
    monkeypatch.chdir(place)
    monkeypatch.delenv("METIER_STORE", raising=False)
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")
    found = shown()
    assert {*TOO_LARGE, *ELSEWHERE} <= set(found)
    left_out = {*AFTER, *TOO_LARGE, *ELSEWHERE}
    lines = [line for line in found if line not in left_out and not line.startswith("metier serve")]
    faults, times = [], {}
    for line in [*BEFORE, *lines, *(line for line in AFTER if line in found)]:
        ready(line)
        start = time.monotonic()
        faults.append(fault(line, *run(line, monkeypatch, capsys)))
        times[line] = time.monotonic() - start
    record_property("commands", len(found))
    if os.environ.get("SHOW_TIMES"):
        with capsys.disabled():
            for line, took in sorted(times.items(), key=lambda item: -item[1])[:30]:
                print(f"{took:6.1f} {line}")  # noqa: T201
    wrong = [one for one in faults if one]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    assert len(found) >= LEAST


@pytest.mark.slow
def test_every_server_starts(place: Path):
    lines = [line for line in shown() if line.startswith("metier serve")]
    assert len(lines) >= 2
    for line in lines:
        models = [word.split("=")[0] for word in shlex.split(line)[2:] if not word.startswith("-")]
        assert set(models) <= _served([*shlex.split(line)[1:], "--port", str(free_port())], place), line


def _served(arguments: list[str], folder: Path) -> set[str]:
    """Start a server, ask which models it has, and stop it by a signal, which it takes as a request."""
    if not (folder / "runs/quickstart").exists():  # this test may come first
        subprocess.run([METIER, "run", "recipes/quickstart.yaml"], cwd=folder, check=True, capture_output=True)
    server = subprocess.Popen(
        [METIER, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{arguments[-1]}/v1/models"
    try:
        for _ in range(600):
            try:
                return {model["id"] for model in httpx.get(address).json()["data"]}
            except httpx.TransportError:
                assert server.poll() is None, server.communicate()[0]
                time.sleep(0.1)
        raise AssertionError(f"no answer from {arguments}")
    finally:
        server.send_signal(signal.SIGINT)
        said, _ = server.communicate(timeout=30)
        assert server.returncode in (0, 128 + signal.SIGINT), said


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
