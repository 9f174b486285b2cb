"""Loading: what comes back is what was saved, and whatever is wrong with a folder is said with its file and cure."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import byte_tokenizer, save_tiny, tiny
from metier.core.errors import ModelError
from metier.models.load import load, read_config, read_tokenizer, stored_dtype
from metier.models.save import save_model

IDS = torch.tensor([[0, 70, 80, 90, 100]])
KINDS = ["llama", "llama-untied", "gpt2"]


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, kind: str) -> None:
    loaded = load(save_tiny(tmp_path / kind, kind, seed=3))
    assert torch.equal(loaded.model(IDS).logits, tiny(kind, seed=3)(IDS).logits)
    assert not loaded.model.training
    assert loaded.context == 128
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    assert loaded.tokenizer.chat_template == byte_tokenizer().chat_template


def test_the_number_format_is_what_was_asked_for_whatever_the_file_holds(tmp_path: Path) -> None:
    save_model(tiny("llama").to(torch.bfloat16), byte_tokenizer(), tmp_path / "half")
    assert stored_dtype(tmp_path / "half") == torch.bfloat16
    assert load(tmp_path / "half").model.dtype == torch.float32
    assert load(tmp_path / "half", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder)
    assert capfd.readouterr() == ("", "")


def test_reading_the_configuration_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_config(folder).num_hidden_layers == 2


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_missing_padding_token_becomes_a_dedicated_one_where_there_is_one(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = read_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")


@pytest.mark.shared
def test_a_missing_padding_token_becomes_the_end_token_otherwise(shared: Path) -> None:
    tokenizer = read_tokenizer(shared / "tokenizers" / "gpt2")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_a_model_without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        load(folder)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_without_its_configuration_would_be_read_wrongly(folder: Path, name: str) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").rename(folder / name)
    with pytest.raises(ModelError, match=r"no tokenizer_config\.json") as caught:
        read_tokenizer(folder)
    assert '"tokenizer_class": "LlamaTokenizer"' in str(caught.value)


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be read"):
        read_tokenizer(folder)


def test_a_tokenizer_without_end(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="no end token"):
        read_tokenizer(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    small = tiny("llama")
    small.resize_token_embeddings(100, mean_resizing=False)
    tokenizer = byte_tokenizer()
    save_model(small, tokenizer, folder)
    with pytest.raises(ModelError, match="only 100 embeddings"):
        load(folder)


# --- weights and configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", None])
def test_damaged_weights(folder: Path, content: bytes | None) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=r"model\.safetensors: the weights cannot be read") as caught:
        load(folder)
    assert "Git LFS" in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="are not in the file") as caught:
        load(folder)
    assert "model.layers.1.mlp.up_proj.weight" in str(caught.value)


def test_weights_that_are_too_many_are_not_dropped(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match="knows nothing of") as caught:
        load(folder)
    assert "layers.1" in str(caught.value)


def test_weights_of_another_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="other shapes"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "vit", "architectures": None},
    ],
)
def test_what_is_not_a_causal_model(folder: Path, changes: dict[str, object]) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match="not a causal language model"):
        load(folder)


def test_an_unknown_kind_of_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="frobnicator", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(ModelError, match="configuration cannot be read") as caught:
        load(folder)
    assert "frobnicator" in str(caught.value)


def test_quantised_weights(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantised") as caught:
        load(folder)
    assert "gptq" in str(caught.value)


# --- a real model ----------------------------------------------------------------------------------------------------


@pytest.mark.shared
@torch.no_grad()
def test_a_trained_model_writes_english(shared: Path, tmp_path: Path) -> None:
    loaded = load(shared / "models" / "stories260K")
    start = loaded.tokenizer("Once upon a time", return_tensors="pt").input_ids
    if start[0, 0] != loaded.tokenizer.bos_token_id:
        start = torch.cat([torch.tensor([[loaded.tokenizer.bos_token_id]]), start], 1)
    written = loaded.model.generate(start, max_new_tokens=40, do_sample=False)
    text = loaded.tokenizer.decode(written[0], skip_special_tokens=True)
    assert "there was a little girl named Lily" in text, text
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(again.model(start).logits, loaded.model(start).logits)


@pytest.mark.shared
def test_the_sentencepiece_file_is_kept(shared: Path, tmp_path: Path) -> None:
    source = shared / "tokenizers" / "tinyllama"
    tokenizer = read_tokenizer(source)
    model = tiny("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    save_model(model, tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    text = "The sea cucumber's tube feet, 3 cm long."
    assert read_tokenizer(tmp_path / "out").encode(text) == tokenizer.encode(text)
