"""TRL's SFTTrainer, whole weights or PEFT's LoRA, on labelled token ids. settings: any of SFTConfig's."""

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from measure import begin, end


def main() -> None:
    job, clock = begin()
    settings = job.trainer_settings(batch=8)  # TRL's own default
    config = SFTConfig(output_dir=job.scratch, **(job.trainer_arguments | settings))
    trainer = SFTTrainer(
        model=job.model,
        args=config,
        train_dataset=Dataset.from_list(job.rows()),
        peft_config=None if job.method == "full" else LoraConfig(**job.peft),
    )
    clock.train(trainer)
    weights = {
        str(p.dtype).removeprefix("torch.")
        for p in trainer.model.parameters()
        if job.method == "full" or not p.requires_grad
    }
    chosen = ("bf16", "gradient_checkpointing", "packing", "padding_free", "train_sampling_strategy", "max_length")
    about = {name: getattr(config, name) for name in chosen}
    end(clock, packages=("trl", "transformers", "peft"), settings=settings | about | {"weights": sorted(weights)})


if __name__ == "__main__":
    main()
