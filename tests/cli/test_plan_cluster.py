"""`metier plan --cluster`: a row for each step that trains, what it takes, and what does not fit together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tools.pages import LLAMA, SHAPES

from conftest import ROOT
from metier.cli.cluster import show_cluster
from metier.trial.reshape import Trial

RECIPE = """\
name: big
steps:
  texts: {kind: documents, sources: [{path: t.jsonl}]}
  read: {kind: pretrain, model: m8, documents: texts, batch_size: 64, block_size: 1024}
  odd: {kind: pretrain, model: m8, documents: texts, batch_size: 7, method: {lora: {r: 16}}}
  huge: {kind: pretrain, model: m70, documents: texts, method: {lora: {r: 16}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, sizes in (("m8", SHAPES["8B"]), ("m70", SHAPES["70B"])):
        (tmp_path / name).mkdir()
        config = {**LLAMA, **sizes, "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"whale {i} swims " * 40}) + "\n" for i in range(99)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_each_step_that_trains_has_a_layout_and_what_it_takes(recipe: Path, capsys: pytest.CaptureFixture[str]):
    show_cluster(recipe, [], Path("store"), None, Trial(), "8xH100")
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "8 devices of 80.0 GB, 989 TFLOP/s in bf16" in out
    assert "By arithmetic" in out
    assert "sharded over 8" in lines["read"]
    assert "read: this layout takes --set read.shard=true" in out
    assert "7 blocks (batch_size x accumulation), which 8 processes cannot share evenly" in out
    assert "does not fit: no number of devices is enough; or set quantize: 4bit" in lines["huge"]
    assert "texts" not in lines


def test_it_is_as_light_as_the_plan_itself(recipe: Path):
    code = (
        "import sys; from metier.cli import main; sys.argv = ['metier', 'plan', 'recipe.yaml', '--cluster', '8xH100']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
