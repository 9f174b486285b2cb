"""A tokenizer as GGUF describes one: tokens with types, scores or merges, and the name of a pre-tokenizer.

llama.cpp has tokenizers of its own and reads none of tokenizer.json's rules, so each rule must be one that it knows
under a name. Two kinds fit: SentencePiece-like BPE with byte pieces (model `llama`: Llama 2, TinyLlama, Mistral) and
byte-level BPE (model `gpt2`) split like GPT-2's, SmolLM's (digits one by one) or Llama 3's. Refuses others, naming the
rule. `tokens.py` computes what llama.cpp will then make of a text. Costs a parse of tokenizer.json.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from metier.core.errors import DataError, ModelError
from metier.text.chat import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens, as GGUF numbers them."""

SPACE = "▁"
UNREACHABLE = -1e9
"""The score of a piece that no merge makes: llama.cpp prefers every other."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3_REST = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # the same in both
)
SPLITS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|" + _LLAMA3_REST,),
}
"""The expressions that llama.cpp splits a text by, one after another, by the pre-tokenizer's name (llama-vocab.cpp)."""

IGNORES_MERGES = ("llama-bpe",)
"""Where a word that is a token needs no merges to become it."""

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _LLAMA3_REST
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CURE = "export without `gguf`, or use a model whose tokenizer is like Llama's or GPT-2's"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    model: `llama` or `gpt2`. pre: the pre-tokenizer's name. tokens, types: of each id. scores: of SentencePiece's
    pieces, higher merged first; merges: of byte-level BPE, two pieces parted by a space. stops: ids that end a turn.
    space_prefix: a space is put before text at the start and behind a special token. template: Jinja.
    """

    model: Literal["llama", "gpt2"]
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    bos: int | None
    eos: int
    pad: int | None
    unk: int | None
    stops: frozenset[int]
    space_prefix: bool
    template: str


def vocabulary(tokenizer: "PreTrainedTokenizerFast", rows: int, *, where: str) -> Vocabulary:
    """Describe a tokenizer for a model with `rows` embeddings; ids that the tokenizer does not use are filled up.

    where: the model's folder, for messages. Raises ModelError for rules that llama.cpp has no name for.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model.get("type") != "BPE":
        raise _unknown("model", model.get("type"), where)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _unknown(f"model.{key}", model[key], where)
    pieces = bool(model.get("byte_fallback"))
    pre = "default" if pieces else _split_name(rules, where)
    if not pieces and model.get("ignore_merges") and pre not in IGNORES_MERGES:
        raise _unknown("model.ignore_merges", True, where)
    tokens, types = _tokens(rules, rows, pieces, where)
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    bos = tokenizer.bos_token_id
    return Vocabulary(
        model="llama" if pieces else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, pairs) if pieces else (),
        merges=() if pieces else _merges(pairs, where),
        bos=None if bos is None else int(bos),
        eos=int(tokenizer.eos_token_id),
        pad=None if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        unk=None if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id),
        stops=_stops(tokenizer),
        space_prefix=pieces and _space_prefix(rules, bool(tokenizer.chat_template), where),
        template=plain_template(str(tokenizer.chat_template or "")),
    )


def plain_template(template: str) -> str:
    """A chat template without the `generation` marks, which only transformers knows."""
    return _GENERATION.sub("", template)


def _stops(tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    try:
        return stop_ids(tokenizer)
    except DataError:  # the template does not say how a turn ends: only the end token does
        return frozenset({int(tokenizer.eos_token_id)})


def _split_name(rules: Mapping[str, Any], where: str) -> str:
    """Which of llama.cpp's pre-tokenizers splits as these rules do."""
    if rules.get("normalizer") is not None:
        raise _unknown("normalizer", rules["normalizer"].get("type"), where)
    steps = _steps(rules.get("pre_tokenizer"))
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _unknown("pre_tokenizer", rules.get("pre_tokenizer"), where)
    before, by_regex = steps[:-1], bool(steps[-1].get("use_regex", True))
    if not before and by_regex:
        return "gpt-2"
    if len(before) == 1:
        first = before[0]
        if first.get("type") == "Digits" and first.get("individual_digits") and by_regex:
            return "smollm"
        split = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
        if split and not by_regex and first.get("pattern", {}).get("Regex") == _LLAMA3:
            return "llama-bpe"
    raise _unknown("pre_tokenizer", rules.get("pre_tokenizer"), where)


def _space_prefix(rules: Mapping[str, Any], chats: bool, where: str) -> bool:
    """Whether a space goes before text at the start and behind special tokens.

    transformers can put one at the very start alone, llama.cpp at both places or none: a chat begins with a special
    token, so for a model that chats it is none.
    """
    before = _steps(rules.get("normalizer"), "normalizers")
    steps = _steps(rules.get("pre_tokenizer"))
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not steps and before in ([{"type": "Prepend", "prepend": SPACE}, replaces], [replaces]):
        return len(before) == 2
    if not before and len(steps) == 1 and steps[0].get("type") == "Metaspace":
        step = steps[0]
        if step.get("replacement") == SPACE and step.get("split") is False:
            return {"always": True, "never": False}.get(str(step.get("prepend_scheme")), not chats)
    raise _unknown("normalizer and pre_tokenizer", [*before, *steps], where)


def _steps(rule: Mapping[str, Any] | None, inside: str = "pretokenizers") -> list[Mapping[str, Any]]:
    if rule is None:
        return []
    return list(rule[inside]) if rule.get("type") == "Sequence" else [rule]


def _tokens(rules: Mapping[str, Any], rows: int, pieces: bool, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The text and type of every id."""
    texts: dict[int, str] = {int(i): text for text, i in rules["model"]["vocab"].items()}
    types = {i: BYTE if pieces and _BYTE.fullmatch(text) else NORMAL for i, text in texts.items()}
    unknown = rules["model"].get("unk_token")
    for added in rules["added_tokens"]:
        if flags := [flag for flag in ("lstrip", "rstrip", "single_word") if added.get(flag)]:
            raise _unknown(f"added token {added['content']!r}", flags, where)
        texts[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == unknown:
            types[added["id"]] = UNKNOWN
    if pieces and (missing := [b for b in range(256) if f"<0x{b:02X}>" not in rules["model"]["vocab"]]):
        raise _unknown("byte pieces that are missing", missing[:3], where)
    ids = range(max(rows, max(texts) + 1))
    tokens = tuple(texts.get(i, f"[PAD{i}]") for i in ids)
    if len(set(tokens)) < len(tokens):
        twice = next(text for i, text in enumerate(tokens) if text in tokens[:i])
        raise _unknown("a text that two ids have", twice, where)
    return tokens, tuple(types.get(i, UNUSED) for i in ids)


def _scores(tokens: Sequence[str], merges: Iterable[tuple[str, ...]]) -> tuple[float, ...]:
    """SentencePiece merges what makes the piece of the highest score: minus the place of the first merge to make it."""
    places: dict[str, int] = {}
    for place, pair in enumerate(merges):
        places.setdefault("".join(pair), place)
    alone = {text: 0.0 if len(text) == 1 else UNREACHABLE for text in tokens}
    return tuple(-float(places[text]) if text in places else alone[text] for text in tokens)


def _merges(pairs: Iterable[tuple[str, ...]], where: str) -> tuple[str, ...]:
    merges = []
    for pair in pairs:
        if any(" " in part for part in pair):
            raise _unknown("a merge with a space in it", pair, where)
        merges.append(" ".join(pair))
    return tuple(merges)


def _unknown(rule: str, value: object, where: str) -> ModelError:
    return ModelError(f"GGUF has no name for this tokenizer's {rule}", where=where, value=value, cure=_CURE)
