"""Document likelihoods against one plain forward pass and cross-entropy."""

import math
import random
from pathlib import Path

import pytest
import torch
from tests.fakes import byte_tokenizer, tiny

from metier.core.errors import Interrupted, ModelError
from metier.engine import local
from metier.engine.local import document_nll
from metier.models.load import Loaded

KINDS = ("llama", "gpt2")


def loaded(kind: str = "llama") -> Loaded:
    return Loaded(tiny(kind), byte_tokenizer(), Path("nowhere"))


def documents(lengths: list[int]) -> list[list[int]]:
    rng = random.Random(1)
    return [[0] + [rng.randrange(6, 262) for _ in range(n - 1)] for n in lengths]


def plain_nll(who: Loaded, ids: list[int], window: int, stride: int) -> float:
    """The guide's strided loop: one window at a time, full logits, labels masked where already counted."""
    total, counted = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        if end <= counted:
            break
        with torch.no_grad():
            logits = who.model(torch.tensor([ids[begin:end]]), use_cache=False).logits[0]
        logp = logits.double().log_softmax(-1)
        total -= sum(float(logp[i - begin - 1, ids[i]]) for i in range(max(counted, begin + 1), end))
        counted = end
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("window", "stride"), [(128, 64), (40, 13), (40, 39), (16, 1)])
def test_equal_to_a_plain_forward(kind: str, window: int, stride: int):
    who = loaded(kind)
    read = documents([100, 5, 128, 129, 200, 2, 41, 40, 39])
    got = document_nll(who, read, window=window, stride=stride)
    for one, ids in zip(got, read, strict=True):
        assert one.tokens == len(ids) - 1
        assert one.nll == pytest.approx(plain_nll(who, ids, window, stride), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_logits_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch):
    who = loaded(kind)
    read = documents([100, 90, 128, 260, 3])
    whole = document_nll(who, read, window=128, stride=50)
    monkeypatch.setattr(local, "LOGITS_BYTES", 4 * 265 * 4 * 7)
    chunked = document_nll(who, read, window=128, stride=50)
    for a, b in zip(whole, chunked, strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-5)


def test_full_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch):
    who = loaded()
    seen: list[int] = []
    who.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.numel() * 4))
    monkeypatch.setattr(local, "LOGITS_BYTES", 20_000)
    document_nll(who, documents([128] * 6))
    assert max(seen) <= 20_000
    assert sum(seen) >= 6 * 127 * 265 * 4


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary():
    who = loaded()
    with torch.no_grad():
        who.model.get_output_embeddings().weight.zero_()
    (one,) = document_nll(who, documents([77]))
    assert one.nll == pytest.approx(76 * math.log(265), rel=1e-6)


def test_documents_without_a_predicted_token_cost_nothing():
    got = document_nll(loaded(), [[0], [], [0, 60]])
    assert [(g.nll == 0, g.tokens) for g in got] == [(True, 0), (True, 0), (False, 1)]


def test_progress_and_stop():
    told: list[tuple[int, int]] = []
    document_nll(loaded(), documents([20, 300, 9]), on_progress=lambda *p: told.append(p))
    assert told[-1] == (3, 3)
    with pytest.raises(Interrupted):
        document_nll(loaded(), documents([20]), should_stop=lambda: True)


@pytest.mark.parametrize(
    ("window", "stride", "said"), [(129, 1, "2 to 128"), (1, 1, "2 to 128"), (64, 64, "1 to 63"), (64, 0, "1 to 63")]
)
def test_windows_the_model_cannot_read_are_refused(window: int, stride: int, said: str):
    with pytest.raises(ModelError, match=said):
        document_nll(loaded(), documents([20]), window=window, stride=stride)
