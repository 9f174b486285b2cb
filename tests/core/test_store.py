"""The store: whole or absent, one builder at a time, damage named."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest

from metier.core.errors import Interrupted, StoreError
from metier.core.fingerprint import FileDigests, canonical, digest
from metier.core.store import RECORD, Key, Store

KEY = Key.of("model", {"a": 1})


def make(store: Store, key: Key = KEY, text: str = "x"):
    with store.build(key) as workspace:
        (workspace.files / "a.txt").write_text(text)
        return store.commit(workspace, {"kind": "k", "metrics": {}})


def test_an_object_is_found_by_its_key(tmp_path: Path):
    store = Store(tmp_path / "s")
    assert store.find(KEY) is None
    made = make(store)
    found = store.find(KEY)
    assert found is not None
    assert found.folder == made.folder
    assert found.record["outputs"]["a.txt"]["size"] == 1
    assert [p.name for p in (store.root / "scratch").iterdir()] == [f"{KEY}.lock"]


def test_making_a_store_or_looking_into_it_writes_nothing(tmp_path: Path):
    store = Store(tmp_path / "s")
    store.find(KEY)
    store.ref("r", "s")
    assert not store.root.exists()


def test_what_was_not_committed_is_not_there_and_state_stays(tmp_path: Path):
    store = Store(tmp_path / "s")
    with pytest.raises(ZeroDivisionError), store.build(KEY) as workspace:  # noqa: PT012
        (workspace.files / "a.txt").write_text("half")
        (workspace.state / "step").write_text("7")
        raise ZeroDivisionError
    assert store.find(KEY) is None
    assert not workspace.build.exists()
    with store.build(KEY) as again:
        assert (again.state / "step").read_text() == "7"
        assert list(again.files.iterdir()) == []


def test_refs_remember_what_is_gone(tmp_path: Path):
    store = Store(tmp_path / "s")
    made = make(store)
    store.set_ref("recipe", "step", made.key)
    assert store.ref("recipe", "step").key == made.key
    (made.folder / RECORD).unlink()
    assert store.ref("recipe", "step") is None
    assert store.ref_key("recipe", "step") == made.key
    assert make(store).folder == made.folder  # a folder without a record is no object and is replaced


def test_damaged_records_are_named(tmp_path: Path):
    store = Store(tmp_path / "s")
    record = make(store).folder / RECORD
    for text, message in (("{", "cannot be read"), ("[]", "not a JSON object"), ('{"digest": "0"}', "another digest")):
        record.write_text(text)
        with pytest.raises(StoreError, match=message):
            store.find(KEY)


def test_one_builder_at_a_time_and_waiting_can_be_stopped(tmp_path: Path):
    store = Store(tmp_path / "s")
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.build(KEY):
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)

    def refuse() -> None:
        raise Interrupted("enough")

    start = time.monotonic()
    with pytest.raises(Interrupted), store.build(KEY, refuse):
        pass
    assert time.monotonic() - start < 5
    leave.set()
    holder.join()


def test_errors_of_the_store_are_told_from_those_of_a_step(tmp_path: Path):
    store = Store(tmp_path / "s")
    with pytest.raises(FileNotFoundError), store.build(KEY):
        (tmp_path / "data.txt").read_text()
    with pytest.raises(StoreError, match="a file of the store is gone"), store.build(KEY) as workspace:
        (workspace.files / "absent" / "x").write_text("")
    with pytest.raises(StoreError, match="No space left"), store.build(KEY):
        raise OSError(errno.ENOSPC, "No space left on device")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the store"), Store(tmp_path / "file").build(KEY):
        pass


def test_canonical_json_is_one_text():
    assert canonical({"b": 1.0, "a": [True, None, "ü"]}) == '{"a":[true,null,"ü"],"b":1.0}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            digest(bad)


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, cache = tmp_path / "a", tmp_path / "digests.json"
    path.write_text("one")
    digests = FileDigests(cache)
    first = digests.file(path)
    digests.save()
    monkeypatch.setattr("metier.core.fingerprint.file_digest", lambda _path: "hashed again")
    assert FileDigests(cache).file(path) == first
    path.write_text("three")
    assert FileDigests(cache).file(path) == "hashed again"
    cache.write_text("{")
    assert FileDigests(cache).file(path) == "hashed again"
    assert json.loads(json.dumps(first)) == first
