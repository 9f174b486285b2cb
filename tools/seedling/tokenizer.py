"""The seedling's tokenizer: byte-level BPE with chat tokens, and the two ways text becomes ids (document, chat).

It adds no token by itself; `encode_document` and the chat template do. A chat encoded here is token-identical to
`apply_chat_template`, which a test holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SPECIAL = [BOS, EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>", *(f"<|reserved_{i}|>" for i in range(10))]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` entries, special tokens first; digits stay single."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    return tok


def save_tokenizer(tok: Tokenizer, folder: Path, max_length: int) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja as stock transformers reads them."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(folder))


def document_text(text: str) -> str:
    """A document as the token stream holds it; the special tokens are parsed by the tokenizer."""
    return f"{BOS}{text}{EOS}"


def chat_text(turns: list[tuple[str, str]], system: str | None = None) -> str:
    """A chat as the template renders it: no newline, every turn closed."""
    head = f"<|system|>{system}{EOS}" if system else ""
    return BOS + head + "".join(f"<|user|>{q}{EOS}<|assistant|>{a}{EOS}" for q, a in turns)
