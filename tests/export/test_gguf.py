"""GGUF files: the same model, the same ids, or a refusal that says why."""

import json
from pathlib import Path

import pytest
import torch

from fakes import byte_tokenizer, save_tiny, tiny_gpt2, tiny_llama
from metier.core.errors import Interrupted, MissingExtra, ModelError
from metier.export.gguf import layout
from metier.export.gguf.read import File, read_model, read_vocabulary
from metier.export.gguf.tokens import Tokens
from metier.export.gguf.vocabulary import BYTE, CONTROL, UNUSED, USER_DEFINED, plain_template, vocabulary
from metier.export.gguf.write import GGUF_TYPES, GgufType, check_gguf, write_gguf
from metier.models.builtin import BUILTIN
from metier.models.load import load, read_tokenizer
from metier.models.save import save_model
from metier.text.chat import encode_prompt
from metier.text.nouns import Message
from metier.text.prompts import use_template

IDS = torch.tensor([[0, 70, 80, 90, 100, 9, 264]])
ODD = "Café naïve 日本 😀 it's I'LL 1234567 3.14\n\n  two  spaces\t tab \r\n end "


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@torch.no_grad()
def test_every_type_reads_back_through_transformers(tmp_path: Path, kind: str) -> None:
    folder = save_tiny(tmp_path / "model", kind)
    expected = load(folder).model(IDS).logits
    largest = float(expected.abs().max())
    limits = {"F32": 1e-6, "F16": 2e-3, "BF16": 1e-2, "Q8_0": 3e-2, "Q4_0": 0.5}
    sizes = []
    for name in GGUF_TYPES:
        written = write_gguf(folder, tmp_path / f"{name}.gguf", name)
        assert read_vocabulary(tmp_path / f"{name}.gguf") == written
        difference = float((read_model(tmp_path / f"{name}.gguf")(IDS).logits - expected).abs().max())
        assert difference <= limits[name] * largest, name
        sizes.append((tmp_path / f"{name}.gguf").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    for name in "ab":
        write_gguf(folder, tmp_path / f"{name}.gguf", "Q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_types_of_tensors_and_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["mg/kg"])
    save_model(tiny_llama(vocab_size=len(tokenizer) + 2, tied=False), tokenizer, tmp_path / "model")
    words = write_gguf(tmp_path / "model", tmp_path / "a.gguf", "Q4_0")
    tensors = File(tmp_path / "a.gguf").tensors()
    assert {name: tensors[name][1] for name in ("token_embd.weight", "output.weight", "blk.0.ffn_up.weight")} == {
        "token_embd.weight": "Q8_0",
        "output.weight": "Q8_0",
        "blk.0.ffn_up.weight": "Q4_0",
    }
    assert tensors["output_norm.weight"][1] == "F32"
    assert tensors["blk.1.ffn_down.weight"][0] == (32, 64)
    assert words.types[words.tokens.index("<|user|>")] == CONTROL
    assert words.types[words.tokens.index("mg/kg")] == USER_DEFINED
    assert words.tokens[-2:] == (f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]")
    assert words.types[-2:] == (UNUSED, UNUSED)
    assert Tokens(words).encode("a mg/kg b") == [0, *tokenizer.encode("a mg/kg b")]


@torch.no_grad()
def test_llama_3_1_scaling_of_positions(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = tiny_llama(rope_parameters=scaling)
    save_model(model, byte_tokenizer(), tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "a.gguf", "F32")
    again = read_model(tmp_path / "a.gguf")
    ids = torch.randint(0, 260, (1, 100), generator=torch.Generator().manual_seed(0))
    assert (again(ids).logits - model(ids).logits).abs().max() < 1e-5
    factors = layout.rope_factors(model.config)
    assert factors is not None
    plain = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    assert torch.allclose(plain / torch.tensor(factors), model.model.rotary_emb.inv_freq, rtol=1e-5)
    assert torch.allclose(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-5)


@torch.no_grad()
def test_a_head_of_a_width_of_its_own(tmp_path: Path) -> None:
    model = tiny_llama(head_dim=24, num_attention_heads=2, num_key_value_heads=1)
    save_model(model, byte_tokenizer(), tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "a.gguf", "F32")
    assert (read_model(tmp_path / "a.gguf")(IDS).logits - model(IDS).logits).abs().max() < 1e-5


def test_the_seedling_s_ids(tmp_path: Path) -> None:
    """Its tokenizer parts digits, which llama.cpp knows by another name than GPT-2's."""
    words = write_gguf(BUILTIN["seedling"], tmp_path / "a.gguf", "Q8_0")
    tokenizer, tokens = read_tokenizer(BUILTIN["seedling"]), Tokens(read_vocabulary(tmp_path / "a.gguf"))
    assert words.pre == "smollm"
    assert words.stops == {1}
    for text in (ODD, *list(tokenizer.get_vocab())[::7]):
        assert tokens.encode(text, begin=False) == tokenizer.encode(text), text
    messages = [Message("user", "How do you make tea in 1998?")]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": messages[0].content}], tokenize=False, add_generation_prompt=True
    )
    assert tokens.encode(chat) == encode_prompt(tokenizer, messages)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "pre", "step"), [("gpt2", "gpt-2", 50), ("llama3", "llama-bpe", 400), ("tinyllama", "default", 40)]
)
def test_real_tokenizers_ids(shared: Path, name: str, pre: str, step: int) -> None:
    tokenizer = read_tokenizer(shared / "tokenizers" / name)
    use_template(tokenizer, "zephyr")
    words = vocabulary(tokenizer, len(tokenizer), where=name)
    assert (words.pre, words.model) == (pre, "llama" if name == "tinyllama" else "gpt2")
    tokens = Tokens(words)
    prose = (shared / "data" / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:20_000]
    pieces = [piece.replace("▁", " ") for piece in sorted(tokenizer.get_vocab())[::step]]
    for text in (ODD, *prose.splitlines(), *pieces):
        # with a template llama.cpp puts no space before the first word of TinyLlama's: a plain prompt writes its own
        # and none before a special token
        plain = name == "tinyllama" and not text.startswith((" ", *tokenizer.all_special_tokens))
        lead = " " if plain else ""
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert tokens.encode(lead + text, begin=False) == expected, text
    messages = [Message("user", ODD), Message("assistant", "Yes."), Message("user", "Why?\n")]
    rows = [{"role": m.role, "content": m.content} for m in messages]
    chat = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    assert tokens.encode(chat) == encode_prompt(tokenizer, messages)


@pytest.mark.shared
@torch.no_grad()
def test_stories260k(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    words = write_gguf(folder, tmp_path / "a.gguf", "F16")
    assert (words.model, words.space_prefix, words.types[3]) == ("llama", True, BYTE)
    loaded, tokens = load(folder), Tokens(words)
    for text in ("Once upon a time, there was a little girl.", ODD, "</s>Lily", " x"):
        assert tokens.encode(text) == loaded.tokenizer.encode(text), text
    ids = torch.tensor([loaded.tokenizer.encode("Once upon a time, there was a little girl named Lily.")])
    expected = loaded.model(ids).logits
    assert (read_model(tmp_path / "a.gguf")(ids).logits - expected).abs().max() < 2e-3 * expected.abs().max()
    with pytest.raises(
        ModelError, match=r"a row of model\.layers\.0\.mlp\.down_proj\.weight has 172 numbers"
    ) as caught:
        check_gguf(folder, ("F16", "Q8_0"))
    assert "use F16" in str(caught.value)


def test_generation_marks_are_taken_out() -> None:
    assert plain_template("a{% generation %}b{%- endgeneration -%}c") == "abc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'silu' only"),
        ({"attention_bias": True}, "attention_bias = False only"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "scaling of rotary positions"),
    ],
)
def test_settings_that_llama_cpp_would_read_otherwise(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_model(tiny_llama(**change), byte_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        check_gguf(tmp_path / "model", ("F16",))


def test_other_architectures(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=265, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    save_model(GPTNeoXForCausalLM(config), byte_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match="llama and gpt2 models only") as caught:
        write_gguf(tmp_path / "model", tmp_path / "a.gguf", "F16")
    assert "gpt_neox" in str(caught.value)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}},
            "pre_tok",
        ),
    ],
)
def test_tokenizers_without_a_name(tmp_path: Path, rules: dict[str, object], message: str) -> None:
    folder = save_tiny(tmp_path / "model")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | rules))
    with pytest.raises(ModelError, match=f"no name for this tokenizer's {message}") as caught:
        check_gguf(folder, ("F16",))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("value", "kind", "message"), [(1e5, "F16", "larger than F16"), (float("nan"), "F32", "finite")]
)
def test_numbers_that_do_not_fit(tmp_path: Path, value: float, kind: GgufType, message: str) -> None:
    model = tiny_gpt2()
    model.transformer.h[0].mlp.c_fc.weight.data[3, 4] = value
    save_model(model, byte_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        write_gguf(tmp_path / "model", tmp_path / "a.gguf", kind)
    assert list(tmp_path.glob("*a.gguf*")) == []


def test_it_can_be_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        write_gguf(save_tiny(tmp_path / "model"), tmp_path / "a.gguf", "F32", check_stop=stop)
    assert list(tmp_path.glob("*a.gguf*")) == []


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"writing a GGUF file needs the package 'gguf'") as caught:
        check_gguf(save_tiny(tmp_path / "model"), ("F16",))
    assert "metier[gguf]" in str(caught.value)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("x" * 100)
    with pytest.raises(ModelError, match="no GGUF file"):
        read_model(tmp_path / "a.gguf")
