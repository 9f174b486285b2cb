"""`metier export`, and the push that only happens when it is asked for by name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import save_tiny
from metier.cli.export import export_folder
from metier.core.errors import EndpointError, InputError, MetierError, MissingExtra, RecipeError
from metier.core.store import Key, Store
from metier.export import needs
from metier.export.parity import TOLERANCES, Tolerance
from metier.export.push import check_push, push
from metier.models.load import load

SCORE = {"contender": "sea", "metric": "token_f1", "group": "all", "n": 8, "mean": 0.5, "low": 0.4, "high": 0.6}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "sea")


def export(model: Path, out: Path, **settings: Any) -> None:
    others = {"scores": settings.pop("scores", []), "push": settings.pop("push", None)}
    export_folder(str(model), out, out.parent / "store", settings, **others)


def test_it_writes_a_folder_with_a_card_that_is_whole(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    with store.build(Key.of("score", "s")) as space:
        (space.files / "scores.json").write_text(json.dumps({"confidence": 0.95, "rows": [SCORE]}))
        made = store.commit(space, {"produces": "scores"})
    store.set_ref("quick", "scored", made.key)
    export(model, tmp_path / "out", gguf=["F16"], scores=["quick/scored"], licence="mit", watts=10)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "0.400 to 0.600" in card
    assert "## Time and energy" in card
    assert load(tmp_path / "out").model.config.vocab_size == load(model).model.config.vocab_size
    assert (tmp_path / "out" / "gguf" / "model-F16.gguf").is_file()
    assert "gguf/model-F16.gguf: the same model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sea", "store"]


def test_what_is_refused_before_anything_is_loaded(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(InputError, match="the folder is there already"):
        export(model, tmp_path / "full")
    with pytest.raises(InputError, match=r"--gguf: Input should be 'F32'") as caught:
        export(model, tmp_path / "out", gguf=["Q3"])
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match="there are no such scores"):
        export(model, tmp_path / "out", scores=["quick/scored"])
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    for settings, package in (({"gguf": ["F16"]}, "gguf"), ({"bits": ["nf4"]}, "bitsandbytes")):
        with pytest.raises(MissingExtra, match=package):
            export(model, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_scores_of_another_model(tmp_path: Path, model: Path) -> None:
    store = Store(tmp_path / "store")
    with store.build(Key.of("score", "s")) as space:
        (space.files / "scores.json").write_text(json.dumps({"rows": [SCORE | {"contender": "land"}]}))
        made = store.commit(space, {"produces": "scores"})
    store.set_ref("quick", "scored", made.key)
    with pytest.raises(RecipeError, match="has no scores of the model 'sea'"):
        export(model, tmp_path / "out", scores=["quick/scored"])


def test_what_is_not_the_same_leaves_no_folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, "F16", Tolerance(0.0, 1.0, 1.0))
    with pytest.raises(MetierError, match="not published"):
        export(model, tmp_path / "out", gguf=["F16"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sea"]


# --- the hub ----------------------------------------------------------------------------------------------------------

OPEN = {"HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("alone", OPEN, "organisation/name"),
        ("a/b/c", OPEN, "organisation/name"),
        ("a/b", OPEN | {"HF_HUB_OFFLINE": "1"}, "the network is switched off"),
        ("a/b", OPEN | {"TRANSFORMERS_OFFLINE": "yes"}, "the network is switched off"),
        ("a/b", {"HF_HUB_OFFLINE": "0"}, "a push needs a token"),
    ],
)
def test_a_push_that_cannot_work(name: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_push(name, environment)
    assert "hf_secret" not in str(caught.value)


def test_a_push_is_refused_before_the_export(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="the network is switched off"):  # as in every test, and every command
        export(model, tmp_path / "out", push="a/b")
    assert not (tmp_path / "out").exists()


def test_a_push_makes_a_private_repository_and_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Hub:
        def __init__(self, token: str) -> None:
            seen.append(token)

        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            seen.append((name, private))
            if name == "a/broken":
                raise OSError("no route\nto it")

        def upload_folder(self, *, folder_path: str, repo_id: str, commit_message: str) -> SimpleNamespace:
            seen.append((folder_path, repo_id))
            return SimpleNamespace(commit_url=f"hub/{repo_id}")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push(tmp_path, "a/b", OPEN) == "hub/a/b"
    assert seen == ["hf_secret", ("a/b", True), (str(tmp_path), "a/b")]
    with pytest.raises(EndpointError, match=r"did not take the folder \(no route\)") as caught:
        push(tmp_path, "a/broken", OPEN)
    assert "hf_secret" not in str(caught.value)
