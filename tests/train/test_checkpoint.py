"""A checkpoint is whole or refused by name, whatever byte of it changed; the one before is then used."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from metier.core.errors import InputError
from metier.train import checkpoint
from metier.train.checkpoint import BACK, MANIFEST, STATE, TENSORS, Checkpoints, damage, differences

FILES = (TENSORS, STATE, MANIFEST)
MADE = {"config": {"learning_rate": 1e-3, "method": {"lora": {"r": 4}}}, "data": {"train": "a"}, "code": {"torch": "1"}}


def keeper(folder: Path, told: list[str] | None = None, **changes: Any) -> Checkpoints:
    warn = (lambda _: None) if told is None else told.append
    return Checkpoints(folder, made_from={**MADE, **changes}, warn=warn)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight/a": torch.full((2, 3), float(step)), "optimizer/step/a": torch.tensor(float(step))}


def saved(folder: Path, *steps: int, **changes: Any) -> Checkpoints:
    kept = keeper(folder, **changes)
    for step in steps:
        kept.save(step, tensors(step), {"step": step, "log": [{"loss": 0.1}]})
    return kept


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path):
    saved(tmp_path, 7)
    found, state = keeper(tmp_path).load()
    assert state == {"step": 7, "log": [{"loss": 0.1}]}
    assert all(torch.equal(found[name], value) for name, value in tensors(7).items())
    assert {path.name for path in (tmp_path / "checkpoint-7").iterdir()} == set(FILES)
    assert keeper(tmp_path / "nothing").load() is None


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_and_every_cut_is_seen(tmp_path: Path, name: str):
    saved(tmp_path, 7)
    folder = tmp_path / "checkpoint-7"
    path = folder / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        for mask in (0x01, 0x20, 0x80):  # 0x20 turns a letter's case
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            assert damage(folder) is not None, (name, place, mask)
        path.write_bytes(whole[:place])
        assert damage(folder) is not None, (name, place)
    path.write_bytes(whole + b" ")
    assert damage(folder) is not None
    path.unlink()
    assert f"{name} cannot be read" in (damage(folder) or "")
    path.write_bytes(whole)
    assert damage(folder) is None


def test_a_damaged_one_is_named_and_the_one_before_used(tmp_path: Path):
    saved(tmp_path, 3, 9)
    path = tmp_path / "checkpoint-9" / STATE
    path.write_bytes(path.read_bytes()[:-1])
    told: list[str] = []
    _, state = keeper(tmp_path, told).load()
    assert state["step"] == 3
    (text,) = told
    assert str(path.parent) in text
    assert f"{STATE} has" in text
    again = keeper(tmp_path)
    again.save(9, tensors(9), {"step": 9})  # written anew over the damaged one
    assert keeper(tmp_path).load()[1] == {"step": 9}
    for folder in tmp_path.iterdir():
        (folder / TENSORS).unlink()
    assert keeper(tmp_path, told).load() is None
    assert len(told) == 3


def test_the_newest_and_one_well_before_it_are_kept(tmp_path: Path):
    kept = saved(tmp_path, 0, BACK, 3 * BACK)
    assert steps_of(tmp_path) == [BACK, 3 * BACK]
    for step in range(3 * BACK + 1, 9 * BACK):
        kept.save(step, tensors(step), {"step": step})
        found = steps_of(tmp_path)
        assert found[-1] == step
        assert len(found) <= 3
        assert step - 2 * BACK - 1 <= found[0] <= step - BACK or step < 4 * BACK
    assert kept.load(at_most=step - BACK)[1]["step"] == found[0]
    kept.drop_after(found[0])
    assert steps_of(tmp_path) == found[:1]


def test_one_that_was_damaged_on_disk_is_not_what_is_kept_before(tmp_path: Path):
    saved(tmp_path, 0, 1)
    (tmp_path / "checkpoint-1" / TENSORS).write_bytes(b"")
    saved(tmp_path, 2)
    assert steps_of(tmp_path) == [0, 2]


def test_another_config_or_data_is_refused_by_field(tmp_path: Path):
    saved(tmp_path, 5)
    other = {"learning_rate": 2e-3, "method": {"lora": {"r": 8}}}
    with pytest.raises(InputError, match=r"config.learning_rate 0.001 -> 0.002, config.method.lora.r 4 -> 8") as error:
        keeper(tmp_path, config=other).load()
    assert "checkpoint-5" in (error.value.where or "")
    with pytest.raises(InputError, match=r"data.train 'a' -> 'b'"):
        keeper(tmp_path, data={"train": "b"}).load()


def test_other_code_warns_and_goes_on(tmp_path: Path):
    saved(tmp_path, 5)
    told: list[str] = []
    _, state = keeper(tmp_path, told, code={"torch": "2"}).load()
    assert state["step"] == 5
    assert "code.torch '1' -> '2'" in told[0]


def test_differences_go_as_deep_as_both_are_mappings():
    assert list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}, "x")) == [
        "x.a.d None -> 3",
        "x.a.c 2 -> None",
    ]
    assert list(differences({"a": 1}, {"a": 1}, "")) == []


@pytest.mark.parametrize("failing", ["_save_tensors", "_flush", "_facts"])
def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str):
    kept = saved(tmp_path, 3)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, failing, full)
    with pytest.raises(OSError, match="No space left"):
        kept.save(9, tensors(9), {"step": 9})
    assert steps_of(tmp_path) == [3]
    assert kept.load()[1]["step"] == 3


def test_safetensors_errors_are_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        saved(tmp_path, 3)
    assert error.value.errno == errno.ENOSPC
    assert steps_of(tmp_path) == []


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes(tmp_path: Path):
    saved(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "aside-checkpoint-4")
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "gone-checkpoint-2")
    assert keeper(tmp_path).load()[1]["step"] == 3
    saved(tmp_path, 5)
    assert steps_of(tmp_path) == [3, 5]


def test_files_and_folders_are_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    real, rename = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(f"rename {to.name}"), rename(path, to))[1])
    saved(tmp_path / "run", 3)
    assert done == [TENSORS, STATE, MANIFEST, "aside-checkpoint-3", "rename checkpoint-3", "run"]


def test_the_longer_one_takes_the_longer_until_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    kept = Checkpoints(tmp_path, _last=0.0)
    clock[0] = 60.0
    assert kept.due()
    kept._last, kept._took = 60.0, 3.0
    clock[0] = 60.0 + 149.0
    assert not kept.due()
    clock[0] = 60.0 + 150.0
    assert kept.due()
