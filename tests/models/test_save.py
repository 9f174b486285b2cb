"""Saving: the same weights give the same bytes, in any process; nothing of this machine gets into a file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import __file__ as fakes_file
from fakes import byte_tokenizer, save_tiny, tiny
from metier.core.fingerprint import FileDigests
from metier.models.adapter import LoraSettings, add_lora
from metier.models.load import load
from metier.models.save import save_adapter, save_model
from metier.models.shape import is_tied


def save_all(out: Path) -> None:
    """A model and an adapter of each family."""
    for kind in ("llama", "gpt2"):
        loaded = load(save_tiny(out / kind, kind))
        torch.manual_seed(0)
        save_adapter(add_lora(loaded.model, LoraSettings(r=4)), loaded.tokenizer, out / f"{kind}-lora", base="seedling")


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    save_all(tmp_path / "1")
    here = os.pathsep.join([str(Path(fakes_file).parent), str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": here}
    code = f"from pathlib import Path; import test_save; test_save.save_all(Path({str(tmp_path / '2')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    digests = FileDigests(tmp_path / "none.json")
    for name in ("llama", "gpt2", "llama-lora", "gpt2-lora"):
        assert digests.folder(tmp_path / "1" / name) == digests.folder(tmp_path / "2" / name), name


def test_saving_what_was_loaded_changes_nothing(tmp_path: Path) -> None:
    save_tiny(tmp_path / "one")
    loaded = load(tmp_path / "one")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "two")
    digests = FileDigests(tmp_path / "none.json")
    assert digests.folder(tmp_path / "one") == digests.folder(tmp_path / "two")


def test_no_path_gets_into_a_file(tmp_path: Path) -> None:
    loaded = load(save_tiny(tmp_path / "tiny"))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    save_adapter(add_lora(loaded.model, LoraSettings(r=4)), loaded.tokenizer, tmp_path / "lora", base="../../x/files")
    for path in [*(tmp_path / "model").iterdir(), *(tmp_path / "lora").iterdir()]:
        assert str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama-untied", False), ("gpt2", True)])
def test_tied_stays_tied_and_is_written_once(tmp_path: Path, kind: str, tied: bool) -> None:
    loaded = load(save_tiny(tmp_path / kind, kind))
    assert is_tied(loaded.model) is tied
    with safe_open(tmp_path / kind / "model.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in set(file.keys())) is not tied


@torch.no_grad()
def test_a_big_model_is_written_in_shards(tmp_path: Path) -> None:
    model = tiny("llama")
    save_model(model, byte_tokenizer(), tmp_path / "out", shard_bytes=40_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    ids = torch.tensor([[0, 70, 80]])
    assert torch.equal(load(tmp_path / "out").model(ids).logits, model(ids).logits)


@torch.no_grad()
def test_stock_classes_load_it_and_stop_where_a_turn_ends(tmp_path: Path) -> None:
    model = tiny("llama")
    save_model(model, byte_tokenizer(), tmp_path / "out", stop={7, 1})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[0, 70, 80]])
    assert torch.equal(stock(ids).logits, model(ids).logits)
    assert stock.generation_config.eos_token_id == [1, 7]
    assert (stock.generation_config.bos_token_id, stock.generation_config.pad_token_id) == (0, 2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|begin|><|user|>Hi<|end|><|assistant|>"


def test_sampling_settings_of_the_base_are_left_behind(tmp_path: Path) -> None:
    model = tiny("llama")
    model.generation_config.temperature = 0.3  # with do_sample unset, transformers itself refuses to save this
    save_model(model, byte_tokenizer(), tmp_path / "out")
    assert "temperature" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())
