"""An adapter of another base is told from the heads of the files, before any weight is read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import byte_tokenizer, save_tiny, tiny
from metier.core.errors import ModelError
from metier.models.adapter import LoraSettings, add_lora
from metier.models.builtin import ADAPTER_WEIGHTS, resolve
from metier.models.fitting import check_fits, check_made_from
from metier.models.save import save_adapter, save_model


def adapter(root: Path, kind: str, base: str, **settings: object) -> Path:
    save_tiny(root / "base", kind)
    torch.manual_seed(0)
    model = add_lora(tiny(kind), LoraSettings(r=4, **settings))
    save_adapter(model, byte_tokenizer(), root / "adapter", base=base)
    return root / "adapter"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"rank_pattern": {r".*layers\.0.*": 2}}], ids=str)
def test_an_adapter_on_its_own_base_passes(tmp_path: Path, kind: str, settings: dict):
    if kind == "gpt2" and "rank_pattern" in settings:
        settings = {"rank_pattern": {r".*h\.0.*": 2}}
    folder = adapter(tmp_path, kind, "../base", **settings)
    assert resolve("adapter", tmp_path).path == folder


def test_names_without_what_wraps_the_model_are_found(tmp_path: Path):
    folder = adapter(tmp_path, "gpt2", "../base")
    weights = tmp_path / "base/model.safetensors"
    held = load_file(weights)
    save_file({name.removeprefix("transformer."): value.clone() for name, value in held.items()}, weights)
    check_fits(folder)


def test_a_base_of_other_shapes_is_refused_and_nothing_is_loaded(tmp_path: Path):
    folder = adapter(tmp_path, "llama", "../base")
    script = (
        "import sys; from pathlib import Path; from metier.models.builtin import resolve\n"
        "try:\n    resolve('adapter', Path(sys.argv[1]))\n"
        "except Exception as error:\n    print(type(error).__name__, 'torch' in sys.modules, error)"
    )
    held = load_file(folder / ADAPTER_WEIGHTS)
    changed = {name: torch.zeros(4, 7) if "q_proj.lora_A" in name else value for name, value in held.items()}
    save_file(changed, folder / ADAPTER_WEIGHTS)
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("ModelError False")
    assert "the adapter does not fit its base" in said
    assert "q_proj has 7 inputs" in said
    assert str(folder / "adapter_config.json") in said
    assert str(tmp_path / "base") in said
    assert "name the model it was trained on" in said


def test_a_base_with_fewer_layers_is_refused(tmp_path: Path):
    folder = adapter(tmp_path, "llama", "../base")
    weights = tmp_path / "base/model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if "layers.1." not in name}, weights)
    with pytest.raises(ModelError, match="no place for 7 layers, such as model"):
        check_fits(folder)


def test_a_base_that_is_gone_is_named_with_its_adapter(tmp_path: Path):
    folder = adapter(tmp_path, "llama", "../gone")
    with pytest.raises(ModelError, match="was trained on is not here") as caught:
        resolve("adapter", tmp_path)
    assert caught.value.where == str(folder / "base.json")
    assert caught.value.value == "../gone"


def test_a_quantised_base_is_left_to_loading(tmp_path: Path):
    folder = adapter(tmp_path, "llama", "../base")
    config = tmp_path / "base/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"load_in_4bit": True}}))
    (tmp_path / "base/model.safetensors").write_bytes(b"")
    check_fits(folder)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path):
    folder = adapter(tmp_path, "llama", "../base")
    (folder / ADAPTER_WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="the weights cannot be read"):
        check_fits(folder)


def test_an_adapter_of_an_adapter_is_held_against_the_model_below_both(tmp_path: Path):
    folder = adapter(tmp_path, "llama", "../between")
    (tmp_path / "adapter").rename(tmp_path / "between")
    (tmp_path / "between/base.json").write_text(json.dumps({"base": "../base"}))
    save_adapter(add_lora(tiny("llama"), LoraSettings(r=2)), byte_tokenizer(), folder, base="../between")
    check_fits(folder)
    save_model(tiny("gpt2"), byte_tokenizer(), tmp_path / "base")
    check_fits(folder)  # no layer has a name that the base knows: loading says what is wrong


def test_a_whole_model_of_other_shapes_than_the_base_is_refused(tmp_path: Path):
    base, model = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "model")
    check_made_from(model, base, field="model")
    weights = model / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**load_file(weights), name: torch.zeros(3, 5)}, weights)
    with pytest.raises(ModelError, match=r"mlp.up_proj.weight is \[3, 5\]") as caught:
        check_made_from(model, base, field="model")
    assert caught.value.where == "model"
    assert caught.value.value == str(model)
    assert "as base" in str(caught.value.cure)
