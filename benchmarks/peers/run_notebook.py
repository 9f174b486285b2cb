"""What most notebooks do: transformers' Trainer, PEFT, float32, every row filled up to 512 tokens, loss on all of them.

Runs in TRL's environment. settings: any of TrainingArguments'.
"""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

from measure import begin, end

ROW = 512


def padded(ids: list[int]) -> dict[str, list[int]]:
    """One row of ROW tokens; the labels are all ids, the filling included, as `labels = input_ids` makes them."""
    filling = [0] * (ROW - len(ids))
    return {"input_ids": ids + filling, "attention_mask": [1] * len(ids) + filling, "labels": ids + filling}


def main() -> None:
    job, clock = begin()
    settings = job.trainer_settings(batch=4)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**job.peft))
    args = TrainingArguments(output_dir=job.scratch, **(job.trainer_arguments | settings))
    rows = Dataset.from_list([padded(row["input_ids"]) for row in job.rows()])
    trainer = Trainer(model, args, train_dataset=rows, data_collator=default_data_collator)
    clock.train(trainer)
    end(clock, packages=("transformers", "peft"), settings=settings | {"weights": ["float32"], "row": ROW})


if __name__ == "__main__":
    main()
