"""Model references: what each kind resolves to, and what each mistake is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import save_tiny
from metier.core.errors import ModelError
from metier.core.fingerprint import FileDigests
from metier.models import builtin
from metier.models.builtin import base_link, follow, resolve


def whole(folder: Path) -> Path:
    """A folder that looks like a model; no test here reads its weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    if base is not None:
        (folder / "base.json").write_text(json.dumps({"base": base}))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache that holds org/small at one commit."""
    cache = tmp_path / "cache"
    commit = "0123456789abcdef0123456789abcdef01234567"
    whole(cache / "models--org--small" / "snapshots" / commit)
    (cache / "models--org--small" / "refs").mkdir()
    (cache / "models--org--small" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def test_a_folder_is_found_relative_to_the_root_and_linked_absolutely(tmp_path: Path) -> None:
    folder = whole(tmp_path / "models" / "mine")
    source = resolve("models/mine", tmp_path)
    assert (source.name, source.path, source.link) == ("models/mine", folder, str(folder))
    assert resolve(str(folder), Path("/")).digest == source.digest


def test_the_digest_follows_the_weights_and_not_the_place_or_the_readme(tmp_path: Path) -> None:
    whole(tmp_path / "one")
    two = whole(tmp_path / "two")
    (two / "README.md").write_text("hello")
    (two / "train.jsonl").write_text("{}")
    assert resolve("one", tmp_path).digest == resolve("two", tmp_path).digest
    (two / "model.safetensors").write_bytes(b"other weights")
    assert resolve("one", tmp_path).digest != resolve("two", tmp_path).digest


def test_an_adapter_s_digest_follows_its_base(tmp_path: Path) -> None:
    base = whole(tmp_path / "base")
    adapter(tmp_path / "adapter", str(base))
    before = resolve("adapter", tmp_path).digest
    (base / "model.safetensors").write_bytes(b"other weights")
    assert resolve("adapter", tmp_path).digest != before


def test_files_are_hashed_by_the_given_function(tmp_path: Path) -> None:
    whole(tmp_path / "mine")
    digests = FileDigests(tmp_path / "cache.json")
    assert resolve("mine", tmp_path, digests.file).digest == resolve("mine", tmp_path).digest
    digests.save()
    assert "model.safetensors" in (tmp_path / "cache.json").read_text()


def test_a_builtin_is_linked_by_name_and_hidden_by_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builtin.BUILTIN, "seedling", whole(tmp_path / "package"))
    whole(tmp_path / "seedling")
    assert resolve("seedling", tmp_path).path == tmp_path / "package"
    assert resolve("seedling", tmp_path).link == "seedling"
    assert resolve("./seedling", tmp_path).path == tmp_path / "seedling"


def test_a_hub_id_comes_from_the_cache_with_its_commit(tmp_path: Path, hub: Path) -> None:
    source = resolve("org/small", tmp_path)
    assert source.digest == source.path.name == "0123456789abcdef0123456789abcdef01234567"
    assert source.link == f"org/small@{source.digest}"
    assert follow(source.link, tmp_path) == source.path


def test_links_in_an_adapter(tmp_path: Path) -> None:
    base = whole(tmp_path / "pretrain-1" / "files")
    tuned = adapter(tmp_path / "tune-2" / "files", "../../pretrain-1/files")
    assert follow(base_link(tuned), tuned) == base


def test_an_adapter_of_another_program_names_its_base_as_peft_does(tmp_path: Path) -> None:
    foreign = adapter(tmp_path / "foreign", None)
    (foreign / "adapter_config.json").write_text('{"base_model_name_or_path": "org/small"}')
    assert base_link(foreign) == "org/small"


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("seedlin", ["did you mean 'seedling'?", "hf download seedlin"]),
        ("org/absent", ["no such model", "hf download org/absent", "built in: seedling"]),
        ("org/small@v9", ["hf download org/small --revision v9"]),
        ("./nowhere", ["no folder"]),
        ("no such//thing", ["no such model"]),
    ],
)
def test_what_is_not_there(tmp_path: Path, hub: Path, ref: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(ref, tmp_path)
    for part in parts:
        assert part in str(caught.value)
    if ref.startswith("."):
        assert "hf download" not in str(caught.value)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a model is a folder") as caught:
        resolve("model.gguf", tmp_path)
    assert "GGUF file was made from" in str(caught.value)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = whole(tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled") as caught:
        resolve("old", tmp_path)
    assert "pytorch_model.bin" in str(caught.value)
    assert "metier convert" in str(caught.value)


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        resolve("empty", tmp_path)


def test_missing_weights_and_shards_are_named(tmp_path: Path) -> None:
    folder = whole(tmp_path / "mine")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: the model's weights are missing"):
        resolve("mine", tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"1")
    with pytest.raises(ModelError, match=r"model-2\.safetensors"):
        resolve("mine", tmp_path)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="lists no weights"):
        resolve("mine", tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_configuration_is_named(tmp_path: Path, text: str) -> None:
    (whole(tmp_path / "mine") / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve("mine", tmp_path)


def test_an_adapter_must_say_what_it_belongs_to(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", None)
    with pytest.raises(ModelError, match="does not say which model") as caught:
        resolve("adapter", tmp_path)
    assert "base.json" in str(caught.value)


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="no such model"):
        resolve("adapter", tmp_path)


def test_resolving_imports_no_torch(tmp_path: Path) -> None:
    whole(tmp_path / "mine")
    code = (
        "import sys; from pathlib import Path; from metier.models.builtin import resolve; import metier.export.stage\n"
        f"resolve('mine', Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_what_we_save_resolves(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    assert resolve("tiny", tmp_path).path == folder
