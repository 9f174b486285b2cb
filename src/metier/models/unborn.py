"""A model of true size with random weights and a real tokenizer: it has the memory and the speed of the real one.

Weights are normal with deviation 0.02 (norms one, biases zero), in the config's own number format, a file for each
block. The numbers repeat every few million, which no product notices. Costs the model's size on disk, and a block's in
memory.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.models.sizes import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STD = 0.02
REPEATED = 1 << 22
"""Random numbers that are drawn; every weight is made of them."""


def write_unborn(config: Mapping[str, Any], tokenizer: Path, folder: Path) -> None:
    """Write the model into `folder`, which must not be there."""
    from transformers import AutoConfig

    aside = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rest = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    known = AutoConfig.for_model(config["model_type"], **rest)
    known.architectures = list(config["architectures"])
    write_weights(known, aside)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, aside / name)  # the original's mode may forbid writing
    aside.rename(folder)


def write_weights(config: "PretrainedConfig", folder: Path) -> None:
    """config.json and the weights alone, into a folder that is there: in bf16 where the config names a 16-bit type."""
    import torch
    from transformers import AutoModelForCausalLM

    from metier.models.load import quiet

    config.save_pretrained(folder)
    with torch.device("meta"), quiet():
        skeleton = AutoModelForCausalLM.from_config(config)
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    kept = [name for name in shapes if name not in set(skeleton.all_tied_weights_keys)]
    half = config.dtype in (torch.bfloat16, torch.float16, "bfloat16", "float16")
    _write_shards(folder, {name: shapes[name] for name in kept}, torch.bfloat16 if half else torch.float32)


def _write_shards(folder: Path, shapes: Mapping[str, Any], kind: Any) -> None:
    """A file for each block, and one for what stands in none."""
    import torch
    from safetensors.torch import save_file

    drawn = torch.randn(REPEATED, generator=torch.Generator().manual_seed(0)).mul_(STD).to(kind)
    shards: dict[str, list[str]] = {}
    for name in shapes:
        shards.setdefault(next((part for part in name.split(".") if part.isdecimal()), "rest"), []).append(name)
    placed: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards.values(), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _fresh(name, shapes[name], drawn) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _fresh(name: str, shape: Any, drawn: Any) -> Any:
    """One weight as it is at a model's birth."""
    import torch

    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=drawn.dtype)
    if len(shape) == 1:
        return torch.ones(shape, dtype=drawn.dtype)
    count = shape.numel()
    return drawn.repeat(-(-count // len(drawn)))[:count].view(shape).clone()
