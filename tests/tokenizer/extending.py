"""What the tests of the tokenizer room share: artifacts of texts, contexts, and cuts of a text by two tokenizers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from metier.core.events import Event, Events
from metier.core.stage import Context, Source
from metier.models.load import read_tokenizer
from metier.models.save import save_model
from metier.text.artifacts import write_jsonl
from metier.tokenizer.stage import ExtendTokenizer

ROOT = Path(__file__).resolve().parents[2]
MARINE = ROOT / "recipes" / "data" / "marine"


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def documents(folder: Path, train: Sequence[str], **splits: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    for name, texts in {"train": train, **splits}.items():
        write_jsonl(folder / f"{name}.jsonl", ({"id": f"{name}{i}", "text": t} for i, t in enumerate(texts)))
    (folder / "about.json").write_text(json.dumps({"characters": {"train": sum(map(len, train))}, "replay_ratio": 0.0}))
    return folder


def context(folder: Path, seen: list[Event] | None = None, stop: Any = lambda: False, **sources: Path) -> Context:
    for name in ("out", "measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    known = {name: Source(name, (path,), str(path), "0") for name, path in sources.items()}
    events = Events("t", listeners=[] if seen is None else [seen.append])
    return Context("t", folder / "out", folder / "measured", folder / "scratch", events, known, stop)


def extend(
    folder: Path, base: Path, texts: Path, general: Path | None = None, **fields: Any
) -> tuple[Path, list[Event]]:
    """Run the stage; returns its files and what it told."""
    seen: list[Event] = []
    sources = {"base": base, "texts": texts} | ({"general": general} if general else {})
    sources |= {fields["descriptions"]: Path(fields["descriptions"])} if "descriptions" in fields else {}
    stage = ExtendTokenizer(
        **{"model": "base", "documents": "texts", "general": "general" if general else None, **fields}
    )
    ctx = context(folder, seen, **sources)
    stage.check(ctx.sources)
    stage.run(ctx)
    return ctx.out, seen


def about(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "about.json").read_text(encoding="utf-8"))
    return found


def small_model(family: str, vocabulary: int, *, tied: bool = True) -> PreTrainedModel:
    """One block, hidden 16."""
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=128))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def shaped(folder: Path, tokenizer: Path, family: str, *, tied: bool = True) -> Path:
    """A small model with a real tokenizer."""
    found = read_tokenizer(tokenizer)
    save_model(small_model(family, len(found), tied=tied), found, folder)
    return folder


def boundaries(tokenizer: Any, text: str) -> set[tuple[int, int]]:
    """Where a tokenizer cuts a text; bytes of one character share their place."""
    return {place for place in tokenizer.encode(text, add_special_tokens=False).offsets if place[0] < place[1]}


def only_joins(old: Any, new: Any, lines: Iterable[str], first: int) -> tuple[int, int]:
    """Assert that the new tokenizer only leaves out cuts, and none in a line without new tokens.

    Returns how many lines there were and how many hold a new token.
    """
    count = fresh = 0
    for line in lines:
        before = old.encode(line, add_special_tokens=False)
        after = new.encode(line, add_special_tokens=False)
        has_new = any(number >= first for number in after.ids)
        assert has_new or before.ids == after.ids, line
        starts, ends = {s for s, _ in before.offsets}, {e for _, e in before.offsets}
        assert all(s in starts and e in ends for s, e in after.offsets), line
        old_ids = [number for number in after.ids if number < first]
        kept = iter(before.ids)
        assert all(number in kept for number in old_ids), line  # in their order, nothing else among them
        assert old.decode(before.ids) == new.decode(after.ids), line
        count, fresh = count + 1, fresh + has_new
    return count, fresh
