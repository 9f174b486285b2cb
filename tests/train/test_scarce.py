"""Memory runs out: the same samples in smaller micro-steps with the same gradients; at one sample, what would help."""

from pathlib import Path
from typing import Any

import pytest
import test_loop
import torch
from test_loop import StopAt, fingerprint, pieces_of, run
from test_training_stages import base, context, documents, said  # noqa: F401

import fakes
from metier.core.errors import Interrupted
from metier.train import scarce
from metier.train.batches import size_of
from metier.train.forward import Forward
from metier.train.scarce import Foresight, MemoryRanOut, narrowed, ran_out
from metier.train.stage import Pretrain

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you ...")


class Scarce(Forward):
    """Has room for `most` tokens at once. Fails in the middle of the work, with a gradient half added."""

    most = 10**9
    error: BaseException = MemoryError()
    tried: list[int]

    def backward(self, micro: Any, *, scale: Any, following: Any = None, **others: Any) -> torch.Tensor:
        loss = super().backward(micro, scale=scale, following=following, **others)
        self.tried.append(size_of(micro))
        if size_of(micro) > self.most:
            raise self.error
        return loss

    def summed_loss(self, micro: Any) -> torch.Tensor:
        if size_of(micro) > self.most:
            raise self.error
        return super().summed_loss(micro)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> type[Scarce]:
    monkeypatch.setattr(test_loop, "Forward", Scarce)
    Scarce.most, Scarce.error, Scarce.tried = 10**9, MemoryError(), []
    return Scarce


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("error", [MemoryError(), CUDA, CPU], ids=["python", "cuda", "cpu"])
def test_the_same_samples_again_in_half_the_micro_step(tmp_path: Path, room: type[Scarce], error: BaseException):
    settings: dict[str, Any] = {"max_steps": 3, "batches": {"batch_size": 4, "accumulation": 1}, "clip": None}
    plain, narrow = fakes.tiny("llama"), fakes.tiny("llama")
    expected = run(plain, tmp_path / "plain", **settings)
    largest, room.tried = max(room.tried), []
    room.most, room.error = 70, error
    found = run(narrow, tmp_path / "narrow", **settings)
    assert found.micro_tokens is not None
    assert largest > 2 * 70 >= found.micro_tokens
    assert [row["tokens"] for row in found.log if "loss" in row] == [
        row["tokens"] for row in expected.log if "loss" in row
    ]
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    norms = [[row["grad_norm"] for row in state.log if "loss" in row] for state in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert (flat(plain) - flat(narrow)).abs().mean() < 1e-5
    assert found.dev_losses == pytest.approx(expected.dev_losses, rel=1e-4)


def test_gradients_are_equal_however_narrow(tmp_path: Path):
    model = fakes.tiny("llama")
    window = (pieces_of(9), pieces_of(5, seed=3))
    found = []
    for tokens in (None, 100, 40, 1):
        cut = narrowed(window, tokens)
        assert sorted(p.id for micro in cut for p in micro) == sorted(p.id for micro in window for p in micro)
        assert tokens is None or all(size_of(micro) <= tokens or len(micro) == 1 for micro in cut)
        model.zero_grad()
        with Forward(model, precision=test_loop.choose("fp32", width=32)) as forward:
            for micro in cut:
                forward.backward(micro, scale=0.01)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_a_stopped_run_stays_narrow_and_ends_with_the_same_bits(tmp_path: Path, room: type[Scarce]):
    room.most = 70
    whole = fakes.tiny("llama")
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(fakes.tiny("llama"), tmp_path / "cut", check_stop=StopAt(30))
    room.most = 10**9  # there is more now: it stays as it began
    again = fakes.tiny("llama")
    assert run(again, tmp_path / "cut").log == expected.log
    assert fingerprint(again) == fingerprint(whole)


def test_one_sample_that_does_not_fit_is_named(tmp_path: Path, room: type[Scarce]):
    room.most = 3
    with pytest.raises(MemoryRanOut, match=r"memory ran out at step 1, on one sample \(\w\d+\)"):
        run(fakes.tiny("llama"), tmp_path, dev=[])


def test_the_step_says_what_would_fit(
    tmp_path: Path,
    base: Path,  # noqa: F811
    documents: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(*_: Any, **__: Any) -> None:
        raise MemoryError

    stage = Pretrain(model="base", documents="data", block_size=64)
    monkeypatch.setattr(Forward, "backward", refused)
    with pytest.raises(MemoryRanOut, match="on one sample") as error:
        stage.run(context(tmp_path, base=base, data=documents))
    cure = error.value.cure or ""
    assert len(cure.split("; or ")) in (2, 3), cure
    assert cure.startswith("gradient_checkpointing: true")
    assert "a smaller block_size (longer ones are cut)" in cure
    assert "micro_batch" not in cure
    assert "they have at most" in said(tmp_path, "warning")
    monkeypatch.setattr("metier.train.job.load_base", refused)
    with pytest.raises(MemoryRanOut, match="memory ran out beside the samples"):
        stage.run(context(tmp_path / "other", base=base, data=documents))


def test_what_says_that_memory_ran_out():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert ran_out(error.value)
    assert ran_out(CUDA)
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))


def test_a_larger_micro_step_is_foreseen(monkeypatch: pytest.MonkeyPatch):
    """A control group's limit kills, so it has to be seen before."""
    held = [1_000]
    monkeypatch.setattr(scarce, "_own", lambda: held[0])
    monkeypatch.setattr(scarce, "free_memory", lambda: 10_000)
    micro = pieces_of(12)
    small, large = micro[:2], micro
    foresight = Foresight()
    with foresight.of(small):
        held[0] = 1_000 + 60 * size_of(small)
    with pytest.raises(MemoryError, match="micro-step of"), foresight.of(large):
        pass
    with foresight.of(small):  # as large as before: there is room
        pass
    monkeypatch.setattr(scarce, "free_memory", lambda: 10**9)
    with foresight.of(large):
        pass
