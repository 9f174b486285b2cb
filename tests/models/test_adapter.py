"""Adapters: the settings are checked against the model, reloading and merging change no answer."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from fakes import TINYLLAMA, save_tiny, tiny
from metier.core.errors import ModelError
from metier.models.adapter import LoraSettings, add_lora, check_targets, merge
from metier.models.load import Loaded, load, read_tokenizer
from metier.models.save import save_adapter, save_model
from metier.models.shape import count_parameters, skeleton

IDS = torch.tensor([[0, 70, 80, 90, 100]])
KINDS = ["llama", "llama-untied", "gpt2"]
SETTINGS = [
    LoraSettings(r=4, alpha=8),
    LoraSettings(r=4, alpha=8, rslora=True),
    LoraSettings(r=4, alpha=8, dora=True),
]


def trained_adapter(
    folder: Path, base: Path, link: str, settings: LoraSettings = SETTINGS[0], seed: int = 0
) -> torch.Tensor:
    """Save an adapter with random weights, as if trained, and return its logits."""
    loaded = load(base)
    torch.manual_seed(seed)
    model = add_lora(merge(loaded), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, loaded.tokenizer, folder, base=link)
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "rslora", "dora"])
@torch.no_grad()
def test_reloaded_and_merged_it_answers_the_same(tmp_path: Path, kind: str, settings: LoraSettings) -> None:
    base = save_tiny(tmp_path / "base", kind)
    with torch.enable_grad():
        trained = trained_adapter(tmp_path / "lora", base, "../base", settings)
    assert (trained - load(base).model(IDS).logits).abs().max() > 0.1
    loaded = load(tmp_path / "lora")
    assert loaded.is_adapter
    assert torch.equal(loaded.model(IDS).logits, trained)
    merged = merge(loaded)
    assert (merged(IDS).logits - trained).abs().max() < 1e-5
    save_model(merged, loaded.tokenizer, tmp_path / "merged")
    assert torch.equal(load(tmp_path / "merged").model(IDS).logits, merged(IDS).logits)


@torch.no_grad()
def test_a_fresh_adapter_changes_no_answer(tmp_path: Path) -> None:
    model = tiny("llama")
    before = model(IDS).logits
    assert torch.equal(add_lora(model, LoraSettings(r=4)).eval()(IDS).logits, before)


@torch.no_grad()
def test_an_adapter_on_an_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    with torch.enable_grad():
        trained_adapter(tmp_path / "one", base, "../base")
        second = trained_adapter(tmp_path / "two", tmp_path / "one", "../one", seed=1)
    assert torch.equal(load(tmp_path / "two").model(IDS).logits, second)
    assert load(tmp_path / "two", dtype=torch.bfloat16).model.base_model.model.model.norm.weight.dtype == torch.bfloat16


def test_a_base_may_be_given_while_the_link_leads_nowhere_yet(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    trained = trained_adapter(tmp_path / "lora", base, "../../later/files")
    with pytest.raises(ModelError, match="no such model"):
        load(tmp_path / "lora")
    assert torch.equal(load(tmp_path / "lora", base=base).model(IDS).logits, trained)


def test_an_adapter_without_tokenizer_takes_its_base_s(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "lora", save_tiny(tmp_path / "base"), "../base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "lora" / name).unlink()
    assert read_tokenizer(tmp_path / "lora").eos_token == "<|end|>"


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "lora", save_tiny(tmp_path / "base"), "../base")
    other = save_tiny(tmp_path / "other", "gpt2")
    with pytest.raises(ModelError, match="does not fit its base") as caught:
        load(tmp_path / "lora", base=other)
    assert "base.json" in str(caught.value)


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "lora", save_tiny(tmp_path / "base"), "../base")
    config = tiny("llama").config
    config.hidden_size, config.head_dim = 64, 16
    wide = type(tiny("llama"))(config)
    save_model(wide, read_tokenizer(tmp_path / "base"), tmp_path / "wide")
    with pytest.raises(ModelError, match="does not fit its base"):
        load(tmp_path / "lora", base=tmp_path / "wide")


def test_an_adapter_of_more_blocks_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "lora", save_tiny(tmp_path / "base"), "../base")
    config = tiny("llama").config
    for depth in (1, 3):
        config.num_hidden_layers = depth
        save_model(type(tiny("llama"))(config), read_tokenizer(tmp_path / "base"), tmp_path / f"depth{depth}")
        with pytest.raises(ModelError, match="does not fit its base"):
            load(tmp_path / "lora", base=tmp_path / f"depth{depth}")


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "lora", save_tiny(tmp_path / "base"), "../base")
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: the weights cannot be read"):
        load(tmp_path / "lora")


def test_merging_wants_float32_and_leaves_a_plain_model_alone(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    plain = load(base)
    assert merge(plain) is plain.model
    trained_adapter(tmp_path / "lora", base, "../base")
    with pytest.raises(ModelError, match="float32 only"):
        merge(load(tmp_path / "lora", dtype=torch.bfloat16))


def test_merging_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    base = load(save_tiny(tmp_path / "base"))
    model = add_lora(base.model, LoraSettings(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, float("nan"))
    with pytest.raises(ModelError, match="cannot be merged"):
        merge(Loaded(model, base.tokenizer, base.folder))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "field", "parts"),
    [
        ("llama", LoraSettings(targets=("q_porj",)), "lora.targets", ["did you mean 'q_proj'?", "gate_proj"]),
        ("gpt2", LoraSettings(targets=("q_proj",)), "lora.targets", ["there are: c_attn, c_proj, c_fc"]),
        ("llama", LoraSettings(targets=()), "lora.targets", ["no targets"]),
        ("llama", LoraSettings(targets=("embed_tokens",)), "lora.targets", ["no such linear layer"]),
        ("llama", LoraSettings(targets=("lm_head",)), "lora.targets", ["tied"]),
        ("llama", LoraSettings(r=33), "lora.r", ["found: 33", "use at most"]),
        ("llama", LoraSettings(r=0), "lora.r", ["at least 1"]),
        ("llama", LoraSettings(dropout=1.0), "lora.dropout", ["below 1"]),
    ],
)
def test_settings_that_do_not_fit(kind: str, settings: LoraSettings, field: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        check_targets(tiny(kind), settings, where="lora")
    assert str(caught.value).startswith(field)
    for part in parts:
        assert part in str(caught.value)


def test_targets_may_be_parts_of_names(tmp_path: Path) -> None:
    one = add_lora(tiny("llama"), LoraSettings(r=4, targets=("model.layers.0.self_attn.q_proj",)))
    both = add_lora(tiny("llama"), LoraSettings(r=4, targets=("self_attn.q_proj",)))
    assert count_parameters(both).trained == 2 * count_parameters(one).trained == 2 * 4 * (32 + 32)


def test_an_untied_head_may_carry_an_adapter() -> None:
    model = add_lora(tiny("llama-untied"), LoraSettings(r=4, targets=("lm_head",)))
    assert count_parameters(model).trained == 4 * (32 + 265)


def test_the_known_counts_of_tinyllama_and_gpt2() -> None:
    tinyllama = LlamaConfig.from_dict(TINYLLAMA)
    assert count_parameters(skeleton(tinyllama)).total == 1_100_048_384
    everything = count_parameters(add_lora(skeleton(tinyllama), LoraSettings(r=16)))
    assert everything.trained == 12_615_680
    assert everything.share == pytest.approx(0.0113, abs=5e-5)
    thin = count_parameters(add_lora(skeleton(tinyllama), LoraSettings(r=8, targets=("q_proj", "v_proj"))))
    assert thin.trained == 1_126_400
    assert thin.share < 0.01
    assert count_parameters(skeleton(GPT2Config())).total == 124_439_808
