"""Run a GGUF file in llama.cpp, where llama-cpp-python is installed, and quantise one with it (K-quants).

Its compiled library is used as it is, on one thread and with keys and values in 32 bits, so that what differs is the
file. Costs loading the file and reading the prompts one by one.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch

from metier.core.disk import whole
from metier.core.errors import MetierError, MissingExtra
from metier.core.stage import stop_if_asked
from metier.export.parity import ANSWER_TOKENS, Probe, Seen

KQuant = Literal["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"]
K_QUANTS: tuple[KQuant, ...] = get_args(KQuant)


def is_installed() -> bool:
    """Whether llama-cpp-python is there. Imports nothing."""
    return find_spec("llama_cpp") is not None


def _package(needed_by: str) -> ModuleType:
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise MissingExtra("llama-cpp-python", "llamacpp", needed_by=needed_by) from error
    module: ModuleType = llama_cpp
    return module


def check_quantiser() -> None:
    """Raise MissingExtra unless K-quants can be made."""
    if not is_installed():
        raise MissingExtra("llama-cpp-python", "llamacpp", needed_by="a GGUF file of K-quants")


def quantise(source: Path, out: Path, kind: KQuant) -> None:
    """Make a K-quant of a GGUF file of 16 or 32 bits. Rows that blocks of 256 do not divide become Q5_0 or Q8_0."""
    llama = _package("a GGUF file of K-quants")
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.nthread = 1
    with whole(out) as aside, _silent():
        failed = llama.llama_model_quantize(os.fsencode(source), os.fsencode(aside), ctypes.byref(settings))
        if failed:
            raise MetierError("llama.cpp could not quantise the file", where=str(source), value=failed)


def see(path: Path, probe: Probe, banned: Sequence[int] = ()) -> Seen:
    """What llama.cpp does with the probe: its own tokens, logits and greedy answers.

    banned: ids that are never generated (special tokens that end nothing). Raises MetierError where it cannot load.
    """
    llama = _package("running a GGUF file in llama.cpp")
    longest = max(map(len, (*probe.ids, *probe.asked))) + ANSWER_TOKENS
    with _silent():
        try:
            model = llama.Llama(
                str(path),
                n_ctx=longest,
                n_batch=longest,
                n_threads=1,
                n_threads_batch=1,
                logits_all=True,
                verbose=False,
                type_k=llama.GGML_TYPE_F32,
                type_v=llama.GGML_TYPE_F32,
            )
        except (ValueError, RuntimeError) as error:
            raise MetierError(f"llama.cpp cannot load the file ({error})", where=str(path)) from error
    try:
        logits = tuple(torch.from_numpy(_logits(model, ids)) for ids in probe.ids)
        chats = tuple(
            tuple(model.tokenize(text.encode("utf-8"), add_bos=not _begins(llama, model, text), special=True))
            for text in probe.rendered
        )
        answers = tuple(_answer(llama, model, ids, banned) for ids in probe.asked)
    finally:
        model.close()
    return Seen(logits, chats, answers)


def _begins(llama: Any, model: Any, text: str) -> bool:
    """Whether the rendered text writes the begin token, which servers then do not add."""
    bos = model.token_bos()
    piece = llama.llama_vocab_get_text(llama.llama_model_get_vocab(model.model), bos) if bos >= 0 else None
    return piece is not None and text.startswith(str(piece, "utf-8"))


def _logits(model: Any, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    stop_if_asked()
    model.reset()
    model.eval(list(ids))
    return np.array(model.scores[: len(ids)], dtype=np.float32)


def _answer(llama: Any, model: Any, ids: Sequence[int], banned: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    vocabulary = llama.llama_model_get_vocab(model.model)
    said: list[int] = []
    last = _logits(model, ids)[-1]
    while len(said) < ANSWER_TOKENS:
        last[list(banned)] = -np.inf
        chosen = int(last.argmax())
        if llama.llama_vocab_is_eog(vocabulary, chosen):
            return tuple(said), True
        said.append(chosen)
        stop_if_asked()
        model.eval([chosen])
        last = np.array(model.scores[model.n_tokens - 1], dtype=np.float32)
    return tuple(said), False


@contextmanager
def _silent() -> Iterator[None]:
    """What the library prints goes nowhere: part of it writes to the process's own streams, part through Python."""
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        kept = os.dup(2), os.dup(1)
        try:
            os.dup2(nowhere.fileno(), 2)
            os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            for saved, stream in zip(kept, (2, 1), strict=True):
                os.dup2(saved, stream)
                os.close(saved)
