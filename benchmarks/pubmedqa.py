"""PubMedQA by a recipe, all 500 questions of its test: `python -m benchmarks.pubmedqa [MODEL...] [--items N]`.

seedling    the bundled model (5 M parameters): minutes
tinyllama   random weights in TinyLlama's shape, all 22 blocks, with its real tokenizer: 5 GB, an hour on one core, less
            than a minute on a GPU; --blocks N for fewer

Neither can know the answers, so what is counted is that the report says so: it has to state of the contender that it is
not clearly past the best trivial baseline. Rows go to benchmarks/results/evaluation.json.

--device     cpu, or cuda, which fails where there is none; left out: a GPU where there is one with room
--material   a folder with data/pubmedqa/ori_pqal.json and, for tinyllama, tokenizers/tinyllama; else ../shared. A run
             needs nothing else from outside this project, which need not be installed
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, write

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = "data/pubmedqa/ori_pqal.json"
TOKENIZER = "tokenizers/tinyllama"
METIER = [sys.executable, "-c", "from metier.cli import main; main()"]
WHAT = {"seedling": "the seedling", "tinyllama": "TinyLlama's shape, random weights"}
BLOCKS = 22
SAID = "is not clearly past the trivial baseline"
RECIPE = """\
name: pubmedqa
steps:
  choices: {{kind: choose, models: [{model}], task: pubmedqa, data: {data}, overflow: truncate{limit}}}
  scores: {{kind: score, answers: choices}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(WHAT))
    parser.add_argument("--items", type=int, help="instead of all 500; writes no results")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of the random model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--material", type=Path, default=SHARED, metavar="FOLDER")
    asked = parser.parse_args()
    where = _device(asked.device)
    material = asked.material.resolve()
    for name in asked.models:
        if name not in WHAT:
            parser.error(f"no such model: {name!r}; there are {', '.join(WHAT)}")
        for needed in (DATA, TOKENIZER)[: 2 if name == "tinyllama" else 1]:
            if not (material / needed).exists():
                parser.error(f"{material / needed} is not there: say with --material which folder holds {needed}")
    for name in asked.models:
        with tempfile.TemporaryDirectory(prefix="metier-pubmedqa-") as folder:
            row = measure(name, Path(folder), material, where, asked.items, asked.blocks)
        if asked.items is None:
            fewer = f" --blocks {asked.blocks}" if name == "tinyllama" and asked.blocks != BLOCKS else ""
            write("evaluation", f"python -m benchmarks.pubmedqa {name}{fewer}", [row])
        else:
            print(row)


def _device(asked: str) -> str:
    """Where models will be, in words. Whatever is started from here sees a GPU only where one is to be used."""
    if asked == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "on the CPU"
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device here")
    return f"on one {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "on the CPU"


def measure(name: str, folder: Path, material: Path, where: str, items: int | None, blocks: int) -> Row:
    """Run the recipe in a process of its own, and look up what its report says. where: the device, in words."""
    model = name
    if name == "tinyllama":
        model = "random"
        given = f"{str(folder / model)!r}, {str(material / TOKENIZER)!r}, {blocks}"
        code = f"from benchmarks.pubmedqa import make; make({given})"
        subprocess.run([sys.executable, "-c", code], check=True)
    limit = "" if items is None else f", limit: {items}"
    recipe = folder / "pubmedqa.yaml"
    recipe.write_text(RECIPE.format(model=model, data=material / DATA, limit=limit))
    subprocess.run([*METIER, "run", recipe, "--store", folder / "store", "--out", folder / "runs"], check=True)
    said = SAID in (folder / "runs/pubmedqa/report.md").read_text(encoding="utf-8")
    (file,) = (folder / "store/objects").glob("scores-*/files/scores.json")
    rows: Any = json.loads(file.read_text(encoding="utf-8"))["rows"]
    scores = {row["contender"]: row for row in rows if row["metric"] == "accuracy" and row["group"] == "all"}
    own, majority = scores[model], scores["majority"]
    (file,) = (folder / "store/objects").glob("choices-*/measured/contenders.json")
    speed = json.loads(file.read_text(encoding="utf-8"))[model]["items_per_second"]
    around = f"95 % [{_percent(own, 'low')}, {_percent(own, 'high')}]"
    what = WHAT[name] if name == "seedling" else f"{WHAT[name]}, {blocks} blocks"
    case = (
        f"PubMedQA by recipe, {what}, {where} ({speed:.3g} questions a second): {_percent(own)} %, {around}, "
        f"beside the majority's {_percent(majority)} %; "
        f"the report {'says' if said else 'does not say'} that it is not clearly past the trivial baselines"
    )
    return Row(case, float(said), 1.0, "statements", "higher", n=own["n"])


def _percent(row: Any, which: str = "mean") -> str:
    return f"{100 * row[which]:.1f}"


def make(folder: str, tokenizer: str, blocks: int) -> None:
    """Write the random model; in a process of its own, whose memory goes with it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from metier.models.load import read_tokenizer
    from metier.models.save import save_model

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    save_model(LlamaForCausalLM(config), read_tokenizer(Path(tokenizer)), Path(folder))


if __name__ == "__main__":
    main()
