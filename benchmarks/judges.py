"""Judges under trouble, and how often corrected rates hold the truth. `python -m benchmarks.judges [part ...]`

faults      1,000 judgements at concurrency 16 against a stand-in server of which 20 % of the replies fail
kills       a judge step killed (SIGKILL) at 24 moments and run again: the same bytes, nothing answered asked again
speed       judgements a second at concurrency 16 and one at a time, by a server that takes 100 ms for each
coverage    corrected rates on simulated labels with a known confusion matrix
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tests.engine.stand_in import StandIn, last_words, serving
from tests.judge.desk import Desk, judge
from tests.judge.desk import rows as lines_of
from tests.judge.test_judging import fair

from benchmarks.rows import Row, write
from metier.core.errors import InputError
from metier.engine import remote
from metier.engine.endpoint import Endpoint
from metier.engine.interface import Asking
from metier.engine.remote import RemoteEngine
from metier.engine.replies import FILE
from metier.judge.stage import verdicts_path
from metier.measure.agreement import confusion
from metier.measure.corrected import corrected
from metier.measure.statistics import wilson
from metier.models.builtin import BUILTIN
from metier.text.nouns import Message

ITEMS = 1000
KILLS = 24
TARGET_LOW, TARGET_HIGH = 0.93, 0.97
CHILD = """
import os, sys
from pathlib import Path
from metier.engine import remote
remote.FIRST_WAIT = 0.01
from tests.judge.desk import Desk, judge
desk = Desk(Path(sys.argv[1]))
desk.add("answers", Path(sys.argv[2]))
desk.run(judge(judges=[{"endpoint": sys.argv[3], "model": "tiny", "tries": 9, "timeout_seconds": 1.0,
    "concurrency": 4}], repeat=10), sys.argv[4], cache=Path(sys.argv[1]) / "replies" / sys.argv[4])
"""


def questions(count: int) -> tuple[list[tuple[str, str, str]], list[str]]:
    asked = [(f"q{i}", f"What does animal {i} eat?", f"Animal {i} eats crabs.") for i in range(count)]
    said = [f"Animal {i} eats {'crabs' if i % 3 else 'shoes'}." for i in range(count)]
    return asked, said


def faults() -> list[Row]:
    """Every judgement arrives, and none that arrived is asked for again."""
    remote.FIRST_WAIT = 0.02
    asked, said = questions(ITEMS)
    with tempfile.TemporaryDirectory() as folder, serving(StandIn(faults=0.2, seed=3, delay=0.005, slow=1.0)) as server:
        server.answer = fair
        desk = Desk(Path(folder))
        desk.answers(asked, {"base": said})
        one = {"endpoint": server.url, "model": "tiny", "tries": 12, "timeout_seconds": 0.8, "concurrency": 16}
        files, _ = desk.run(judge(judges=[one], repeat=0))
        found = lines_of(verdicts_path(files, "tiny"))
        wanted = {f"q{i}": "consistent" if i % 3 else "hallucinated" for i in range(ITEMS)}
        right = sum(row["verdict"] == wanted[row["id"]] for row in found)
        bodies = Counter(last_words(body) for body in server.whole)
        twice = sum(count - 1 for count in bodies.values())
        failed, kinds = len(server.failed), len(set(map(str, server.failed)))
        total = len(server.asked)
    return [
        Row("judgements that arrive, 20 % of replies failing", right, ITEMS, "of 1000", "higher", n=ITEMS),
        Row("judgements asked again after an answer had come", twice, 0, "requests", "lower", n=total),
        Row("share of replies that failed (429, 500, slow, torn, odd, closed, half)", failed / total, 0.15, "share",
            "higher", n=total),
        Row("kinds of failure met", kinds, 7, "kinds", "higher", n=failed),
    ]  # fmt: skip


def kills() -> list[Row]:
    """Killed at any moment and run again, a step ends in the same bytes."""
    drawn = random.Random(5)
    asked, said = questions(60)
    same = lost = died = 0
    with tempfile.TemporaryDirectory() as folder, serving(StandIn(faults=0.1, seed=9, delay=0.02, slow=1.5)) as server:
        server.answer = fair
        root = Path(folder)
        desk = Desk(root)
        answers = desk.answers(asked, {"base": said})
        whole = _child(root, answers, server.url, "whole", None)
        assert whole == 0, whole
        for number in range(KILLS):
            server.whole.clear()
            moment = drawn.random()
            step = f"cut{number}"
            code = _child(root, answers, server.url, step, int(70 * moment), server)
            died += code == -signal.SIGKILL
            arrived = len(server.whole)
            kept = _kept(root / "replies" / step / FILE)
            server.whole.clear()
            assert _child(root, answers, server.url, step, None) == 0
            again = len(server.whole)
            same += _bytes(root / "whole/files") == _bytes(root / step / "files")
            lost += max(0, again - (70 - kept))
            print(f"kill {number}: {arrived} had arrived, {kept} kept, {again} asked again, code {code}", flush=True)
    return [
        Row("runs killed and gone on with that end in the same bytes", same, KILLS, f"of {KILLS}", "higher", n=KILLS),
        Row("runs that the signal did kill", died, KILLS * 0.75, f"of {KILLS}", "higher", n=KILLS),
        Row("replies received before the kill and asked for again", lost, 0, "requests", "lower", n=KILLS),
    ]


def _child(root: Path, answers: Path, url: str, step: str, after: int | None, server: StandIn | None = None) -> int:
    """Judge in a process of its own; killed once so many whole answers were sent."""
    command = [sys.executable, "-c", CHILD, str(root), str(answers), url, step]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    while process.poll() is None:
        if after is not None and server is not None and len(server.whole) >= after:
            process.send_signal(signal.SIGKILL)
            after = None
        time.sleep(0.002)
    return process.returncode


def _kept(path: Path) -> int:
    """Replies on the disk."""
    if not path.is_file():
        return 0
    with closing(sqlite3.connect(path)) as file:
        return int(file.execute("SELECT count(*) FROM replies").fetchone()[0])


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SERVER = """
import sys, time
from tests.engine.stand_in import StandIn, serving
with serving(StandIn(delay=0.1)) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def speed() -> list[Row]:
    """Questions a second at concurrency 16 over one at a time; the server is a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    url = process.stdout.readline().strip()
    try:
        rates = {width: _rate(url, width, count) for width, count in ((1, 60), (16, 640))}
    finally:
        process.stdin.close()
        process.wait(10)
    case = "judgements a second, concurrency 16 over serial, 100 ms a reply"
    print({width: round(rate, 1) for width, rate in rates.items()})
    return [Row(case, rates[16] / rates[1], 10, "times", "higher", peer="one at a time", n=640)]


def _rate(url: str, width: int, count: int) -> float:
    engine = RemoteEngine(Endpoint(endpoint=url, model="tiny", concurrency=width), Asking(8))
    prompts = [(Message("user", f"question {i}"),) for i in range(count)]
    started = time.perf_counter()
    found = sum(len(part) for part in engine.answers(prompts))
    assert found == count
    return count / (time.perf_counter() - started)


TWO = np.array([[0.9, 0.1], [0.2, 0.8]])
THREE = np.array([[0.85, 0.1, 0.05], [0.15, 0.75, 0.1], [0.2, 0.2, 0.6]])
STUDIES: tuple[tuple[str, np.ndarray, np.ndarray, int, int, int], ...] = (
    ("two labels, 300 answers, 60 labelled", np.array([0.7, 0.3]), TWO, 300, 60, 0),
    ("two labels, a rare one, 500 answers, 150 labelled", np.array([0.92, 0.08]), TWO, 500, 150, 0),
    ("three labels, 400 answers, 120 labelled", np.array([0.6, 0.3, 0.1]), THREE, 400, 120, 0),
    ("three labels, 300 answers, 50 labelled, 100 of another's", np.array([0.6, 0.3, 0.1]), THREE, 300, 50, 100),
    ("two labels, none labelled, 200 of another's", np.array([0.7, 0.3]), TWO, 300, 0, 200),
    ("three labels, none labelled, 400 of another's", np.array([0.6, 0.3, 0.1]), THREE, 400, 0, 400),
)  # fmt: skip
TRIALS = 600


def coverage(trials: int = TRIALS) -> list[Row]:
    """How often 95 % intervals of corrected shares hold the true ones, in each study and over all."""
    found: list[Row] = []
    held_all = tried_all = 0
    for case, truth, rates, answers, own, others in STUDIES:
        held = tried = plain = 0
        for trial in range(trials):
            inside, judged = _study(
                np.random.default_rng([trial, answers, own, others]), truth, rates, answers, own, others
            )
            if inside is None:
                continue
            held, tried, plain = held + inside, tried + len(truth), plain + judged
        held_all, tried_all = held_all + held, tried_all + tried
        share, spread = held / tried, wilson(held / tried, tried)
        found += _sides(f"{case}: intervals that hold the true share", share, tried, spread)
        note = f"{case}: the judge's own intervals, uncorrected"
        found.append(Row(note, plain / tried, 0.0, "share", "higher", n=tried, interval=wilson(plain / tried, tried)))
        print(f"{case}: {share:.4f} (uncorrected {plain / tried:.3f}), n = {tried}", flush=True)
    whole = held_all / tried_all
    return found + _sides("all studies: intervals that hold the true share", whole, tried_all, wilson(whole, tried_all))


def _sides(case: str, share: float, n: int, spread: tuple[float, float]) -> list[Row]:
    return [
        Row(f"{case}, at least", share, TARGET_LOW, "share", "higher", n=n, interval=spread),
        Row(f"{case}, at most", share, TARGET_HIGH, "share", "lower", n=n, interval=spread),
    ]


def _study(
    rng: np.random.Generator, truth: np.ndarray, rates: np.ndarray, answers: int, own: int, others: int
) -> tuple[int | None, int]:
    """Labels whose true share the corrected, and the plain, interval holds. Others' answers have other shares."""
    count = len(truth)
    true = rng.choice(count, answers, p=truth)
    said = _judged(rng, true, rates)
    mine = confusion(true[:own], said[:own], count)
    theirs = rng.choice(count, others, p=np.full(count, 1 / count))
    table = mine + confusion(theirs, _judged(rng, theirs, rates), count)
    given = np.bincount(said, minlength=count)
    found = corrected(given, table, mine if own else None, seed=int(rng.integers(1 << 30)))
    if found is None:
        return None, 0
    inside = sum(low <= share <= high for low, share, high in zip(found.low, truth, found.high, strict=True))
    plain = [wilson(one / answers, answers) for one in given]
    return inside, sum(low <= share <= high for (low, high), share in zip(plain, truth, strict=True))


def _judged(rng: np.random.Generator, true: np.ndarray, rates: np.ndarray) -> np.ndarray:
    found: np.ndarray = (rng.random(len(true))[:, None] > rates.cumsum(1)[true]).sum(1)
    return found


def endpoint(url: str, model: str, form: str) -> list[Row]:
    """A dozen answers judged by JSON, twice, and by log-probabilities, there and here."""
    asked, said = questions(12)
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        desk.answers(asked, {"base": said})
        desk.add("seedling", BUILTIN["seedling"])
        there = {"endpoint": url, "model": model, "constrain": form, "concurrency": 1}
        files, _ = desk.run(judge(judges=[there | {"name": "json"}], repeat=12), "json")
        told = json.loads((files / "summary.json").read_text())["judges"]["json"]
        scored = sum(row["verdict"] is not None for row in lines_of(verdicts_path(files, "json")))
        kind, called = f"behind a real server, held to JSON by {form}", Path(model).name
        came = len(lines_of(verdicts_path(files, "json")))
        found = [
            Row(f"{called} {kind}: valid verdicts", scored, 0 if form == "prompt" else 12, "of 12", "higher", n=12),
            Row(f"{called} {kind}: answers that came", came, 12, "of 12", "higher", n=12),
        ]
        if told["repeated"]["n"]:
            same, n = told["repeated"]["observed"], told["repeated"]["n"]
            found.append(Row(f"{called} {kind}: the same when asked again", same, 1.0, "share", "higher", n=n))
        try:
            both = judge(judges=[there | {"name": "away", "choose": "logprobs"}, {"model": "seedling", "name": "here"}])
            files, _ = desk.run(both, "logprobs")
        except InputError as error:
            print(f"no log-probabilities there: {error}")
            return found
        pairs = [lines_of(verdicts_path(files, name)) for name in ("away", "here")]
        gaps = [
            abs(a["shares"][label] - b["shares"][label]) for a, b in zip(*pairs, strict=True) for label in a["shares"]
        ]
        equal = sum(a["verdict"] == b["verdict"] for a, b in zip(*pairs, strict=True))
        return [
            *found,
            Row(f"{called} by log-probabilities there and here: same verdict", equal, 12, "of 12", "higher", n=12),
            Row(
                f"{model} by log-probabilities: largest gap of a label's share", max(gaps), 0.02, "share", "lower", n=12
            ),
        ]


PARTS: dict[str, Any] = {"faults": faults, "kills": kills, "speed": speed, "coverage": coverage}


def main(names: list[str]) -> None:
    if names[:1] == ["endpoint"]:
        called = f"python -m benchmarks.judges endpoint URL {Path(names[2]).name} {names[3]}"
        write("judges", called, endpoint(*names[1:4]))
        return
    for name in names or list(PARTS):
        write("judges", f"python -m benchmarks.judges {name}", PARTS[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
