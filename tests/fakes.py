"""Small seeded models and a byte-level tokenizer for everybody's tests: no downloads, milliseconds to make."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from metier.models import sizes
from metier.models.save import save_model

SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 128
TINYLLAMA = {**sizes.TINYLLAMA, "dtype": "bfloat16"}


def byte_tokenizer(
    *, merges: tuple[tuple[str, str], ...] = (("t", "h"), ("th", "e"), ("Ġ", "a"))
) -> PreTrainedTokenizerFast:
    """Special tokens first (ids 0-5), then the 256 bytes, then a few merges. With the chat template of the seedling."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_llama(seed: int = 0, *, tied: bool = True, **others: Any) -> LlamaForCausalLM:
    """2 blocks, hidden 32, 4 heads over 2 key/value heads: 27 thousand parameters (untied 36), float32, eval mode.

    others: of the config, instead of what stands here.
    """
    torch.manual_seed(seed)
    usual = {
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,  # at the usual 0.02 every logit is near 0 and tests would see nothing
    }
    return LlamaForCausalLM(LlamaConfig(**(usual | others))).eval()


def tiny_gpt2(seed: int = 0, **others: Any) -> GPT2LMHeadModel:
    """2 blocks, hidden 32, 4 heads, tied: 38 thousand parameters, float32, evaluation mode. others: as above."""
    torch.manual_seed(seed)
    usual = {
        "vocab_size": len(byte_tokenizer()),
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    return GPT2LMHeadModel(GPT2Config(**(usual | others))).eval()


def tiny(kind: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model by kind: llama (tied), llama-untied or gpt2."""
    if kind == "gpt2":
        return tiny_gpt2(seed)
    return tiny_llama(seed, tied={"llama": True, "llama-untied": False}[kind])


def save_tiny(folder: Path, kind: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model with its tokenizer to `folder`, and return the folder."""
    save_model(tiny(kind, seed), byte_tokenizer(), folder)
    return folder


def save_documents(folder: Path) -> Path:
    """A small artifact of documents, for tests of training. Returns its folder."""
    from metier.text.artifacts import write_jsonl

    folder.mkdir(parents=True)
    texts = [f"the crab digs, number {i}. " * (1 + i % 5) for i in range(24)]
    write_jsonl(folder / "train.jsonl", [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    write_jsonl(folder / "heldout.jsonl", [{"id": "h", "text": "the crab digs again"}])
    write_jsonl(folder / "replay.jsonl", [])
    (folder / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}')
    return folder
