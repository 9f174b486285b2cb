"""The job files for clusters: their syntax, what they name, and a dry run with a cluster's commands faked."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from conftest import ROOT
from metier.cli import app

JOBS = ROOT / "docs/jobs"
SLURM = JOBS / "metier.sbatch"
OPTIONS = {o for p in get_command(app).commands["run"].params for o in p.opts}  # type: ignore[attr-defined]


def test_the_slurm_file_is_a_shell_script():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    directives = [line.split()[1] for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert all(one.startswith("--") for one in directives)
    assert "--requeue" in directives
    assert "--signal=B:USR1@300" in directives


def fake(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> {folder}/calls\n{text}\n')
    path.chmod(0o755)


def dry_run(folder: Path, torchrun: str) -> tuple[int, list[str]]:
    fake(folder, "scontrol", 'case "$1" in show) echo node-a; echo node-b;; esac')
    fake(folder, "srun", 'shift; exec "$@"')
    fake(folder, "scancel", f"kill -TERM $(cat {folder}/pid)")
    fake(folder, "torchrun", f"echo $$ > {folder}/pid\n{torchrun}")
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "METIER": str(folder),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_ID": "7",
    }
    done = subprocess.run(["bash", str(SLURM), "r.yaml", "/shared/store"], env=env, check=False, timeout=60)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_the_slurm_file_starts_torchrun_on_every_node(tmp_path: Path):
    code, calls = dry_run(tmp_path, "exit 0")
    assert code == 0
    (started,) = [call for call in calls if call.startswith("torchrun")]
    assert "--nnodes 2 --nproc-per-node 8" in started
    assert "--rdzv-endpoint node-a:29400 -m metier run r.yaml --store /shared/store" in started


def test_a_failure_is_the_jobs(tmp_path: Path):
    assert dry_run(tmp_path, "exit 3")[0] == 3


def test_before_the_time_is_up_the_run_is_stopped_and_queued_again(tmp_path: Path):
    stopping = f"trap 'echo stopped >> {tmp_path}/calls; exit 75' TERM"
    wait = f"{stopping}; kill -USR1 $PPID; for i in $(seq 200); do sleep 0.1; done"
    code, calls = dry_run(tmp_path, wait)
    assert code == 0
    assert calls.index("stopped") < calls.index("scontrol requeue 7")


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((JOBS / "metier-kubernetes.yaml").read_text())
    return {one["kind"]: one for one in found}


def test_the_kubernetes_file_hangs_together(manifests: dict[str, dict[str, Any]]):
    service, job = manifests["Service"], manifests["Job"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = container["args"]
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert f"--nnodes={job['spec']['completions']}" in args
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in args
    assert f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}" in args
    assert f"--master-port={service['spec']['ports'][0]['port']}" in args
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert all(set(one) <= {"name", "value", "valueFrom"} for one in container["env"])


def test_both_files_use_options_that_metier_run_has(manifests: dict[str, dict[str, Any]]):
    args = manifests["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    after = args[args.index("metier") + 2 :]
    assert {one.split("=")[0] for one in after if one.startswith("--")} <= OPTIONS
    assert "--store" in OPTIONS
