"""The job files for Ray on clusters: their syntax, and a dry run with a cluster's commands faked."""

import os
import subprocess
from pathlib import Path

import yaml

from conftest import ROOT
from metier.scale.cluster import check_address

SLURM = ROOT / "docs/jobs/metier-ray.sbatch"
KUBERNETES = ROOT / "docs/jobs/metier-ray-kubernetes.yaml"


def fake(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> {folder}/calls\n{text}\n')
    path.chmod(0o755)


def dry_run(folder: Path, metier: str) -> tuple[int, list[str]]:
    fake(folder, "scontrol", 'case "$1" in show) echo node-a; echo node-b;; esac')
    fake(folder, "srun", f'while [[ "$1" != {folder}/* ]]; do shift; done; exec "$@"')
    fake(folder, "ray", 'case "$1" in status) echo " 1 node_a"; echo " 1 node_b";; esac')
    fake(folder, "metier", metier)
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "METIER": str(folder),
        "WAIT": "0",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_ID": "7",
    }
    done = subprocess.run(["bash", str(SLURM), "r.yaml", "/shared/store"], env=env, check=False, timeout=60)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_the_slurm_file_starts_ray_on_every_node_and_the_recipe_on_it(tmp_path: Path):
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    code, calls = dry_run(tmp_path, "exit 0")
    assert code == 0
    started = [call for call in calls if call.startswith("ray start")]
    assert any("--head --port 6379" in call for call in started)
    assert any("--address node-a:6379" in call for call in started)
    assert "metier run r.yaml --store /shared/store --on node-a:6379" in calls
    assert dry_run(tmp_path, "exit 3")[0] == 3


def test_before_the_time_is_up_the_run_is_stopped_and_queued_again(tmp_path: Path):
    stopping = f"trap 'echo stopped >> {tmp_path}/calls; exit 75' TERM"
    code, calls = dry_run(tmp_path, f"{stopping}; kill -USR1 $PPID; for i in $(seq 200); do sleep 0.1; done")
    assert code == 0
    assert calls.index("stopped") < calls.index("scontrol requeue 7")


def test_the_kubernetes_file_hangs_together():
    job = yaml.safe_load(KUBERNETES.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (one["template"]["spec"] for one in pods):
        assert {v["name"] for v in pod["volumes"]} >= {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["metier", "run"]
    check_address(words[words.index("--on") + 1])
