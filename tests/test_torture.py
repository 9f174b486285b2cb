"""The short form of `make torture`: a few faults of each kind, none lost."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT

PARTS = ["kills", "corrupt", "full", "signals", "races", "moved"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits what the forks may do")
def test_nothing_is_lost():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torture", "--short"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["part"] for one in told] == PARTS
    assert all(one["tried"] for one in told)
    assert sum(one["lost"] for one in told) == 0
