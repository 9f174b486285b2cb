"""LLaMA-Factory's own `run_exp` on tokenised data. settings: any of its arguments.

With `neat_packing` the rows are packed here as its processor for raw text would: it does not pack tokenised data.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")

from datasets import Dataset, DatasetDict

from measure import IGNORED, Job, begin, end

CUTOFF = 1024


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An example a row."""
    return [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]


def packed(rows: list[dict[str, Any]], cutoff: int) -> list[dict[str, Any]]:
    """Rows filled by its own knapsack, with a mask that numbers the examples, as its neat packing makes them."""
    from llamafactory.data.processor.processor_utils import greedy_knapsack

    by_length: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_length.setdefault(len(row["input_ids"]), []).append(row)
    made = []
    for knapsack in greedy_knapsack([len(row["input_ids"]) for row in rows], cutoff):
        new: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "attention_mask": []}
        for number, length in enumerate(knapsack, 1):
            row = by_length[length].pop()
            new["input_ids"] += row["input_ids"]
            new["labels"] += row["labels"]
            new["position_ids"] += range(length)
            new["attention_mask"] += [number] * length
        filling = cutoff + 1 - len(new["input_ids"])
        for key, value in (("input_ids", 0), ("labels", IGNORED), ("position_ids", 0), ("attention_mask", 0)):
            new[key] += [value] * filling
        made.append(new)
    return made


def arguments(job: Job) -> dict[str, Any]:
    """What goes into its YAML file."""
    targets = job.lora["targets"]
    return {
        "model_name_or_path": job.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": job.lora["r"],
        "lora_alpha": job.lora["alpha"],
        "lora_dropout": 0.0,
        "lora_target": "all" if targets == "all-linear" else ",".join(targets),
        "template": "empty",
        "dataset": "tokenized",  # it asks for a name, and does not look it up where tokenized_path is
        "tokenized_path": str(Path(job.scratch) / "tokenized"),
        "output_dir": str(Path(job.scratch) / "out"),
        "bf16": True,
        "cutoff_len": CUTOFF,
        **job.trainer_arguments,
        **job.trainer_settings(batch=8),
    }


def main() -> None:
    job, clock = begin()
    given = arguments(job)
    rows = packed(job.rows(), given["cutoff_len"] - 1) if given.get("neat_packing") else plain(job.rows())
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(given["tokenized_path"])

    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class Losses(TrainerCallback):
        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            clock.losses += [logs["loss"]] if logs and "loss" in logs else []

    clock.watch_optimizers()
    clock.watch_trainer()
    run_exp(given, callbacks=[Losses()])
    own = {key: given[key] for key in job.settings} | {"bf16": given["bf16"]}
    end(clock, packages=("llamafactory", "transformers", "peft"), settings=own)


if __name__ == "__main__":
    main()
