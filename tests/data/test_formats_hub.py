"""Data sets of the hub: a local folder in its layout, and a stand-in for the hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import COMMIT, stand_in

from metier.cli.looking import make
from metier.core.errors import DataError, MissingExtra
from metier.core.store import Store
from metier.data.formats.hub import Hub
from metier.data.readers import Example, Text, read_examples, read_texts
from metier.pipeline import plan
from metier.recipe import load_recipe
from metier.text.artifacts import read_jsonl


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROWS = lines(*({"id": n, "text": f"Text {n}", "question": "Q?", "answer": "A."} for n in range(5)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "sea"
    made.mkdir()
    (made / "train.jsonl").write_bytes(ROWS)
    (made / "test.jsonl").write_bytes(lines({"id": 9, "text": "Test"}))
    return made


def texts(source: Hub, notes: list[str]) -> list[Any]:
    return list(read_texts(source, note=notes.append))


def refused(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert caught.value.cure
    for part in parts:
        assert part in str(caught.value)


def test_a_local_folder(folder: Path) -> None:
    notes: list[str] = []
    assert texts(Hub(folder=str(folder), take=2), notes) == [
        Text("sea/train:row 1", "0", "Text 0"),
        Text("sea/train:row 2", "1", "Text 1"),
    ]
    assert notes == []
    assert [t.id for t in texts(Hub(folder=str(folder), split="test"), [])] == ["9"]
    found = list(read_examples(Hub(folder=str(folder)), note=notes.append))
    assert len(found) == 5
    assert all(isinstance(item, Example) for item in found)


def test_a_local_folder_counts_by_its_contents(folder: Path) -> None:
    recipe = folder.parent / "recipe.yaml"
    steps = "steps: {pages: {kind: documents, heldout: [{hub: {folder: sea, split: test}}]}}\n"
    recipe.write_text("name: sea\n" + steps)

    def key() -> str:
        (step,) = plan(load_recipe(recipe), Store(folder.parent / "store"))
        return str(step.key)

    before = key()
    (step,) = plan(load_recipe(recipe), Store(folder.parent / "store"))
    out = make(load_recipe(recipe), step, {}, folder.parent / "aside")
    assert out is not None
    assert [row["text"] for row in read_jsonl(out / "heldout.jsonl")] == ["Test"]
    assert key() == before
    (folder / "test.jsonl").write_bytes(lines({"id": 9, "text": "Another"}))
    assert key() != before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "either an `id` on the hub or a local `folder`"),
        ({"id": "a/b", "folder": "c"}, "either an `id` on the hub or a local `folder`"),
        ({"folder": "c", "revision": "main"}, "`revision` has no effect"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Hub.model_validate(settings)


def test_the_folder_of_files_that_were_found(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    assert Hub(folder="sea").at(paths).folder == str(folder)
    assert Hub(folder=str(folder)).at(paths).folder == str(folder)
    refused(lambda: Hub(folder="sea/train.jsonl").at(paths[1:]), "no folder", "`path`")


def test_what_is_wrong_with_a_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: texts(Hub(folder=str(folder), split="tset"), []), "sea/tset", "Bad split", "'test'", "`split`")
    refused(lambda: texts(Hub(folder=str(folder), config="x"), []), "sea/x/train", "'x' not found", "`config`")
    refused(lambda: texts(Hub(id="./none"), []), "no id of the hub", "folder: ./none")
    refused(lambda: texts(Hub(id=str(folder)), []), "no id of the hub", f"folder: {folder}")
    refused(lambda: texts(Hub(id="owner/name"), []), "owner/name/train", "HF_HUB_OFFLINE", "HF_HUB_OFFLINE=0")
    (folder / "train.jsonl").write_bytes(lines({"text": 1}))
    refused(lambda: texts(Hub(folder=str(folder)), []), "sea/train:row 1", "holds a number")
    (folder / "train.jsonl").write_bytes(lines({"body": "A text."}))
    refused(lambda: texts(Hub(folder=str(folder)), []), "sea/train:row 1", "field: body")
    (folder / "train.jsonl").write_bytes(lines({"text": "x"}) + b'{"text": \n')
    refused(lambda: texts(Hub(folder=str(folder)), []), "sea/train", "cannot be read", "JSON parse error")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="not installed"):
        texts(Hub(folder=str(folder)), [])


ASK = """
import json, sys
from metier.core.errors import DataError
from metier.data.formats.hub import Hub
from metier.data.readers import read_texts
for settings in json.loads(sys.argv[1]):
    notes = []
    try:
        print(json.dumps([[t.where + " " + t.text for t in read_texts(Hub(**settings), note=notes.append)], notes]))
    except DataError as error:
        print(json.dumps([str(error), notes]))
"""


def ask(url: str, home: Path, *wanted: dict[str, Any]) -> list[Any]:
    """What a process of its own reads: the libraries look at these settings only when they are imported."""
    off = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(wanted)],
        env={**os.environ, **off, "HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_on_this_machine(tmp_path: Path) -> None:
    asked: list[str] = []
    name = "owner/name"
    with stand_in(name, {"data/train.jsonl": ROWS, "README.md": b"# Sea\n"}, asked) as url:
        whole, pinned, stored, unknown, no_split = ask(
            url,
            tmp_path,
            {"id": name, "revision": COMMIT},
            {"id": name, "revision": COMMIT, "take": 2},
            {"id": name, "revision": COMMIT, "streaming": False},
            {"id": "else/where"},
            {"id": name, "revision": COMMIT, "split": "odd"},
        )
        unpinned, branch = ask(url, tmp_path, {"id": name}, {"id": name, "revision": "main"})
    assert whole[0] == [f"name/train:row {n + 1} Text {n}" for n in range(5)]
    assert "no revision is given, and the branch 'main' may change" in unpinned[0]
    assert "'main' may change" in branch[0]
    for refusal in (unpinned[0], branch[0]):
        assert f"revision: {COMMIT}" in refusal
    assert pinned == [whole[0][:2], []]
    assert stored[0] == whole[0]
    assert "check id and revision" in unknown[0]
    assert "Bad split" in no_split[0]
    assert any(line.startswith(f"GET /datasets/{name}/resolve/{COMMIT}/data/train.jsonl") for line in asked)
