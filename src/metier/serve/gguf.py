"""A GGUF file behind the same endpoints, through llama.cpp (the extra `llamacpp`).

llama.cpp gives the logits; sampling, stop strings, log-probabilities and the chat template are those of every other
model here. One request at a time: others wait. The file stands in a folder that `metier export` wrote (or that has a
transformers tokenizer beside it), whose tokenizer and template are used. Costs the file's size in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metier.core.errors import MissingExtra, ModelError

SUFFIX = ".gguf"
LONGEST = 4096
"""The most positions that keys and values are held for."""


@dataclass(frozen=True)
class _Head:
    """What is asked of an output matrix: how many rows it has."""

    weight: Tensor


class GgufModel:
    """A loaded file, and what is asked of a model besides its logits."""

    device = torch.device("cpu")
    training = False

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp
        except ModuleNotFoundError as error:
            raise MissingExtra("llama-cpp-python", "llamacpp", needed_by="serving a GGUF file") from error
        try:
            exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
            self._llama: Any = llama_cpp.Llama(
                str(path), n_ctx=0, n_threads=torch.get_num_threads(), verbose=False, **exact
            )
        except (ValueError, RuntimeError) as error:
            raise ModelError("llama.cpp cannot load the file", where=str(path), cure="export it again") from error
        self.context = min(int(self._llama.n_ctx()), LONGEST)

    def get_output_embeddings(self) -> _Head:
        """Stands for the output matrix, by its size alone."""
        return _Head(torch.empty(int(self._llama.n_vocab()), 0))

    def logits(self, ids: Sequence[int], *, afresh: bool) -> Tensor:
        """Of what follows these ids, (vocabulary,). afresh: they are the beginning; else they go on from the last."""
        if afresh:
            self._llama.reset()
        self._llama.eval(list(ids))
        size = int(self._llama.n_vocab())
        last = self._llama._ctx.get_logits_ith(-1)
        return torch.tensor(last[:size], dtype=torch.float32)


class GgufDecoder:
    """The part of `engine.decoder.Decoder` that `engine.live` uses, for one sequence."""

    def __init__(self, model: GgufModel) -> None:
        self._model = model

    def step(self, tokens: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (1, vocabulary) after the next token of the sequence, or after a new prompt."""
        ids = prompts[0] if prompts else list(tokens)
        return self._model.logits(ids, afresh=bool(prompts))[None]

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Nothing to move: the next prompt begins afresh."""
        return list(slots)


@dataclass(frozen=True)
class GgufLoaded:
    """As `models.load.Loaded`, for a file."""

    model: GgufModel
    tokenizer: Any
    folder: Path
    adapter: str | None = None

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        return self.model.context

    def decoder(self) -> GgufDecoder:
        """For a new sequence."""
        return GgufDecoder(self.model)


def load_gguf(path: Path) -> GgufLoaded:
    """A file and the tokenizer beside it. Raises ModelError, MissingExtra."""
    from metier.models.load import read_tokenizer

    folder = next((f for f in path.absolute().parents[:2] if (f / "tokenizer.json").is_file()), None)
    if folder is None:
        raise ModelError(
            "there is no tokenizer.json beside the GGUF file or one folder up",
            where=str(path),
            cure="serve the file in the folder that `metier export` wrote",
        )
    return GgufLoaded(GgufModel(path), read_tokenizer(folder), folder)
