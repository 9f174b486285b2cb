"""The loop learns, counts right, stops on bad numbers, and a stopped run ends with the bits of an uninterrupted one."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fakes
from metier.core.errors import Interrupted, TrainingError
from metier.core.events import Events
from metier.models.adapter import LoraSettings, add_lora
from metier.train.batches import Batches, Piece
from metier.train.checkpoint import Checkpoints
from metier.train.course import Course, State, Watch
from metier.train.forward import Forward
from metier.train.loop import fit
from metier.train.optimizers import is_hidden_matrix
from metier.train.precision import Precision, choose
from metier.train.together import ALONE

HERE = Path(__file__).parent


def pieces_of(count: int, seed: int = 0) -> tuple[Piece, ...]:
    """Sequences that count upwards: something to learn."""
    random = np.random.default_rng(seed)
    return tuple(
        Piece.of(f"d{i}", [(int(s) + k) % 200 + 6 for k in range(int(n))])
        for i, (s, n) in enumerate(zip(random.integers(0, 200, count), random.integers(4, 40, count), strict=True))
    )


def adapted(seed: int = 0) -> Any:
    """A tiny Llama with a LoRA that drops inputs, so that random numbers matter."""
    model = fakes.tiny("llama", seed)
    torch.manual_seed(seed)
    add_lora(model, LoraSettings(r=4, alpha=8, dropout=0.2))
    return model


def run(model: Any, folder: Path, **changes: Any) -> State:
    batches = changes.pop("batches", {})
    data = {
        "pieces": pieces_of(24),
        "replay": pieces_of(8, seed=5),
        "replay_share": 0.2,
        "block_size": 64,
        "batch_size": 2,
        "accumulation": 2,
        "seed": 1,
        **batches,
    }
    course = {"epochs": 3, "learning_rate": 1e-2, "warmup": 0.1, "seed": 1}
    watch: dict[str, Any] = {"dev": [pieces_of(5, seed=9)], "log_every": 1}
    forward: dict[str, Any] = {"precision": changes.pop("precision", choose("fp32", width=32))}
    rest: dict[str, Any] = {
        "events": Events("t"),
        "check_stop": lambda: None,
        "checkpoints": Checkpoints(folder, every_seconds=1e9),
        "world": ALONE,
    }
    for name, value in changes.items():
        owner = next((o for o, cls in ((course, Course), (watch, Watch)) if name in cls.__dataclass_fields__), None)
        owner = owner if owner is not None else rest if name in rest else forward
        owner[name] = value
    return fit(
        model,
        Forward(model, **forward),
        Batches(**data),
        course=Course(**course),
        watch=Watch(**watch),
        precision=forward["precision"],
        **rest,
    )


def fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


class StopAt:
    """Asks to stop at the n-th time it is looked at."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted("stopped")


def test_it_learns_and_the_log_adds_up(tmp_path: Path):
    model = fakes.tiny("llama")
    state = run(model, tmp_path)
    rows = [row for row in state.log if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, state.step + 1))
    assert rows[-1]["tokens"] == state.tokens
    assert state.losses[-1] < state.losses[0] - 1
    assert state.dev_losses[-1] < state.dev_losses[0] - 1
    assert len(state.dev_losses) == 4  # before, and after each of 3 epochs
    assert {row["epoch"] for row in rows} == {0, 1, 2}
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_batch_size_and_accumulation_give_the_same_steps(tmp_path: Path):
    runs = []
    for index, (batch, accumulation) in enumerate([(4, 1), (2, 2), (1, 4)]):
        model = fakes.tiny("llama")
        run(model, tmp_path / str(index), max_steps=3, batches={"batch_size": batch, "accumulation": accumulation})
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # AdamW divides by the gradient's own size, so its rounding shows where a gradient is almost zero
    assert (runs[0] - runs[1]).abs().mean() < 1e-5
    assert (runs[0] - runs[2]).abs().mean() < 1e-5


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, State]:
    model = adapted()
    return model, run(model, tmp_path_factory.mktemp("whole"), keep_best=True)


@pytest.mark.parametrize("looks", [0, 2, 6, 11])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, looks: int, uninterrupted: tuple[Any, State]):
    whole, expected = uninterrupted
    with pytest.raises(Interrupted):
        run(adapted(), tmp_path / "cut", keep_best=True, check_stop=StopAt(looks))
    again = adapted()
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.fill_(7.0)  # what trains must all come from the checkpoint
    found = run(again, tmp_path / "cut", keep_best=True)
    assert found.log == expected.log
    assert fingerprint(again) == fingerprint(whole)


def test_muon_goes_on_to_the_same_bits(tmp_path: Path):
    whole, cut = fakes.tiny("llama"), fakes.tiny("llama")
    expected = run(whole, tmp_path / "whole", optimizer="muon")
    with pytest.raises(Interrupted):
        run(cut, tmp_path / "cut", optimizer="muon", check_stop=StopAt(7))
    again = fakes.tiny("llama")
    assert run(again, tmp_path / "cut", optimizer="muon").log == expected.log
    assert fingerprint(again) == fingerprint(whole)


def test_eight_bit_adamw_goes_on_to_the_same_bits_and_lands_near_adamw(tmp_path: Path):
    def model() -> Any:
        return fakes.tiny("llama-untied")

    whole, cut, again, plain = model(), model(), model(), model()
    expected = run(whole, tmp_path / "whole", optimizer="adamw8bit", keep_best=True)
    with pytest.raises(Interrupted):
        run(cut, tmp_path / "cut", optimizer="adamw8bit", keep_best=True, check_stop=StopAt(7))
    tensors, _ = Checkpoints(tmp_path / "cut").load()
    assert tensors["optimizer/state1/lm_head.weight"].dtype == torch.uint8  # 8,480 numbers
    assert tensors["optimizer/state1/model.norm.weight"].dtype == torch.float32
    assert run(again, tmp_path / "cut", optimizer="adamw8bit", keep_best=True).log == expected.log
    assert fingerprint(again) == fingerprint(whole)
    known = run(plain, tmp_path / "plain")
    assert expected.dev_losses[-1] == pytest.approx(known.dev_losses[-1], rel=0.1)


def test_muon_takes_only_the_matrices_inside_the_blocks():
    named = dict(fakes.tiny("llama-untied").named_parameters())
    hidden = {name for name, p in named.items() if is_hidden_matrix(name, p)}
    assert hidden == {n for n in named if n.endswith("_proj.weight")}


def test_checkpoints_replace_one_another(tmp_path: Path):
    run(adapted(), tmp_path, checkpoints=Checkpoints(tmp_path, every_seconds=0.0))
    tensors, state = Checkpoints(tmp_path).load()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-0", f"checkpoint-{state['step']}"}
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in tensors)


def test_keep_best_restores_the_lowest_dev_loss(tmp_path: Path):
    """A rate this high destroys the model: the best is what it started as."""
    model = fakes.tiny("llama")
    before = fingerprint(model)
    state = run(model, tmp_path, learning_rate=3.0, max_steps=4, every=1, keep_best=True)
    assert state.best_step == 0
    assert fingerprint(model) == before


def test_patience_stops_and_keeps_the_best(tmp_path: Path):
    """The rate destroys the model, so no dev loss is below the first."""
    events = Events("t", tmp_path / "events.jsonl")
    model = fakes.tiny("llama")
    before = fingerprint(model)
    changes = {"learning_rate": 3.0, "every": 1, "keep_best": True, "patience": 2, "log_every": 100}
    state = run(model, tmp_path / "run", **changes, events=events)
    assert state.step == 2
    assert len(state.dev_losses) == 3
    assert fingerprint(model) == before
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert "stopped after step 2 of" in next(e["text"] for e in told if e["event"] == "note")
    assert [e["at"] for e in told if e["event"] == "train"] == [1, 2]


def test_patience_counts_on_after_a_stop(tmp_path: Path):
    changes = {"learning_rate": 3.0, "every": 2, "keep_best": True, "patience": 2}
    expected = run(fakes.tiny("llama"), tmp_path / "whole", **changes)
    with pytest.raises(Interrupted):
        run(fakes.tiny("llama"), tmp_path / "cut", **changes, check_stop=StopAt(6))
    found = run(fakes.tiny("llama"), tmp_path / "cut", **changes)
    assert found.log == expected.log
    assert found.step == expected.step == 4


class Overflowing(Forward):
    """Gradients as fp16 has them where the loss is scaled by more than `most`: too large to be numbers."""

    most = 2.0**14
    scales: list[float]

    def backward(self, micro: Any, *, scale: Any, following: Any = None, **others: Any) -> torch.Tensor:
        loss = super().backward(micro, scale=scale, following=following, **others)
        self.scales.append(scale)
        if scale * sum(piece.weight for piece in micro) > self.most:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss


@dataclasses.dataclass(frozen=True)
class Scaled(Precision):
    """Losses are scaled, products stay float32."""

    @property
    def scaler(self) -> bool:
        return True


def test_overflowing_gradients_halve_the_scale_and_lose_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("metier.train.passes.GROWTH", 3)
    plain, scaled = fakes.tiny("llama"), fakes.tiny("llama")
    settings: dict[str, Any] = {"max_steps": 5, "batches": {"accumulation": 1}}
    expected = run(plain, tmp_path / "plain", **settings)
    Overflowing.scales = []
    monkeypatch.setitem(globals(), "Forward", Overflowing)
    found = run(scaled, tmp_path / "scaled", **settings, precision=Scaled("fp32", "a test"))
    # 2^16 and 2^15 overflow; 2^14 holds three steps, doubles, is too much again
    assert len(Overflowing.scales) == 5 + 3
    assert found.scale == 2.0**14
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)


def test_a_gradient_that_no_scale_saves_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Overflowing.scales = []
    monkeypatch.setattr(Overflowing, "most", 0.0)
    monkeypatch.setitem(globals(), "Forward", Overflowing)
    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 6.*steps 1, 2, 3, 4, 5 were left out"):
        run(fakes.tiny("llama"), tmp_path, precision=Scaled("fp32", "a test"), batches={"accumulation": 1})
    assert len(Overflowing.scales) == 6 * 17  # each window from 2^16 down to 1


def test_events_tell_what_was_measured(tmp_path: Path):
    events = Events("t", tmp_path / "events.jsonl")
    state = run(fakes.tiny("llama"), tmp_path / "run", max_steps=5, log_every=2, events=events)
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    rows = [e for e in told if e["event"] == "train"]
    assert [row["at"] for row in rows] == [1, 2, 4, 5]
    assert {"total", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "rss_bytes"} <= set(
        rows[0]
    )
    assert all(0 < row["utilisation"] < 1 for row in rows)
    assert [row["step"] for row in state.measured] == [1, 2, 4, 5]
    assert {"seconds", "tokens_per_second", "utilisation", "rss_bytes", "step"} == set(state.measured[0])
    assert [e["dev_loss"] for e in told if e["event"] == "dev"] == state.dev_losses


def test_micro_tokens_change_no_step(tmp_path: Path):
    runs = []
    for index, micro_tokens in enumerate([None, 64, 1]):
        model = fakes.tiny("llama")
        run(model, tmp_path / str(index), max_steps=3, batches={"micro_tokens": micro_tokens})
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (runs[0] - runs[1]).abs().mean() < 1e-5
    assert (runs[0] - runs[2]).abs().mean() < 1e-5


def test_frozen_weights_stay(tmp_path: Path):
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    run(model, tmp_path, max_steps=2)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())


def test_max_steps_stops_amid_an_epoch_and_the_rate_is_spent(tmp_path: Path):
    state = run(fakes.tiny("llama"), tmp_path, max_steps=3)
    assert state.step == 3
    assert [row["learning_rate"] for row in state.log if "loss" in row][-1] == pytest.approx(1e-3)


def test_every_setting_reaches_the_result(tmp_path: Path):
    """Each change ends with other weights: no setting is dead."""
    changes: list[dict[str, Any]] = [
        {},
        {"optimizer": "muon"},
        {"learning_rate": 5e-3},
        {"optimizer": "adamw8bit"},
        {"schedule": "linear"},
        {"schedule": "wsd"},
        {"schedule": "wsd", "decay": 0.3},
        {"label_smoothing": 0.1},
        {"neftune": 5.0},
        {"warmup": 0.6},
        {"min_learning_rate": 0.9},
        {"weight_decay": 0.5},
        {"clip": 0.05},
        {"seed": 2},
        {"epochs": 1},
        {"precision": choose("bf16", width=32)},
    ]
    ends = []
    for index, change in enumerate(changes):
        model = adapted()
        run(
            model,
            tmp_path / str(index),
            **{"max_steps": None if "epochs" in change else 5, **change},
        )
        ends.append(fingerprint(model))
    assert len(set(ends)) == len(changes)


def test_two_processes_end_with_the_same_bits(tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "2"}
    script = "import sys, test_loop; test_loop.main(sys.argv[1])"
    found = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)], env=env, capture_output=True, text=True, check=True
        ).stdout
        for name in ("one", "two")
    ]
    assert found[0] == found[1]
    assert len(found[0].split()[0]) == 64


def main(folder: str) -> None:
    """What the processes of the test above do."""
    for index, precision in enumerate(("fp32", "bf16")):
        model = adapted()
        state = run(model, Path(folder) / str(index), max_steps=2, precision=choose(precision, width=32))
        sys.stdout.write(f"{fingerprint(model)} {dataclasses.asdict(state)['log']}\n")
