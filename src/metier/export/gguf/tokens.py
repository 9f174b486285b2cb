"""What llama.cpp makes of a text, computed from a GGUF file's own fields: so ids can be compared without llama.cpp.

Follows llama-vocab.cpp (as in llama-cpp-python 0.3.36): special tokens are cut out first. Byte-level BPE then splits by
the expressions that belong to the pre-tokenizer's name, and merges by rank. SentencePiece merges the neighbours that
make the piece of the highest score, and writes what is left in bytes: about 10 us a character.
"""

import heapq
import re
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from metier.export.gguf.vocabulary import CONTROL, IGNORES_MERGES, SPACE, SPLITS, UNKNOWN, USER_DEFINED, Vocabulary


class Tokens:
    """Turns texts into ids as llama.cpp would with this vocabulary, special tokens recognised."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = {text: i for i, text in enumerate(vocabulary.tokens)}
        special = [
            text
            for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
        special.sort(key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._bytes = None if vocabulary.model == "llama" else _byte_level(vocabulary)

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """The ids of a text. begin: behind the begin token, where there is one and the text does not write it."""
        ids = [i for part in self._fragments(text) for i in self._fragment(*part)]
        bos = self._vocabulary.bos
        return ids if not begin or bos is None or ids[:1] == [bos] else [bos, *ids]

    def _fragments(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text cut at special tokens, and of each part whether it is one."""
        at = 0
        for match in self._special.finditer(text) if self._special else ():
            if match.start() > at:
                yield text[at : match.start()], False
            yield match[0], True
            at = match.end()
        if at < len(text):
            yield text[at:], False

    def _fragment(self, text: str, special: bool) -> list[int]:
        if special:
            return [self._ids[text]]
        if self._bytes is not None:
            return list(self._bytes.encode(text, add_special_tokens=False).ids)
        # text stands at the start or behind a special token always: it would be one fragment with other text
        return self._pieces(((" " if self._vocabulary.space_prefix else "") + text).replace(" ", SPACE))

    def _pieces(self, text: str) -> list[int]:
        """SentencePiece: `llm_tokenizer_spm_session::tokenize`. Of equal scores the left one goes first."""
        scores, known = self._vocabulary.scores, self._ids
        parts: list[str] = list(text)
        following, before = [*range(1, len(parts)), -1], [*range(-1, len(parts) - 1)]
        queue: list[tuple[float, int, int, str]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (i := known.get(parts[left] + parts[right])) is not None:
                heapq.heappush(queue, (-scores[i], left, right, parts[left] + parts[right]))

        for right in range(1, len(parts)):
            consider(right - 1, right)
        while queue:
            _, left, right, whole = heapq.heappop(queue)
            if not parts[left] or not parts[right] or parts[left] + parts[right] != whole:
                continue
            parts[left], parts[right] = whole, ""
            following[left] = following[right]
            if following[right] >= 0:
                before[following[right]] = left
            consider(before[left], left)
            consider(left, following[left])
        return [i for part in parts if part for i in self._piece(part)]

    def _piece(self, part: str) -> list[int]:
        found = self._ids.get(part)
        return [found] if found is not None else [self._ids[f"<0x{b:02X}>"] for b in part.encode("utf-8")]


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """A BPE that splits by llama.cpp's expressions. A word that cannot be merged falls into its bytes."""
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    ignore = vocabulary.pre in IGNORES_MERGES
    made = Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=ignore))
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS[vocabulary.pre]]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, whole])
    return made
