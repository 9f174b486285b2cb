"""Who takes part in `benchmarks.training`, and each with which settings.

Every peer runs at its defaults (with 6 layers only) and at the fastest configurations that were found by trying
(`tries.md`, on a busy machine: provisional).
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


METIER = Contender("Metier", "metier", None)
METIER_INT8 = Contender("Metier, int8 base", "metier", None, {"quantize": "int8"})

_BF16_WEIGHTS = {"model_init_kwargs": {"dtype": "bfloat16"}}
TRL_DEFAULTS = Contender("TRL, defaults", "trl", "trl")
TRL = Contender(
    "TRL",
    "trl",
    "trl",
    {"gradient_checkpointing": False, "per_device_train_batch_size": 4, **_BF16_WEIGHTS},
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
    "LLaMA-Factory", "llamafactory", "llamafactory", {**_FACTORY, "per_device_train_batch_size": 4}
)
LLAMAFACTORY_PACKED = Contender(
    "LLaMA-Factory, neat packing",
    "llamafactory",
    "llamafactory",
    {**_FACTORY, "neat_packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
)

LITGPT_DEFAULTS = Contender("LitGPT, defaults", "litgpt", "litgpt", examples=8)
LITGPT = Contender("LitGPT", "litgpt", "litgpt", {"precision": "bf16-true", "micro_batch_size": 4}, examples=8)

NOTEBOOK = Contender("notebook habit", "notebook", "trl", {"per_device_train_batch_size": 4}, examples=4)
