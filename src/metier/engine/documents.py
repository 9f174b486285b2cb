"""The log-likelihood of whole documents, with a loaded transformers model on whatever device it is.

`document_nll` reads documents through a sliding window and sums the negative log-likelihood of their tokens. Refuses a
window wider than the model's context. Names of tensors end in their shape: b rows, t positions, v vocabulary, n tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from metier.core.errors import Interrupted, ModelError
from metier.engine.local import SPREAD, Progress
from metier.models.load import Loaded

LOGITS_BYTES = 64 * 2**20
"""About how much memory the logits may take at once, as float32."""

READ_TOKENS = 4096
"""How many tokens are read in one batch of windows (at least one window)."""


@contextmanager
def _reading(model: Any) -> Iterator[None]:
    """No gradients and no dropout; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class DocumentNll:
    """nll: sum of the negative log-likelihood over a document's tokens, in nats. tokens: how many were predicted."""

    nll: float
    tokens: int


@dataclass(frozen=True)
class _Window:
    """Part of a document to read: ids[start:end], of which the tokens from `scored` on are predicted."""

    document: int
    start: int
    scored: int
    end: int

    @property
    def width(self) -> int:
        """Positions that the model reads: the last token is only ever predicted."""
        return self.end - self.start - 1


def document_nll(
    loaded: Loaded,
    documents: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    stride: int | None = None,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[DocumentNll]:
    """The negative log-likelihood of every document, each token counted once.

    documents: token ids. The first id of each is context, not predicted: give the begin token there. window: how many
    tokens are read at once (the model's context by default). stride: by how many the window moves (half of it by
    default), so a token far inside a long document has at least window - stride tokens of context.
    on_progress: told the documents read. Raises ModelError for a window that the model cannot read, Interrupted.

    Logits of a chunk of positions are made, used and dropped before the next (LOGITS_BYTES), the chunks joined by the
    key-value cache. Source: the strided evaluation of the transformers guide "Perplexity of fixed-length models".
    """
    context = loaded.context
    window = context if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 2 <= window <= context:
        raise ModelError(f"a window must have 2 to {context} tokens here", where="window", value=window)
    if not 1 <= stride < window:
        raise ModelError(f"the stride must be 1 to {window - 1}, below the window", where="stride", value=stride)
    windows = [w for d, ids in enumerate(documents) for w in _windows(d, len(ids), window, stride)]
    windows.sort(key=lambda w: -w.width)
    left = [0] * len(documents)
    for w in windows:
        left[w.document] += 1
    sums = [0.0] * len(documents)
    done = left.count(0)
    with _reading(loaded.model):
        for batch in _window_batches(windows):
            if should_stop is not None and should_stop():
                raise Interrupted("reading was stopped", cure="run the same command again")
            for w, nll in zip(batch, _read(loaded.model, documents, batch), strict=True):
                sums[w.document] += nll
                left[w.document] -= 1
                done += left[w.document] == 0
            if on_progress is not None:
                on_progress(done, len(documents))
    return [DocumentNll(nll, max(0, len(ids) - 1)) for nll, ids in zip(sums, documents, strict=True)]


def _windows(document: int, length: int, window: int, stride: int) -> Iterator[_Window]:
    """The windows over a document of `length` ids; each id but the first is scored in exactly one."""
    scored, start = 1, 0
    while scored < length:
        end = min(start + window, length)
        yield _Window(document, start, scored, end)
        scored, start = end, start + stride


def _window_batches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Windows of similar width, widest first, READ_TOKENS positions a batch."""
    batch: list[_Window] = []
    for w in windows:
        if batch and ((len(batch) + 1) * batch[0].width > READ_TOKENS or w.width < SPREAD * batch[0].width):
            yield batch
            batch = []
        batch.append(w)
    if batch:
        yield batch


def _read(model: Any, documents: Sequence[Sequence[int]], batch: Sequence[_Window]) -> list[float]:
    """NLL of each window's scored tokens. Padded on the right, where causal attention cannot see it."""
    width = batch[0].width
    ids_bt = torch.zeros(len(batch), width, dtype=torch.long)
    targets_bt = torch.full((len(batch), width), -100)
    for row, w in enumerate(batch):
        ids = torch.as_tensor(documents[w.document][w.start : w.end])
        ids_bt[row, : w.width] = ids[:-1]
        first = w.scored - w.start - 1
        targets_bt[row, first : w.width] = ids[first + 1 :]
    ids_bt, targets_bt = ids_bt.to(model.device), targets_bt.to(model.device)
    skipped = min(w.scored - w.start - 1 for w in batch)
    chunk = max(1, LOGITS_BYTES // (4 * len(batch) * model.get_output_embeddings().weight.shape[0]))
    cache = DynamicCache(config=model.config) if width - skipped > chunk else None
    total_b = torch.zeros(len(batch), dtype=torch.float64, device=model.device)
    start = 0
    for begin in range(skipped, width, chunk):
        end = min(begin + chunk, width)
        total_b += _chunk_nll(model, ids_bt[:, start:end], targets_bt[:, begin:end], cache)
        start = end
    sums: list[float] = total_b.tolist()
    return sums


def _chunk_nll(model: Any, ids_bt: Tensor, targets_bt: Tensor, cache: DynamicCache | None) -> Tensor:
    """Sum over the positions that have a target. The mask stays None: all rows are read from their first id on."""
    keep = targets_bt.shape[1]
    out = model(input_ids=ids_bt, past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep)
    logits_nv = out.logits.float().flatten(0, 1)
    nll_n = functional.cross_entropy(logits_nv, targets_bt.flatten(), reduction="none", ignore_index=-100)
    return nll_n.view_as(targets_bt).double().sum(-1)
