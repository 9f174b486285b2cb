"""Models of the hub, before anything is fetched: access, kind of weights, disk; with a hub that is made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from metier.core.errors import EndpointError, InputError, MetierError, ModelError
from metier.models import hub
from metier.models.hub import Found, check_disk, check_open, look

GIGABYTE = 10**9
ANSWER = httpx.Response(403, request=httpx.Request("GET", "http://127.0.0.1/"))


class FakeHub:
    """files: of each repository, by name with bytes. gated: those without access."""

    def __init__(self, files: dict[str, dict[str, int]], gated: tuple[str, ...] = (), *, down: bool = False) -> None:
        self.files, self.gated, self.down = files, gated, down

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if self.down:
            raise httpx.ConnectError("no route")
        if repository not in self.files:
            raise RepositoryNotFoundError("404", response=ANSWER)
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files[repository].items()]
        return SimpleNamespace(sha=revision or "a" * 40, siblings=siblings)

    def auth_check(self, repository: str) -> None:
        if repository in self.gated:
            raise GatedRepoError("403", response=ANSWER)


FILES = {
    "org/base": {
        "config.json": 1000, "model.safetensors": 4 * GIGABYTE, "tokenizer.json": 10**6, "original/params.json": 5,
        "onnx/model.onnx": 9 * GIGABYTE, "README.md": 10, "1_Pooling/config.json": 100,
    },
    "org/gated": {"config.json": 1000, "model.safetensors": 16 * GIGABYTE},
    "org/old": {"config.json": 1000, "pytorch_model.bin": GIGABYTE},
    "org/none": {"config.json": 1000},
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_snapshot", lambda ref: None)


def test_what_loading_reads_is_fetched_and_nothing_else():
    (found,) = look(["org/base@" + "b" * 40], FakeHub(FILES))
    assert sorted(found.files) == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert found.commit == "b" * 40
    assert found.bytes == 4 * GIGABYTE + 10**6 + 1100


@pytest.mark.parametrize(
    ("ref", "kind", "words"),
    [
        ("org/gated", ModelError, ["gated", "HF_TOKEN"]),
        ("org/missing", ModelError, ["no such model", "check the name"]),
        ("org/old", ModelError, ["pickled", "metier convert"]),
        ("org/none", ModelError, ["no weights as safetensors"]),
    ],
)
def test_what_cannot_be_had_is_refused(ref: str, kind: type[MetierError], words: list[str]):
    with pytest.raises(kind) as caught:
        look([ref], FakeHub(FILES, ("org/gated",)))
    said = str(caught.value)
    assert [word for word in (*words, ref) if word not in said] == []
    assert caught.value.exit_code == 2


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ModelError) as caught:
        look(["org/base", "org/gated", "org/old"], FakeHub(FILES, ("org/gated",)))
    assert "gated" in str(caught.value)
    assert "pickled" in str(caught.value)


def test_a_hub_that_does_not_answer():
    with pytest.raises(EndpointError, match="did not answer"):
        look(["org/base"], FakeHub(FILES, down=True))


def test_a_model_in_the_cache_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / ("c" * 40)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("w")
    monkeypatch.setattr(hub, "cached_snapshot", lambda ref: folder)
    (found,) = look(["org/missing"], FakeHub(FILES, down=True))
    assert (found.here, found.bytes, found.commit) == (True, 0, "c" * 40)


def test_too_little_disk(tmp_path: Path):
    found = [Found("org/a", "1", {"model.safetensors": 3 * GIGABYTE}), Found("org/b", "1", {"m.safetensors": GIGABYTE})]
    check_disk(found, tmp_path / "not/yet", free=lambda place: 5 * GIGABYTE)
    with pytest.raises(InputError) as caught:
        check_disk(found, tmp_path / "not/yet", free=lambda place: 4 * GIGABYTE)
    said = str(caught.value)
    assert "4.0 GB are to be fetched, and 4.0 GB are free" in said
    assert "org/a 3.0 GB" in said
    assert "HF_HOME" in said


def test_a_closed_network():
    check_open({"HF_HUB_OFFLINE": "0"})
    with pytest.raises(InputError, match="switched off") as caught:
        check_open({"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE=0 metier fetch" in str(caught.value)
