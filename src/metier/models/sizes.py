"""Published sizes of models that recipes name: what config.json says of them, known before anything is fetched.

Facts of each model's own config.json. A model that is not here is read from the local cache, where its config.json
lies. Imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import ModelError
from metier.models.builtin import BUILTIN, CONFIG, cached_snapshot, plain_config, read_json, resolve

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "vocab.json")
LAYERS = ("num_hidden_layers", "n_layer")
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What all of TinyLlama's config.json say of its shape."""
_LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "dtype": "bfloat16",
}
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "dtype": "float32",
}
SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": ({**TINYLLAMA, "dtype": "float32"}, "tinyllama"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ({**TINYLLAMA, "dtype": "bfloat16"}, "tinyllama"),
    "openai-community/gpt2": (_GPT2, "gpt2"),
    "meta-llama/Llama-3.1-8B": (_LLAMA31, "llama3"),
    "meta-llama/Llama-3.1-8B-Instruct": (_LLAMA31, "llama3"),
}
"""Hub id -> config.json, and the folder of its tokenizer among those that `--tokenizers` names."""


@dataclass(frozen=True)
class Published:
    """A model's sizes and, where it is at hand, the folder of its tokenizer."""

    config: Mapping[str, Any]
    tokenizer: Path | None

    @property
    def layers(self) -> int:
        """How many blocks it has."""
        return int(next(self.config[name] for name in LAYERS if name in self.config))

    def with_layers(self, layers: int) -> dict[str, Any]:
        """The config of the same model with fewer blocks."""
        name = next(name for name in LAYERS if name in self.config)
        return {**self.config, name: layers}


def published(ref: str, root: Path, tokenizers: Path | None = None) -> Published:
    """What is known of a model without its weights. tokenizers: a folder of tokenizers, by name or by `org/name`.

    Raises ModelError where its sizes are neither published here nor in the local cache.
    """
    if ref in BUILTIN or (root / ref).is_dir():
        folder = resolve(ref, root, file_digest_of=lambda _path: "").path
        return Published(plain_config(folder), folder)
    known, named = SIZES.get(ref.partition("@")[0], ({}, ""))
    snapshot = cached_snapshot(ref)
    config = read_json(snapshot / CONFIG) if snapshot and (snapshot / CONFIG).is_file() else known
    if not config:
        cure = f"fetch what is small of it: `hf download {ref} config.json tokenizer.json tokenizer_config.json`"
        raise ModelError("the sizes of this model are not known", value=ref, cure=cure)
    places = [tokenizers / named, tokenizers / ref] if tokenizers else []
    places += [snapshot] if snapshot else []
    found = next((one for one in places if any((one / name).is_file() for name in TOKENIZER_FILES)), None)
    return Published(config, found)
