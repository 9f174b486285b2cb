"""What trackers write, read back with each tracker's own or a plain reader; and that nothing leaves the machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fakes
from metier.core.errors import InputError, Interrupted, MissingExtra
from metier.core.store import Store
from metier.pipeline import run
from metier.recipe import load_recipe
from metier.text.artifacts import write_jsonl
from metier.track import open_trackers
from metier.track.tracker import Tracker, points
from metier.track.wandb import BLOCK, records, rows

KEY = "model-0123456789ab"
CONFIG = {"kind": "tune", "learning_rate": 2e-5, "method": {"lora": {"r": 8}}}
NAMES = ["tensorboard", "wandb"]


def event(name: str, **fields: Any) -> dict[str, Any]:
    return {"time": 1_700_000_000.0, "step": "taught", "event": name, **fields}


def train(at: int, **fields: Any) -> dict[str, Any]:
    values = {"loss": 4 / at, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 64 * at, "tokens_per_second": 900.0}
    return event("train", at=at, total=4, epoch=0, **values, utilisation=0.5, rss_bytes=10**9, **fields)


def dev(at: int) -> dict[str, Any]:
    return event("dev", at=at, total=4, dev_loss=5 / (at + 1))


STARTED = event("started", kind="tune", key=KEY, why="new")
FINISHED = event("finished", metrics={"loss": 1.0, "steps": 4}, seconds=2.5, peak_rss_bytes=2 * 10**9)


def tracker(name: str, folder: Path) -> Tracker:
    (found,) = open_trackers([name], folder=folder, recipe="demo", configs={"taught": CONFIG})
    return found


def hear(name: str, folder: Path, *events: dict[str, Any]) -> None:
    with tracker(name, folder) as listener:
        for each in events:
            listener.hear(each)


@pytest.fixture(autouse=True)
def names_looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names that this process looked up, successfully or not; the environment is put back afterwards."""
    monkeypatch.setenv("WANDB_MODE", "online")  # what a user may have set: a tracker of Metier's does not listen to it
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    looked_up: list[str] = []
    guarded = socket.getaddrinfo

    def noting(host: Any, *rest: Any, **named: Any) -> Any:
        looked_up.append(str(host))
        return guarded(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", noting)
    yield looked_up
    assert [host for host in looked_up if host not in ("None", "localhost", "127.0.0.1")] == []


Curves = dict[str, list[tuple[int, float]]]


def tensorboard_curves(folder: Path, step: str = "taught") -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "tensorboard" / step).iterdir()
    read = EventAccumulator(str(place)).Reload()
    return {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def wandb_runs(folder: Path) -> list[list[Any]]:
    """The records of each part of a W&B run."""
    return [list(records(path)) for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))]


def wandb_curves(folder: Path) -> Curves:
    curves: Curves = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for row in rows(path):
            for name in row:
                if not name.startswith("_"):
                    curves.setdefault(name, []).append((row["_step"], row[name]))
    return curves


def curves(name: str, folder: Path) -> Curves:
    return tensorboard_curves(folder) if name == "tensorboard" else wandb_curves(folder)


def steps(name: str, folder: Path) -> dict[str, list[int]]:
    return {curve: [at for at, _ in found] for curve, found in curves(name, folder).items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_measure_is_plotted_by_training_step(tmp_path: Path, name: str):
    hear(name, tmp_path, STARTED, dev(0), train(1), train(2), dev(2), train(4), dev(4), FINISHED)
    found = curves(name, tmp_path)
    assert found["loss"] == [(1, 4.0), (2, 2.0), (4, 1.0)]
    assert [at for at, _ in found["dev_loss"]] == [0, 2, 4]
    assert found["rss_bytes"][-1] == (4, 1e9)
    results = {"result/loss": 1.0, "result/steps": 4.0, "result/seconds": 2.5, "result/peak_rss_bytes": 2e9}
    assert {curve: value for curve, [*_, (at, value)] in found.items() if curve in results and at == 4} == results
    trained = {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "utilisation", "rss_bytes"}
    assert set(found) == trained | {"dev_loss"} | set(results)


def test_what_is_not_known_is_not_plotted():
    assert "utilisation" not in points({**train(1), "utilisation": None})
    assert points(event("note", text="so")) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_goes_on_repeats_no_point(tmp_path: Path, name: str):
    hear(name, tmp_path, STARTED, dev(0), train(1), train(2), event("failed", error="stopped"))
    hear(name, tmp_path, STARTED, train(2), dev(2), train(4), dev(4), FINISHED)
    found = steps(name, tmp_path)
    assert found["loss"] == [1, 2, 4]
    assert found["dev_loss"] == [0, 2, 4]
    hear(name, tmp_path, STARTED, FINISHED)  # made once more from the same key
    assert steps(name, tmp_path) == found


def test_a_step_without_training_has_its_results_at_0(tmp_path: Path):
    hear("tensorboard", tmp_path, STARTED, {**FINISHED, "metrics": {"f1": 0.5}})
    assert steps("tensorboard", tmp_path) == {c: [0] for c in ("result/f1", "result/seconds", "result/peak_rss_bytes")}


def test_tensorboard_keeps_a_changed_setting_apart(tmp_path: Path):
    hear("tensorboard", tmp_path, STARTED, train(1), FINISHED)
    hear("tensorboard", tmp_path, {**STARTED, "key": "model-ba9876543210"}, train(1), FINISHED)
    assert {p.name for p in (tmp_path / "tensorboard" / "taught").iterdir()} == {KEY, "model-ba9876543210"}


KILLED = """
import os, signal, sys, time
from pathlib import Path
from metier.track import open_trackers
started, first, second, dev = eval(sys.argv[2])
(t,) = open_trackers([sys.argv[3]], folder=Path(sys.argv[1]), recipe="demo", configs={"taught": {}})
for event in (started, first, second, dev):
    t.hear(event)
time.sleep(3)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_process_that_was_killed_leaves_neither_a_hole_nor_a_repeat(tmp_path: Path, name: str):
    events = repr((STARTED, train(1), train(2), dev(2)))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), events, name], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    hear(name, tmp_path, STARTED, train(1), train(2), dev(2), train(4), dev(4), FINISHED)
    found = steps(name, tmp_path)
    assert found["loss"] == [1, 2, 4]
    assert found["dev_loss"] == [2, 4]


def test_tensorboard_goes_on_after_a_file_that_was_cut_off(tmp_path: Path):
    hear("tensorboard", tmp_path, STARTED, train(1), train(2), train(4))
    (path,) = (tmp_path / "tensorboard" / "taught" / KEY).iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    hear("tensorboard", tmp_path, STARTED, train(2), train(4))
    assert steps("tensorboard", tmp_path)["loss"] == [1, 2, 4]


def test_tensorboard_needs_no_torch(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from metier.track import open_trackers\n"
        "(t,) = open_trackers(['tensorboard'], folder=Path(sys.argv[1]), recipe='demo', configs={})\n"
        "t.hear({'event': 'started', 'step': 's', 'key': 'k', 'time': 0.0}); t.end(failed=False)\n"
        "assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_wandb_has_the_config_and_nothing_of_the_machine(tmp_path: Path):
    hear("wandb", tmp_path, STARTED, train(1), FINISHED)
    (found,) = wandb_runs(tmp_path)
    (head,) = [record.run for record in found if record.HasField("run")][:1]
    assert (head.project, head.display_name, head.run_id, head.job_type) == ("demo", "taught", KEY, "tune")
    config = {item.key: json.loads(item.value_json) for item in head.config.update if item.key != "_wandb"}
    assert config == CONFIG
    assert not head.host
    assert not head.HasField("git")
    kinds = {record.WhichOneof("record_type") for record in found}
    assert not kinds & {"stats", "output", "output_raw", "files", "environment"}
    held = b"".join(path.read_bytes() for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert socket.gethostname().encode() not in held
    assert not list((tmp_path / "wandb").rglob("requirements.txt"))
    assert not list((tmp_path / "wandb").rglob("wandb-metadata.json"))


def test_wandb_files_longer_than_a_block_are_read_whole_and_cut_files_up_to_there(tmp_path: Path):
    hear("wandb", tmp_path, STARTED, *(train(at) for at in range(1, 200)))
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert path.stat().st_size > 2 * BLOCK
    assert [row["_step"] for row in rows(path)] == list(range(1, 200))
    cut = tmp_path / "cut.wandb"
    cut.write_bytes(path.read_bytes()[: BLOCK + 100])
    read = [row["_step"] for row in rows(cut)]
    assert 10 < len(read) < 199
    assert read == list(range(1, len(read) + 1))


def test_wandb_says_nothing_and_marks_a_failed_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    hear("wandb", tmp_path, STARTED, train(1), event("failed", error="no"))
    assert capfd.readouterr() == ("", "")
    (found,) = wandb_runs(tmp_path)
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to watch a helper process that is not Python")
def test_no_process_of_wandb_tries_to_reach_another_machine(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from metier.track import open_trackers\n"
        "(t,) = open_trackers(['wandb'], folder=Path(sys.argv[1]), recipe='demo', configs={'taught': {}})\n"
        "with t:\n"
        f"    for event in [{STARTED!r}, {train(1)!r}, {FINISHED!r}]: t.hear(event)"
    )
    log = tmp_path / "calls"
    watch = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [*watch, sys.executable, "-c", code, str(tmp_path / "run")]
    subprocess.run(command, check=True, timeout=120, env=environment)
    calls = log.read_text().splitlines()
    assert any("AF_UNIX" in line for line in calls)  # the helper was watched
    assert [line for line in calls if "AF_INET" in line and "127.0.0.1" not in line and '"::1"' not in line] == []
    assert steps("wandb", tmp_path / "run")["loss"] == [1]


def test_an_unknown_tracker_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such tracker") as caught:
        open_trackers(["tensorbord"], folder=tmp_path, recipe="demo", configs={})
    assert caught.value.cure == "did you mean 'tensorboard'?"
    assert caught.value.where == "--track"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra) as caught:
        tracker(name, tmp_path)
    assert caught.value.cure == "pip install 'metier[track]'"
    assert not list(tmp_path.iterdir())


def test_a_tracker_is_made_once(tmp_path: Path):
    assert len(open_trackers(["tensorboard"] * 2, folder=tmp_path, recipe="demo", configs={})) == 1
    assert not list(tmp_path.iterdir())


RECIPE = """\
name: demo
steps:
  articles: {kind: documents, sources: [{path: articles.jsonl}], heldout_fraction: 0.2}
  taught: {kind: pretrain, model: base, documents: articles, block_size: 32, batch_size: 1, max_steps: 5,
    dev_every: 5, log_every: 1}
"""


def test_a_real_training_that_is_stopped_and_goes_on(tmp_path: Path):
    fakes.save_tiny(tmp_path / "base")
    words = ["kelp sways", "the crab digs", "a ray glides", "an eel hides", "the squid darts", "coral grows"]
    rows = [{"text": f"{word} in the {place} sea"} for word in words for place in ("warm", "cold", "deep")]
    write_jsonl(tmp_path / "articles.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    configs = {name: stage.model_dump(mode="json") for name, stage in recipe.steps.items()}
    told: list[dict[str, Any]] = []

    def train_until(last: int) -> None:
        with ExitStack() as stack:
            opened = open_trackers(NAMES, folder=tmp_path / "out", recipe=recipe.name, configs=configs)
            listeners = [told.append, *(stack.enter_context(one).hear for one in opened)]
            store = Store(tmp_path / "store")
            run(recipe, store, listeners=listeners, stop=lambda: any(e.get("at") == last for e in told))

    with pytest.raises(Interrupted):
        train_until(3)
    train_until(6)
    trained = [e for e in told if e["event"] == "train"]
    assert [e["at"] for e in trained] == [1, 2, 3, 4, 5]
    for name in NAMES:
        found = curves(name, tmp_path / "out")
        for curve in ("loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "utilisation", "rss_bytes"):
            expected = [(e["at"], pytest.approx(e[curve], rel=1e-6)) for e in trained]
            assert found[curve] == expected, curve
        assert [at for at, _ in found["dev_loss"]] == [0, 5]
        assert found["result/steps"] == [(5, 5.0)]
