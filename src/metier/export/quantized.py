"""Exports in 8 bits (LLM.int8) and 4 bits (NF4, double quantisation), as transformers loads them with bitsandbytes.

The linear layers of the blocks are quantised; embeddings, norms and the output head stay. Always made from the merged
16- or 32-bit model: an adapter is never merged into quantised weights. Costs the model in its own type.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metier.core.errors import ModelError
from metier.models.load import Loaded, load_quantized, read_tokenizer, stored_dtype
from metier.models.quantized import bitsandbytes
from metier.models.save import save_model
from metier.models.shape import linear_layers, sides, skeleton

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Bits = Literal["int8", "nf4"]
BLOCK, ROWS = 64, 32
"""What bitsandbytes (0.50.2) packs together on a CPU that computes in bfloat16; other shapes fail at a product."""


def check_quantiser(config: "PretrainedConfig", kinds: Collection[Bits], where: str) -> None:
    """Raise MissingExtra without bitsandbytes, and ModelError for layers that its 4-bit kernels cannot compute."""
    if not kinds:
        return
    bitsandbytes()
    for name, layer in linear_layers(skeleton(config)).items() if "nf4" in kinds else ():
        ins, outs = sides(layer)
        if ins % BLOCK or outs % ROWS:
            raise ModelError(
                f"nf4 needs layers of {BLOCK} x n inputs and {ROWS} x n outputs: {name} cannot be computed on a CPU",
                where=where,
                value=[outs, ins],
                cure="use int8 for this model",
            )


def write_quantized(folder: Path, out: Path, kind: Bits) -> Loaded:
    """Quantise the whole model in `folder` and write it to `out`; returns it as it is loaded from there again."""
    tokenizer = read_tokenizer(folder)
    model = load_quantized(folder, kind, stored_dtype(folder))
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    save_model(model, tokenizer, out, stop=ends if isinstance(ends, list) else ())
    del model
    return Loaded(load_quantized(out, None), read_tokenizer(out), out)
