"""Tiny models of the architectures that people meet, with random weights and the seedling's tokenizer.

They stand in for real models where only the way through matters: that a model of that kind loads, is asked, trained and
saved. Their answers are noise. Each is made when it is first named (seconds), in the user's cache folder, and is the
same everywhere: a few hundred kilobytes, named in `metier.models.builtin.STAND_INS`.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from metier.core.errors import ModelError

SEED = 0
WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 128, 1024
ROTARY = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {**ROTARY, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT},
    "phi3": {**ROTARY, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT},
    "gemma": {**ROTARY, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": CONTEXT},
    "gemma3_text": {
        **ROTARY, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": CONTEXT, "sliding_window": 256
    },
    "falcon": {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
    },
    "opt": {
        "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "ffn_dim": INNER, "max_position_embeddings": CONTEXT, "dropout": 0.0,
    },
    "bert": {**ROTARY, "max_position_embeddings": CONTEXT},
}  # fmt: skip
"""By transformers' name of the architecture: what makes it tiny."""
ENCODERS = ("bert",)
"""Those that read and do not write, for metrics that compare texts."""


def make(model_type: str, folder: Path) -> None:
    """Make the tiny model of an architecture in `folder`, which is complete when it is there.

    Raises ModelError where the folder cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        _write(model_type, aside)
        aside.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            cure = "set METIER_CACHE to a folder that can be written"
            raise ModelError(f"a stand-in cannot be made: {error.strerror}", where=str(folder), cure=cure) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(model_type: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from metier.models.builtin import BUILTIN
    from metier.models.load import quiet, read_tokenizer
    from metier.models.save import save_model, save_tokenizer

    tokenizer = read_tokenizer(BUILTIN["seedling"])
    config = AutoConfig.for_model(
        model_type,
        **SIZES[model_type],
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = AutoModel if model_type in ENCODERS else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(SEED)
        model = kind.from_config(config, dtype=torch.float32)
    if model_type not in ENCODERS:
        save_model(model, tokenizer, folder)
        return
    with quiet():
        model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)
