"""Processes of their own that ask a stand-in server: killed and started again, and checked before they run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.engine.stand_in import StandIn, serving
from tests.synthesize.test_teacher import digests, honest

from metier.text.artifacts import write_jsonl
from metier.text.nouns import Message

RECIPE = """
name: syn
steps:
  texts: {{kind: documents, sources: [{{path: texts.jsonl}}]}}
  pairs:
    kind: synthesize
    documents: texts
    teacher: {{endpoint: "{url}", model: tiny, concurrency: 2}}
    ask: {{per_passage: 2}}
"""


def command(folder: Path, *words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("metier")), *words, str(folder / "recipe.yaml")]


def made_files(folder: Path) -> dict[str, str]:
    (artifact,) = (folder / ".metier/objects").glob("examples-*")
    return digests(artifact / "files")


def test_a_process_that_is_killed_leaves_its_replies_behind(tmp_path: Path):
    texts = [{"id": f"d{i}", "text": f"Animal {i} eats food {i}. It lives in place {i} all year."} for i in range(20)]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    with serving(StandIn()) as server:
        server.answer = lambda body: honest([Message(m["role"], m["content"]) for m in body["messages"]])
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(url=server.url))
        process = subprocess.Popen(command(tmp_path, "run"), cwd=tmp_path, stdout=subprocess.DEVNULL)
        while len(server.asked) < 25 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list((tmp_path / ".metier/objects").glob("examples-*"))
        subprocess.run(command(tmp_path, "run"), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        asked = [json.dumps(body["messages"]) for body in server.asked]
        assert len(set(asked)) == 20 + 21, "the second question is the same for all documents, so it is checked once"
        assert len(asked) <= 41 + 2, "but for the two requests that were under way"
        found = made_files(tmp_path)
        shutil.rmtree(tmp_path / ".metier")
        subprocess.run(command(tmp_path, "run"), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        assert made_files(tmp_path) == found


def test_a_check_asks_nobody_and_looks_at_what_templates_make(tmp_path: Path):
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "The orca eats seals."}])
    with serving(StandIn()) as server:
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(url=server.url))
        done = subprocess.run(command(tmp_path, "check"), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not server.asked
    (tmp_path / "facts.csv").write_text("name,food\norca,seals\nnarwhal,halibut\n")
    asks = "templates: [{ask: ['What eats the {name}?'], answer: '{food}.'}]"
    (tmp_path / "facts.yaml").write_text("{name: name, passage: ['The {name} eats {food}.'], " + asks + "}")
    recipe = "name: syn\nsteps:\n  pairs: {kind: synthesize, tables: [{path: facts.csv, templates: facts.yaml}]}\n"
    recipe += "  tuned: {kind: tune, model: seedling, examples: pairs}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = subprocess.run(command(tmp_path, "check"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "What eats the orca?" in done.stdout
    (tmp_path / "facts.csv").write_text("name,prey\norca,seals\n")
    done = subprocess.run(command(tmp_path, "run"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the table has no such column" in done.stderr
    assert not (tmp_path / ".metier/objects").exists()
