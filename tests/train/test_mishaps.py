"""Bad numbers: a window is left out, then training goes back, then it stops; and a stop changes none of that."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import test_loop
import torch
from test_loop import StopAt, fingerprint, run

import fakes
from metier.core.errors import Interrupted, TrainingError
from metier.core.events import Events
from metier.train.checkpoint import Checkpoints
from metier.train.forward import Forward
from metier.train.mishaps import BACK, LEAST, NEAR, RECENT, back_to, follows, judge, limit


class Poisoned(Forward):
    """Gives bad numbers in the windows that `bad` names, by their number: nan or inf losses, or so many nats more."""

    bad: dict[int, float]
    gradients: bool
    loop: Any

    def backward(self, micro: Any, *, scale: Any, following: Any = None, **others: Any) -> torch.Tensor:
        loss = super().backward(micro, scale=scale, following=following, **others)
        step = type(self).loop.state.step + 1
        if step not in self.bad:
            return loss
        if self.gradients:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(self.bad[step])
            return loss
        return loss + self.bad[step] * sum(piece.weight for piece in micro)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> type[Poisoned]:
    from metier.train import loop

    class Watched(loop._Loop):
        def __post_init__(self) -> None:
            super().__post_init__()
            Poisoned.loop = self

    monkeypatch.setattr(loop, "_Loop", Watched)
    monkeypatch.setattr(test_loop, "Forward", Poisoned)
    Poisoned.bad, Poisoned.gradients = {}, False
    return Poisoned


def warnings(folder: Path) -> list[str]:
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in told if event["event"] == "warning"]


def trained(folder: Path, **changes: Any) -> tuple[Any, Any]:
    folder.mkdir(exist_ok=True)
    model = fakes.tiny("llama")
    return model, run(
        model,
        folder / "run",
        **{"epochs": 6, "dev": [], "batches": {"accumulation": 1}, **changes},
        events=Events("t", folder / "events.jsonl"),
    )


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_window_is_left_out_and_named(tmp_path: Path, poisoned: type[Poisoned], gradients: bool, value: float):
    poisoned.bad, poisoned.gradients = {3: value}, gradients
    model, state = trained(tmp_path, max_steps=5)
    assert [row["step"] for row in state.log] == [1, 2, 3, 4, 5]
    assert "loss" not in state.log[2]
    assert all(math.isfinite(loss) for loss in state.losses)
    assert all(p.isfinite().all() for p in model.parameters())
    (one,) = state.mishaps
    assert one["step"] == 3
    assert one["what"] == f"the {'gradient' if gradients else 'loss'} is not finite"
    (text,) = warnings(tmp_path)
    assert "step 3 is left out" in text
    assert one["read"][0] in text
    json.dumps(state.log, allow_nan=False)


def test_leaving_a_window_out_changes_nothing_else(tmp_path: Path, poisoned: type[Poisoned]):
    """The third window learned from is the fourth, with weights and moments as two steps left them."""
    poisoned.bad = {3: math.nan}
    _, with_gap = trained(tmp_path / "gap", max_steps=4)
    poisoned.bad = {}
    _, without = trained(tmp_path / "none", max_steps=4)
    assert with_gap.losses[:2] == without.losses[:2]
    assert with_gap.log[3]["loss"] != without.log[3]["loss"]
    assert with_gap.tokens == without.tokens - (without.log[2]["tokens"] - without.log[1]["tokens"])


def test_a_third_goes_back_and_on_at_half_the_rate(tmp_path: Path, poisoned: type[Poisoned]):
    poisoned.bad = {15: math.nan, 17: math.nan, 18: math.nan}
    _, state = trained(tmp_path)
    poisoned.bad = {}
    _, plain = trained(tmp_path / "plain")
    rows, usual = state.log, plain.log
    assert [row["step"] for row in rows] == [row["step"] for row in usual]
    start = 15 - 1 - BACK
    assert rows[:start] == usual[:start]
    assert state.slower_from == start
    for row, other in zip(rows[start:], usual[start:], strict=True):
        if row["step"] in (15, 17, 18):
            assert row["left_out"] == "the loss is not finite"
        else:
            assert row["learning_rate"] == other["learning_rate"] / 2
    assert "goes back to step 4" in warnings(tmp_path)[-1]


@pytest.mark.parametrize("every", [1e9, 0.0])
def test_going_back_does_not_depend_on_when_checkpoints_were_written_or_on_stops(
    tmp_path: Path, poisoned: type[Poisoned], every: float
):
    poisoned.bad = {4: math.nan, 15: math.nan, 17: math.nan, 18: math.inf, 25: math.nan}
    whole, expected = trained(tmp_path / "whole")
    folder = tmp_path / "cut"
    for looks in (41, 9, 12, 30, 26, 13, 1000):
        try:
            again, found = trained(folder, check_stop=StopAt(looks), checkpoints=Checkpoints(folder, every))
        except Interrupted:
            continue
        break
    assert found.log == expected.log
    assert found.mishaps == expected.mishaps
    assert fingerprint(again) == fingerprint(whole)


def test_bad_again_after_going_back_stops_with_a_diagnosis(tmp_path: Path, poisoned: type[Poisoned]):
    poisoned.bad = dict.fromkeys(range(12, 40), math.nan)
    with pytest.raises(TrainingError, match=r"(?s)not finite at step 17; read in it: d\d") as error:
        trained(tmp_path)
    assert "training went back to step 1, at half the learning rate" in str(error.value)
    assert "learning_rate" in (error.value.cure or "")


def test_a_damaged_base_is_said_to_be(tmp_path: Path):
    model = fakes.tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    with pytest.raises(TrainingError, match=r"these weights are not finite: model.embed_tokens.weight") as error:
        run(model, tmp_path, dev=[])
    assert "this one was damaged before training" in (error.value.cure or "")


def test_a_run_of_nothing_but_bad_windows_is_no_result(tmp_path: Path, poisoned: type[Poisoned]):
    poisoned.bad = {1: math.nan, 2: math.nan}
    with pytest.raises(TrainingError, match="the windows of steps 1 were left out"):
        trained(tmp_path, max_steps=2)


def test_a_spike_is_left_out(tmp_path: Path, poisoned: type[Poisoned]):
    poisoned.bad = {28: 5.0}
    _, state = trained(tmp_path, learning_rate=1e-4)
    assert [one["step"] for one in state.mishaps] == [28]
    assert "above" in state.mishaps[0]["what"]
    poisoned.bad = {28: LEAST / 2}
    assert trained(tmp_path / "small", learning_rate=1e-4)[1].mishaps == []


def test_the_limit_is_six_deviations_above_the_median():
    losses = [2.0, 3.0] * 25  # median 2.5, deviation 0.5
    assert limit(losses, targets=100, usual=100) == 2.5 + 6 * 0.5
    assert limit(losses, targets=25, usual=100) == 2.5 + 6 * 0.5 * 2
    assert limit(losses, targets=400, usual=100) == 2.5 + 6 * 0.5
    assert limit([2.0] * RECENT, targets=1, usual=1) == 2.0 + LEAST
    assert limit([2.0] * 19, targets=1, usual=1) == math.inf
    assert judge(3.1, 1.0, 3.0) == "the loss is above 3"
    assert judge(3.0, 1.0, 3.0) is None


def test_what_follows():
    def at(*steps: int) -> list[dict[str, Any]]:
        return [{"step": step} for step in steps]

    assert follows(at(5), went_back=False, known=0) == "skip"
    assert follows(at(5, 6), went_back=False, known=0) == "skip"
    assert follows(at(5, 6, 14), went_back=False, known=0) == "back"
    assert follows(at(5, 6, 5 + NEAR), went_back=False, known=0) == "skip"
    assert follows(at(5, 6, 7, 8, 9), went_back=True, known=3) == "skip"
    assert follows(at(5, 6, 7, 8, 9, 10), went_back=True, known=3) == "stop"
    assert back_to(at(30, 35, 38)) == 30 - 1 - BACK
    assert back_to(at(3, 4, 5)) == 0
