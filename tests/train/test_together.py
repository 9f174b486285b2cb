"""Two processes over gloo train as one does: the same losses, and checkpoints that either goes on from."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import together_worker

from conftest import ROOT
from metier.train.batches import Piece, size_of
from metier.train.together import ALONE, World

WORKER = Path(__file__).with_name("together_worker.py")
SAME = 1e-6


def start(folder: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.Popen([sys.executable, str(WORKER), str(folder)], env=env)


def alone(folder: Path, *names: str) -> None:
    for case in together_worker.CASES:
        if case.__name__ in names:
            (folder / f"{case.__name__}.json").write_text(json.dumps(case(folder / case.__name__, ALONE)))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process made, and two; each went on where the other had stopped."""
    if sys.platform != "linux":
        pytest.skip("gloo's interface is called otherwise elsewhere")
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    alone(one, "full", "cut", "lora", "freeze", "muon", "stopped", "untied", "gpt2", "bf16", "split_stopped")
    shutil.copytree(one / "stopped", two / "other")
    shutil.copytree(one / "split_stopped", two / "split_other")
    port = free_port()
    processes = [start(two, rank, port) for rank in (0, 1)]
    assert [process.wait(timeout=280) for process in processes] == [0, 0]
    shutil.copytree(two / "stopped", one / "other")
    shutil.copytree(two / "split_stopped", one / "split_other")
    alone(one, "switched", "split_switched")
    return one, two


def result(folder: Path, case: str) -> dict[str, Any]:
    return json.loads((folder / f"{case}.json").read_text())


@pytest.mark.parametrize("case", ["full", "cut", "lora", "freeze"])
def test_losses_and_tokens_are_those_of_one_process(folders: tuple[Path, Path], case: str):
    one, two = (result(folder, case) for folder in folders)
    assert two["losses"] == pytest.approx(one["losses"], rel=SAME)
    assert two["dev"] == pytest.approx(one["dev"], rel=SAME)
    assert (two["step"], two["tokens"], two["best"]) == (one["step"], one["tokens"], one["best"])
    assert two["sum"] == pytest.approx(one["sum"], rel=SAME)


def test_muon_differs_by_the_bf16_that_it_computes_in(folders: tuple[Path, Path]):
    one, two = (result(folder, "muon") for folder in folders)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.parametrize("case", ["full", "cut", "lora", "freeze", "muon"])
def test_all_processes_end_with_the_same_weights(folders: tuple[Path, Path], case: str):
    assert result(folders[1], case)["weights"] == result(folders[1], f"{case}-1")["weights"]


def test_one_that_is_asked_to_stop_stops_all_and_they_go_on_to_the_same_bits(folders: tuple[Path, Path]):
    _, two = folders
    assert result(two, "stopped") == result(two, "stopped-1") == {"stopped": True}
    for what in ("losses", "weights"):
        assert result(two, "resumed")[what] == result(two, "lora")[what]


def test_a_checkpoint_of_two_goes_on_with_one_and_the_other_way_round(folders: tuple[Path, Path]):
    for folder in folders:
        assert result(folder, "switched")["losses"] == pytest.approx(result(folder, "lora")["losses"], rel=SAME)


def test_where_memory_runs_out_in_one_all_go_on_with_less(folders: tuple[Path, Path]):
    plain, found, other = (result(folders[1], name) for name in ("full", "scarce", "scarce-1"))
    assert found["limit"] == other["limit"] is not None
    assert len(found["warned"]) == len(other["warned"]) == 1
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def test_checkpoints_after_every_step_are_written_by_the_first_process_alone(folders: tuple[Path, Path]):
    found = result(folders[1], "often")
    assert found["kept"][0] == "checkpoint-0"
    assert found["kept"][-1] == f"checkpoint-{found['step']}"


@pytest.mark.parametrize(("case", "like"), [("split", "full"), ("untied", "untied"), ("gpt2", "gpt2")])
def test_shards_give_the_losses_of_whole_models(folders: tuple[Path, Path], case: str, like: str):
    one, two = result(folders[0], like), result(folders[1], case)
    assert two["losses"] == pytest.approx(one["losses"], rel=SAME)
    assert two["dev"] == pytest.approx(one["dev"], rel=SAME)
    assert two["sum"] == pytest.approx(one["sum"], rel=SAME)
    assert two["held"] <= 0.51 * two["all"]


def test_shards_in_bf16_learn_as_whole_models_do(folders: tuple[Path, Path]):
    one, two = (result(folder, "bf16") for folder in folders)
    assert two["losses"] == pytest.approx(one["losses"], rel=3e-3)


def test_a_checkpoint_of_shards_has_a_file_of_each_process_and_goes_on(folders: tuple[Path, Path]):
    one, two = folders
    files = result(two, "split_stopped")["files"]
    assert {"manifest.json", "state.json"} < set(files)
    assert len([name for name in files if name.endswith(".safetensors")]) == 2
    for folder, case in ((two, "split_resumed"), (two, "split_switched"), (one, "split_switched")):
        assert result(folder, case)["losses"] == pytest.approx(result(one, "full")["losses"], rel=SAME)


def micro(*lengths: int) -> tuple[Piece, ...]:
    return tuple(Piece.of(f"p{i}", list(range(n))) for i, n in enumerate(lengths))


def test_a_window_is_cut_for_all_processes_and_dealt_without_rest():
    window = (micro(30, 20, 10, 20),)
    world = World(1, 2, 2)
    parts = world.cut(window)
    assert [size_of(part) for part in parts] == [40, 40]
    assert world.cut(window) is parts
    assert [place for place, _ in world.own(parts)] == [1]
    every = [place for rank in (0, 1) for place, _ in World(rank, 2, 2).own(parts)]
    assert sorted(every) == [0, 1]
    assert [size_of(part) for part in World(0, 4, 4).cut((micro(30, 20),))] == [30, 20]


def test_whole_micro_steps_stay_as_they_are_and_so_does_everything_alone():
    window = (micro(30, 20), micro(10), micro(5))
    assert World(0, 2, 2, whole=True).cut(window) is window
    assert ALONE.cut(window) is window
    assert ALONE.own(window) == list(enumerate(window))
    assert ALONE.same([1.5]) == [1.5]
    assert ALONE.largest(3, 4) == [3, 4]
    assert ALONE.decide(lambda: np.pi) == np.pi
