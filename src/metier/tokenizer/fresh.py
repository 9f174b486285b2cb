"""The stage `train_tokenizer` at work: a tokenizer from nothing, and a model with random weights that fits it.

Both styles have the special tokens and the chat template of the seedling, so that what is pre-trained can be tuned,
asked and exported like any other model. Refuses texts that hold fewer pieces than are wanted. Costs a second for about
a megabyte of text, and the model's weights in memory.
"""

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from metier.core.errors import DataError
from metier.core.measure import Stopwatch
from metier.core.stage import Context
from metier.models.builtin import BUILTIN
from metier.models.load import quiet, read_tokenizer
from metier.models.save import save_model
from metier.models.shape import count_parameters
from metier.text.artifacts import about, read_jsonl, write_json
from metier.tokenizer.fertility import batches
from metier.tokenizer.stage import TrainTokenizer, inner_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
SPREAD = 0.02
"""The deviation of random weights, as Llama's config has it."""


def make(stage: TrainTokenizer, ctx: Context) -> dict[str, float]:
    """Run the stage. Raises DataError for texts that are too few."""
    watch = Stopwatch()
    folder = ctx.source(stage.documents).path
    train = _byte_level if stage.style == "byte-level" else _sentencepiece
    tokenizer = train(stage, ctx, folder)
    if len(tokenizer) < stage.vocabulary:
        raise DataError(
            f"the texts hold only {len(tokenizer):,} pieces",
            where="vocabulary",
            value=stage.vocabulary,
            cure=f"set vocabulary to at most {len(tokenizer)}, or give step {stage.documents!r} more texts",
        )
    ctx.check_stop()
    model = _model(stage, tokenizer)
    save_model(model, tokenizer, ctx.out)
    split = "heldout" if _has_rows(folder / "heldout.jsonl") else "train"
    found = _fertility(tokenizer, folder / f"{split}.jsonl", ctx)
    total = count_parameters(model).total
    told = {
        "method": "train_tokenizer",
        "tokenizer": stage.style,
        "vocabulary": len(tokenizer),
        "fertility": {"domain": {**found, "split": split}, "general": None},
        "parameters": {"trained": 0, "total": total},
    }
    write_json(ctx.out / "about.json", told)
    write_json(ctx.measured / "about.json", {"seconds": round(watch.seconds, 3)})
    ctx.events.note(
        f"{len(tokenizer):,} tokens, {found['tokens_per_word']:.3f} a word on {split} text; {total:,} random "
        "weights for them"
    )
    return {"tokens_per_word": found["tokens_per_word"], "total_parameters": total}


def _texts(folder: Path, ctx: Context) -> Iterator[str]:
    """The texts to learn from, and as many replay texts as training would mix in."""
    count = 0
    for row in read_jsonl(folder / "train.jsonl"):
        if count % 200 == 0:
            ctx.check_stop()
            ctx.events.progress("texts", count, None, unit="texts")
        count += 1
        yield str(row["text"])
    ratio = float(about(folder).get("replay_ratio") or 0.0)
    if ratio and _has_rows(folder / "replay.jsonl"):
        wanted = round(count * ratio / (1 - ratio))
        yield from (str(row["text"]) for row in itertools.islice(read_jsonl(folder / "replay.jsonl"), wanted))


def _has_rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _byte_level(stage: TrainTokenizer, ctx: Context, folder: Path) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend: Any = Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if stage.split_digits else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytewise]) if digits else bytewise
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=stage.vocabulary,
        min_frequency=stage.min_count,
        special_tokens=[BEGIN, END, PAD, *TURNS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(folder, ctx), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(TURNS),
        model_max_length=stage.shape.context,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = _template()
    return made


def _sentencepiece(stage: TrainTokenizer, ctx: Context, folder: Path) -> "PreTrainedTokenizerFast":
    """Trained by SentencePiece itself, with settings under which tokenizer.json says the same as tokenizer.model."""
    import sentencepiece

    written = io.BytesIO()
    lines = (line for text in _texts(folder, ctx) for line in text.split("\n") if line)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=written,
            model_type="bpe",
            vocab_size=stage.vocabulary,
            byte_fallback=True,
            split_digits=stage.split_digits,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            num_threads=1,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            bos_piece=BEGIN,
            eos_piece=END,
            pad_piece=PAD,
            control_symbols=list(TURNS),
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            "the texts do not give a vocabulary of that size",
            where="vocabulary",
            value=stage.vocabulary,
            cure=f"set it lower, or give step {stage.documents!r} more texts ({_said(error)})",
        ) from error
    place = ctx.scratch / "tokenizer"
    place.mkdir(parents=True, exist_ok=True)
    (place / "tokenizer.model").write_bytes(written.getvalue())
    return _llama_tokenizer(place, stage.shape.context)


def _llama_tokenizer(folder: Path, context: int) -> "PreTrainedTokenizerFast":
    """tokenizer.json from tokenizer.model, with the template."""
    names = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD, "unk_token": "<unk>"}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        **names,
        "extra_special_tokens": list(TURNS),
        "add_bos_token": True,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    found = read_tokenizer(folder)
    found.chat_template = _template()
    return found


def _template() -> str:
    return (BUILTIN["seedling"] / "chat_template.jinja").read_text(encoding="utf-8")


def _said(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[0].rpartition("] ")[2] or "no more is told"


def _model(stage: TrainTokenizer, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = stage.shape
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=inner_size(shape),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads or shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        initializer_range=SPREAD,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        return LlamaForCausalLM(config).eval()


def _fertility(tokenizer: "PreTrainedTokenizerFast", path: Path, ctx: Context) -> dict[str, Any]:
    words = size = tokens = count = 0
    backend = tokenizer.backend_tokenizer
    for batch in batches(read_jsonl(path)):
        ctx.check_stop()
        texts = [str(row["text"]) for row in batch]
        count += len(texts)
        words += sum(len(text.split()) for text in texts)
        size += sum(len(text.encode("utf-8")) for text in texts)
        tokens += sum(len(one.ids) for one in backend.encode_batch_fast(texts, add_special_tokens=False))
    return {
        "texts": count,
        "words": words,
        "bytes": size,
        "tokens": tokens,
        "tokens_per_word": round(tokens / words, 6),
        "tokens_per_byte": round(tokens / size, 6),
    }
