"""LitGPT's `finetune_lora` with a data module that gives it token ids. settings: micro_batch_size, precision.

Its LoRA goes on query, key, value, projection and MLP, its head is left alone. LitGPT reads a checkpoint of its own
form, which is made from the model once, beside it.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import litgpt.finetune.lora as finetune
import torch
import yaml
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from measure import LEARNING_RATE, Clock, Job, begin, end

CONVERT = """
import sys
from pathlib import Path
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
convert_hf_checkpoint(Path(sys.argv[1]), model_name="tiny-llama-1.1b")
"""


class Done(Exception):
    """Enough was timed: what would come now is saving and merging."""


class Ids(DataModule):
    """The job's rows as they are."""

    def __init__(self, job: Job, clock: Clock):
        super().__init__()
        counts = {"raw": torch.tensor(0), "raw_plus_prompt_template": torch.tensor(0)}
        self.rows = [{k: torch.tensor(v) for k, v in row.items()} | {"token_counts": counts} for row in job.rows()]
        self.clock = clock

    def connect(self, *, batch_size: int, **_: Any) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        collate = get_sft_collate_fn()

        def counted(rows: list[Any]) -> Any:  # the loader fetches a batch only when it is asked for
            self.clock.saw(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        return DataLoader(self.rows, batch_size=self.batch_size, shuffle=True, collate_fn=counted)

    def val_dataloader(self) -> DataLoader:
        """What its check before training reads."""
        return DataLoader(self.rows[:2], batch_size=1, collate_fn=get_sft_collate_fn())


def checkpoint(model: Path) -> Path:
    """The model in LitGPT's form, made by LitGPT in another process (it takes memory that is not training's)."""
    folder = model.with_name(f"{model.name}-litgpt")
    if not folder.exists():
        aside = folder.with_name(f"{folder.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(model, aside)
        subprocess.run([sys.executable, "-c", CONVERT, str(aside)], check=True, stdout=sys.stderr)
        config = aside / "model_config.yaml"
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        values["n_layer"] = json.loads((model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        for path in aside.glob("*.safetensors"):
            path.unlink()
        aside.rename(folder)
    return folder


def main() -> None:
    job, clock = begin()
    folder = checkpoint(Path(job.model))
    settings = {"micro_batch_size": 1, "precision": None} | job.settings
    losses: list[float] = []
    entropy = finetune.chunked_cross_entropy

    def kept(*given: Any, **more: Any) -> Any:
        loss = entropy(*given, **more)
        if loss.requires_grad:
            losses.append(loss.detach())
        return loss

    def tick(*_: Any) -> None:
        clock.tick()
        if clock.done == job.all_steps:
            raise Done

    finetune.chunked_cross_entropy = kept
    register_optimizer_step_post_hook(tick)
    micro = settings["micro_batch_size"]
    with contextlib.suppress(Done):
        finetune.setup(
            folder,
            out_dir=Path(job.scratch),
            precision=settings["precision"],
            lora_r=job.lora["r"],
            lora_alpha=job.lora["alpha"],
            lora_dropout=0.0,
            lora_query=True,
            lora_key=True,
            lora_value=True,
            lora_projection=True,
            lora_mlp=True,
            data=Ids(job, clock),
            train=TrainArgs(
                global_batch_size=job.examples_per_step,
                micro_batch_size=micro,
                lr_warmup_steps=1,
                epochs=2,
                max_steps=job.all_steps,
            ),
            eval=EvalArgs(interval=1000, max_new_tokens=1),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": LEARNING_RATE}},
            seed=job.seed,
        )
    each = job.examples_per_step // micro
    values = [float(loss) for loss in losses]
    clock.losses = [sum(values[i : i + each]) / each for i in range(0, len(values), each)]
    end(clock, packages=("litgpt", "lightning"), settings=settings)


if __name__ == "__main__":
    main()
