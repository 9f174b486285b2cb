"""Who takes part in `benchmarks.training`, and each with which settings.

Every peer runs at its defaults (with 6 layers only) and at the fastest configurations that were found by trying
(`tries.md`).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build/peers"


@dataclass(frozen=True)
class Contender:
    """name: in the table. run: the script, `run_<run>.py`. environment: whose virtual environment (None: this one).
    examples: what one of its optimizer steps reads, where that is fewer than the case's: the slow ones would take
    most of the time, and a step of more examples is for them only more micro-batches of the same size. method: where
    it is another than the case's.
    """

    name: str
    run: str
    environment: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    examples: int | None = None
    method: Any = None

    @property
    def python(self) -> str:
        """Its interpreter."""
        return sys.executable if self.environment is None else str(ENVIRONMENTS / self.environment / "bin/python")

    @property
    def is_peer(self) -> bool:
        """Whether it is another tool (the notebook is a habit, not a tool)."""
        return self.run not in ("metier", "notebook")


MICRO = {"micro_tokens": 2048}
METIER = Contender("Metier", "metier", None, MICRO)
METIER_INT8 = Contender("Metier, int8 base", "metier", None, {"quantize": "int8", **MICRO})
METIER_UNSHARED = Contender("Metier, prompts not shared", "metier", None, {"share_prompts": False, **MICRO})

LAST_4, LAST_2 = {"freeze": {"blocks": 4}}, {"freeze": {"blocks": 2}}
CACHED = {"prefix_cache": True, **MICRO}
METIER_FULL = Contender("Metier, full", "metier", None, MICRO, method="full")
METIER_LAST_4 = Contender("Metier, last 4 blocks and head, no cache", "metier", None, MICRO, method=LAST_4)
METIER_LAST_4_CACHED = Contender("Metier, last 4 blocks and head, cached", "metier", None, CACHED, method=LAST_4)
METIER_LAST_2 = Contender("Metier, last 2 blocks and head, no cache", "metier", None, MICRO, method=LAST_2)
METIER_LAST_2_CACHED = Contender("Metier, last 2 blocks and head, cached", "metier", None, CACHED, method=LAST_2)
LAST_4_LORA = {
    "lora": {
        "r": 16,
        "alpha": 32,
        "targets": [
            f"layers.{n}.{m}"
            for n in range(18, 22)
            for m in (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            )
        ],
    }
}
METIER_LORA_4 = Contender("Metier, LoRA on the last 4 blocks, no cache", "metier", None, MICRO, method=LAST_4_LORA)
METIER_LORA_4_CACHED = Contender(
    "Metier, LoRA on the last 4 blocks, cached", "metier", None, CACHED, method=LAST_4_LORA
)

SMALL = {"micro_tokens": 256}
METIER_SMALL = Contender("Metier, LoRA, bf16 base", "metier", None, SMALL)
METIER_SMALL_INT8 = Contender("Metier, LoRA, int8 base", "metier", None, {"quantize": "int8", **SMALL})
METIER_8BIT = Contender("Metier, LoRA, 8-bit base (bitsandbytes)", "metier", None, {"quantize": "8bit", **SMALL})
METIER_4BIT = Contender("Metier, LoRA, 4-bit base (bitsandbytes)", "metier", None, {"quantize": "4bit", **SMALL})

_BF16_WEIGHTS = {"model_init_kwargs": {"dtype": "bfloat16"}}
TRL_DEFAULTS = Contender("TRL, defaults", "trl", "trl")
TRL = Contender(
    "TRL, by length",
    "trl",
    "trl",
    {
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "group_by_length",
        **_BF16_WEIGHTS,
    },
)
TRL_PACKED = Contender(
    "TRL, packed",
    "trl",
    "trl",
    {
        "gradient_checkpointing": False,
        "packing": True,
        "max_length": 1024,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        **_BF16_WEIGHTS,
    },
)
"""Four rows of 1024 hold about the sixteen examples of a step. Isolated: position ids restart and no mask is given."""

_FACTORY = {"disable_gradient_checkpointing": True}
LLAMAFACTORY_DEFAULTS = Contender("LLaMA-Factory, defaults", "llamafactory", "llamafactory")
LLAMAFACTORY = Contender(
    "LLaMA-Factory", "llamafactory", "llamafactory", {**_FACTORY, "per_device_train_batch_size": 1}
)
LLAMAFACTORY_PACKED = Contender(
    "LLaMA-Factory, neat packing",
    "llamafactory",
    "llamafactory",
    {**_FACTORY, "neat_packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
)

LITGPT_DEFAULTS = Contender("LitGPT, defaults", "litgpt", "litgpt", examples=8)
LITGPT = Contender("LitGPT", "litgpt", "litgpt", {"precision": "bf16-true", "micro_batch_size": 4}, examples=4)

NOTEBOOK = Contender("notebook habit", "notebook", "trl", {"per_device_train_batch_size": 4}, examples=4)
