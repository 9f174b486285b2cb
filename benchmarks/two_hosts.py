"""The same recipe on two hosts that share a network and a store, once: `python -m benchmarks.two_hosts`.

The hosts are two network namespaces of this machine with a cable between them (`ip netns`, so it needs root on Linux),
each with an address and a network stack of its own; torchrun starts a process on each. What is measured: that losses
are those of one process on one host, and how long it takes until the run has named a host whose cable was pulled. Rows
in benchmarks/results/scale.json.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, write

HOSTS = ("metier-a", "metier-b")
ADDRESS = "10.77.0.{}"
PATIENCE = 20
RECIPE = """\
name: hosts
steps:
  texts: {kind: documents, sources: [{path: texts.jsonl}], heldout_fraction: 0.1}
  reader: {kind: pretrain, model: seedling, documents: texts, epochs: 2, batch_size: 4, accumulation: 2,
    block_size: 128, precision: fp32, log_every: 1}
  long: {kind: pretrain, model: seedling, documents: texts, epochs: 400, batch_size: 8, block_size: 128, log_every: 1}
"""


def main() -> None:
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise SystemExit("this needs root and the command `ip`: it makes network namespaces")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        texts = [
            {"id": str(i), "text": f"The crab number {i} digs in the sand of the bay. " * (1 + i % 7)}
            for i in range(60)
        ]
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
        connect()
        try:
            rows = measure(folder)
        finally:
            disconnect()
    write("scale", "python -m benchmarks.two_hosts", rows)


def connect() -> None:
    """Two namespaces with a cable between them."""
    disconnect()
    for host in HOSTS:
        ip("netns", "add", host)
    ip("link", "add", "metier0", "netns", HOSTS[0], "type", "veth", "peer", "name", "metier0", "netns", HOSTS[1])
    for number, host in enumerate(HOSTS, 1):
        ip("-n", host, "addr", "add", f"{ADDRESS.format(number)}/24", "dev", "metier0")
        for device in ("lo", "metier0"):
            ip("-n", host, "link", "set", device, "up")


def disconnect() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], check=False, stderr=subprocess.DEVNULL)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def start(folder: Path, step: str, store: str) -> list[subprocess.Popen[str]]:
    """torchrun on both hosts."""
    running = []
    for number, host in enumerate(HOSTS):
        env = os.environ | {"GLOO_SOCKET_IFNAME": "metier0", "OMP_NUM_THREADS": "1", "METIER_PATIENCE": str(PATIENCE)}
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", "1", "--node-rank", str(number), "--master-addr", ADDRESS.format(1)]
        command += ["--master-port", "29400", "-m", "metier", "run", str(folder / "recipe.yaml"), "--only", step]
        command += ["--store", str(folder / store), "--out", str(folder / "runs"), "--json"]
        # no pipe: who waits for the one host must not hold up the other
        log = (folder / f"{store}-{step}-{number}.log").open("w", encoding="utf-8")
        running.append(subprocess.Popen(command, env=env, text=True, stdout=log, stderr=subprocess.STDOUT))
    return running


def measure(folder: Path) -> list[Row]:
    started = time.monotonic()
    hosts = start(folder, "reader", "two")
    if [one.wait(600) for one in hosts] != [0, 0]:
        raise SystemExit((folder / "two-reader-0.log").read_text(encoding="utf-8")[-3000:])
    seconds = time.monotonic() - started
    alone = [sys.executable, "-m", "metier", "run", str(folder / "recipe.yaml"), "--only", "reader", "--quiet"]
    alone += ["--store", str(folder / "one"), "--out", str(folder / "runs")]
    subprocess.run(alone, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = (losses(folder / store) for store in ("one", "two"))
    apart = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
    what = f"two hosts (network namespaces): losses of {len(one)} steps beside one process, largest difference"
    return [
        Row(what, apart, 1e-6, "of the loss", "lower", n=len(one)),
        Row("two hosts: from start to result, small run of the seedling", round(seconds, 1), 600, "s", "lower", n=1),
        pulled(folder),
    ]


def pulled(folder: Path) -> Row:
    """From the cable's pulling to the end of the run on the first host, which names the other."""
    hosts = start(folder, "long", "two")
    log = folder / "two-long-0.log"
    until = time.monotonic() + 300
    while log.read_text(encoding="utf-8").count('"event": "train"') < 2:
        if time.monotonic() > until:
            raise SystemExit(log.read_text(encoding="utf-8")[-3000:])
        time.sleep(0.2)
    ip("-n", HOSTS[1], "link", "set", "metier0", "down")
    started = time.monotonic()
    while "has disappeared" not in log.read_text(encoding="utf-8") and time.monotonic() < started + 300:
        time.sleep(0.2)
    seconds = time.monotonic() - started
    named = "process 1 on" in log.read_text(encoding="utf-8")
    for one in hosts:
        one.terminate()
    for one in hosts:
        one.wait(60)
    if not named:
        raise SystemExit("the host that disappeared was not named:\n" + log.read_text(encoding="utf-8")[-3000:])
    what = f"two hosts: a cable is pulled, seconds until the run ends and names the host (METIER_PATIENCE={PATIENCE})"
    return Row(what, round(seconds, 1), PATIENCE + 60, "s", "lower", n=1)


def losses(store: Path) -> list[float]:
    (path,) = store.glob("objects/model-*/files/train.jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [float(row.get("loss", row.get("dev_loss"))) for row in rows]


if __name__ == "__main__":
    main()
