"""What most notebooks do: transformers' Trainer, PEFT, float32, every row filled up to 512 tokens, loss on all of them.

Runs in TRL's environment. settings: any of TrainingArguments'.
"""

import torch
from datasets import Dataset
from measure import LEARNING_RATE, begin, end
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

ROW = 512


def padded(ids: list[int]) -> dict[str, list[int]]:
    """One row of ROW tokens; the labels are all ids, the filling included, as `labels = input_ids` makes them."""
    filling = [0] * (ROW - len(ids))
    return {"input_ids": ids + filling, "attention_mask": [1] * len(ids) + filling, "labels": ids + filling}


def main() -> None:
    job, clock = begin()
    settings = dict(job.settings)
    batch = settings.setdefault("per_device_train_batch_size", 4)
    settings.setdefault("gradient_accumulation_steps", job.examples_per_step // batch)
    lora = job.lora
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=0.0,
            target_modules=lora["targets"],
            task_type="CAUSAL_LM",
        ),
    )
    args = TrainingArguments(
        output_dir=job.scratch,
        max_steps=job.all_steps,
        learning_rate=LEARNING_RATE,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=job.seed,
        disable_tqdm=True,
        **settings,
    )
    rows = Dataset.from_list([padded(row["input_ids"]) for row in job.rows()])
    trainer = Trainer(model, args, train_dataset=rows, data_collator=default_data_collator)
    clock.watch_optimizers()
    clock.watch_trainer()
    trainer.train()
    clock.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    end(clock, packages=("transformers", "peft"), settings=settings | {"weights": ["float32"], "row": ROW})


if __name__ == "__main__":
    main()
