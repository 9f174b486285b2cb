"""Stopping on request: which signals, the time limit, and that every kind of loop asks."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metier.cli.stopping import StopFlag
from metier.core import workers
from metier.core.errors import Interrupted
from metier.core.stage import STOP, stop_if_asked

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_stops_at_once(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert "once more stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_time_limit_asks_once_it_is_over(capfd: pytest.CaptureFixture[str]):
    with StopFlag(minutes=0.05 / 60) as stop:
        assert not stop()
        time.sleep(0.06)
        assert stop()
        assert stop()
        assert capfd.readouterr().err.count("time limit") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_loops_outside_a_step_ask_the_run_that_is_under_way():
    stop_if_asked()
    token = STOP.set(lambda: True)
    try:
        with pytest.raises(Interrupted):
            stop_if_asked()
    finally:
        STOP.reset(token)


POOL = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from metier.core import workers

def work(seconds):
    time.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=workers.begin)
    try:
        print(pool.submit(work, 0.0).result(), flush=True)
        future = pool.submit(work, float(sys.argv[1]))
        time.sleep(0.2)
        for child in pool._processes:
            for number in workers.STOPS:
                os.kill(child, number)
        print(future.result(), flush=True)
    finally:
        workers.close(pool)
"""


def start(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    script = folder / "pool.py"
    script.write_text(POOL)
    return subprocess.Popen([sys.executable, str(script), str(seconds)], stdout=subprocess.PIPE, text=True)


def test_workers_leave_signals_to_their_parent(tmp_path: Path):
    process = start(tmp_path, 1.0)
    out, _ = process.communicate(timeout=120)
    first, second = out.split()
    assert first == second
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_parent_that_is_killed_or_stopped_at_once(tmp_path: Path, number: signal.Signals):
    process = start(tmp_path, 60.0)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.5)
    process.send_signal(number)
    process.wait(timeout=60)
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < end:
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()


def test_the_signals_are_those_of_the_handler():
    assert tuple(SIGNALS) == workers.STOPS
