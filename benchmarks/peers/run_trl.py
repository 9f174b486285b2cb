"""TRL's SFTTrainer with PEFT's LoRA on labelled token ids. settings: any of SFTConfig's."""

from datasets import Dataset
from measure import LEARNING_RATE, begin, end
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def main() -> None:
    job, clock = begin()
    settings = dict(job.settings)
    batch = settings.setdefault("per_device_train_batch_size", 8)  # TRL's own default
    settings.setdefault("gradient_accumulation_steps", job.examples_per_step // batch)
    config = SFTConfig(
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
    lora = job.lora
    trainer = SFTTrainer(
        model=job.model,
        args=config,
        train_dataset=Dataset.from_list(job.rows()),
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=0.0,
            target_modules=lora["targets"],
            task_type="CAUSAL_LM",
        ),
    )
    clock.watch_optimizers()
    clock.watch_trainer()
    trainer.train()
    clock.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    weights = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if not p.requires_grad}
    chosen = ("bf16", "gradient_checkpointing", "packing", "padding_free", "train_sampling_strategy", "max_length")
    about = {name: getattr(config, name) for name in chosen}
    end(clock, packages=("trl", "transformers", "peft"), settings=settings | about | {"weights": sorted(weights)})


if __name__ == "__main__":
    main()
