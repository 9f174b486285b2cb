"""A model in fewer bits than it is stored in, to measure what rounding does to it.

Of an export that wrote the bits, the very files that it wrote are read, as transformers reads them. Of any other model
the weights inside the blocks are held by bitsandbytes (8 bits: LLM.int8's weights; 4: NF4 with double quantisation) and
made whole again for each product, which runs in float32: what is measured then is the rounding of the weights alone. An
adapter is merged first, as an exported model is. Refuses what `load` refuses, and a missing bitsandbytes.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import torch

from metier.models.adapter import merge
from metier.models.builtin import CONFIG, base_link, follow, is_adapter
from metier.models.load import Loaded, load, load_quantized, read_tokenizer
from metier.models.quantized import Kind, bitsandbytes, quantized
from metier.models.stream import convert_

EXPORTED: dict[Kind, Literal["int8", "nf4"]] = {"8bit": "int8", "4bit": "nf4"}
"""The folder of an export that holds them."""


def load_held(folder: Path, bits: Kind | None) -> Loaded:
    """The model in `folder`; with `bits` what an export wrote so, else merged, and its linear layers held so."""
    if bits is None:
        return load(folder)
    bitsandbytes()
    exported = folder / EXPORTED[bits]
    if (exported / CONFIG).is_file():
        return Loaded(load_quantized(exported, None), read_tokenizer(exported), exported)
    loaded = load(folder)
    model = merge(loaded) if loaded.is_adapter else loaded.model
    model.requires_grad_(False)
    convert_(model, partial(quantized, kind=bits, compute=torch.float32))
    while is_adapter(folder):  # what is held is no adapter any more
        folder = follow(base_link(folder), folder)
    return Loaded(model.eval(), loaded.tokenizer, folder)
