"""`metier chat`, on a tiny model."""

import io
import sys
from pathlib import Path

import pytest

from fakes import byte_tokenizer, tiny_llama
from metier.cli.chat import Conversation, Settings, find_model, limits_of, start_chat
from metier.core.errors import InputError, ModelError
from metier.core.store import Artifact, Key, Store
from metier.models.load import load
from metier.models.save import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_llama(), byte_tokenizer(), folder)
    return folder


def put(store: Store, step: str, produces: str) -> Artifact:
    with store.build(Key.of(produces, step)) as workspace:
        (workspace.files / "a").write_text("")
        made = store.commit(workspace, {"produces": produces})
    store.set_ref("quick", step, made.key)
    return made


def test_a_model_is_found_by_recipe_and_step(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path / "store")
    made = put(store, "specialist", "model")
    put(store, "answers", "answers")
    assert find_model("quick/specialist", store) == made.files
    assert find_model(str(folder), store) == folder
    with pytest.raises(ModelError, match="did you mean 'specialist'"):
        find_model("quick/specialst", store)
    with pytest.raises(ModelError, match="that step made no model"):
        find_model("quick/answers", store)
    with pytest.raises(ModelError, match="no such model"):
        find_model("nowhere", store)


def test_what_a_model_must_not_be_used_for_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    store = Store(tmp_path / "store")
    put(store, "specialist", "model")
    assert limits_of("quick/specialist", store) == []
    with store.build(Key.of("model", "handed-over")) as workspace:
        save_model(tiny_llama(), byte_tokenizer(), workspace.files)
        limits = ["This is no medical advice.", "Not for children."]
        made = store.commit(workspace, {"produces": "model", "kind": "export", "config": {"limits": limits}})
    store.set_ref("quick", "handed-over", made.key)
    assert limits_of("quick/specialist", store) == limits  # of the same recipe
    assert limits_of("other/specialist", store) == limits_of("seedling", store) == []
    start_chat(["quick/handed-over"], store.root, Settings(None, 0.0, 2), "Why?")
    assert capsys.readouterr().err.splitlines()[:2] == limits


def test_one_question(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start_chat([str(folder)], tmp_path, Settings(None, 0.0, 8), "Hello?")
    first = capsys.readouterr().out
    start_chat([str(folder)], tmp_path, Settings(None, 0.0, 8), "Hello?")
    assert capsys.readouterr().out == first
    assert first.strip()


def test_a_talk(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n\n/clear\nAgain?\n/quit\nnever asked\n"))
    start_chat([str(folder)], tmp_path, Settings("Be brief.", 0.0, 4), None)
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_history_is_given_again_and_forgotten_when_full(folder: Path, capsys: pytest.CaptureFixture[str]):
    conversation = Conversation(load(folder), Settings(None, 0.0, 4))
    for question in ("a" * 30, "b" * 30):
        "".join(conversation.answer(question))
    assert [m.role for m in conversation.messages()] == ["user", "assistant"] * 2
    for _ in range(3):
        "".join(conversation.answer("c" * 40))
    assert "forgot" in capsys.readouterr().err
    assert len(conversation.turns) < 10
    with pytest.raises(InputError, match="the question takes"):
        "".join(conversation.answer("d" * 200))
    assert conversation.turns == []


def test_two_models_are_asked_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start_chat([str(folder)], tmp_path, Settings(None, 0.0, 6), "Hello?")
    alone = capsys.readouterr().out.strip()
    start_chat([str(folder), str(folder) + "/"], tmp_path, Settings(None, 0.0, 6), "Hello?")
    assert capsys.readouterr().out.splitlines() == [f"{folder}: {alone}", f"{folder}/: {alone}"]


def test_a_stop_text_ends_an_answer_before_it(folder: Path):
    whole = "".join(Conversation(load(folder), Settings(None, 0.0, 12)).answer("Hello?"))
    stop = whole[3:5]
    cut = "".join(Conversation(load(folder), Settings(None, 0.0, 12, stop=(stop,))).answer("Hello?"))
    assert cut == whole[: whole.index(stop)]


def test_what_the_model_is_told_first_can_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/system You are a crab.\nHello?\n"))
    start_chat([str(folder)], tmp_path, Settings(None, 0.0, 6), None)
    changed = capsys.readouterr().out.strip()
    start_chat([str(folder)], tmp_path, Settings("You are a crab.", 0.0, 6), "Hello?")
    assert changed == capsys.readouterr().out.strip()
