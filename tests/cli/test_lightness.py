"""What the everyday commands may not do: import torch or transformers. Checked in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.argv = ["metier", *sys.argv[1:]]
from metier.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "transformers", "peft", "numpy", "scipy", "matplotlib", "tokenizers"} & sys.modules.keys()
sys.stderr.write("heavy:" + ",".join(sorted(heavy)))
"""
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 265,
    "max_position_embeddings": 64,
}
RECIPE = """\
name: light
steps:
  articles: {kind: documents, sources: [{path: a.jsonl}]}
  read: {kind: pretrain, model: base, documents: articles}
  asked: {kind: perplexity, models: [base, read], documents: [articles]}
"""


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "recipe.yaml"], ["status", "recipe.yaml"], ["schema"]])
def test_no_heavy_import(tmp_path: Path, arguments: list[str]):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "base" / "model.safetensors").write_text("weights")
    (tmp_path / "a.jsonl").write_text('{"text": "The whale is large."}\n{"text": "The crab is small."}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.endswith("heavy:"), done.stderr
    assert done.stdout


def test_the_stages_import_nothing_heavy():
    code = "import sys, metier.stages; print({'torch', 'transformers', 'numpy', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_a_plan_imports_only_the_stages_that_its_recipe_names(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "The whale is large."}\n{"text": "The crab is small."}\n')
    (tmp_path / "recipe.yaml").write_text(
        "name: few\nsteps:\n  articles: {kind: documents, sources: [{path: a.jsonl}]}\n"
    )
    told = 'sys.stderr.write("rooms:" + ",".join(sorted(n for n in sys.modules if n.endswith(".stage"))))'
    command = [sys.executable, "-c", SCRIPT + told, "plan", "recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.endswith("rooms:metier.core.stage,metier.data.stage"), done.stderr
