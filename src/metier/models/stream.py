"""Load a model layer by layer, each linear layer of a block turned into another kind as soon as its weights are there.

So a quantised base never stands in memory whole before it is quantised: the peak is the finished model and one layer.
Refuses what `load` refuses. Costs a read of the files and the conversions.
"""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from metier.models.builtin import check_folder, weight_files
from metier.models.load import check_loadable, check_readable, check_report, quiet, read_config
from metier.models.shape import linear_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Convert = Callable[[nn.Module], nn.Module]
"""Makes another layer of a linear one (nn.Linear or GPT-2's Conv1D), which is dropped then."""
CPU = torch.device("cpu")


def convert_(model: "PreTrainedModel", convert: Convert) -> None:
    """Convert every linear layer of a model but its output head, in place."""
    for name in list(linear_layers(model)):
        model.set_submodule(name, convert(model.get_submodule(name)))
        give_back()


def load_converted(
    folder: Path, convert: Convert, *, dtype: torch.dtype, device: torch.device = CPU
) -> "PreTrainedModel":
    """The plain model in `folder`, in evaluation mode, its blocks' linear layers converted, all else in `dtype`.

    Raises ModelError like `load`.
    """
    check_folder(folder)
    config = read_config(folder)
    check_loadable(folder, config)
    model = _empty(config, dtype)
    layers = linear_layers(model)
    held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    report: dict[str, set[str]] = {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()}
    for file_name in weight_files(folder):
        check_readable(folder / file_name)
        for key in _keys(folder / file_name):
            name = key if key in held else f"{model.base_model_prefix}.{key}"  # GPT-2's own files lack the prefix
            if name not in held:
                if not _is_buffer(name):
                    report["unexpected_keys"].add(key)
                continue
            value = _read(folder / file_name, key, dtype, device)
            if value.shape != model.get_parameter(name).shape:
                report["mismatched_keys"].add(key)
                continue
            _put(model, name, value)
            parent = name.rpartition(".")[0]
            layer = layers.get(parent)
            if layer is not None and not any(p.is_meta for p in layer.parameters()):
                del layers[parent]
                model.set_submodule(parent, convert(layer))
                del layer
                give_back()
    model.tie_weights()
    if not report["mismatched_keys"]:
        report["missing_keys"] = {name for name, p in model.named_parameters() if p.is_meta}
    check_report(folder, report)
    return model.to(device).eval()


def _empty(config: "PretrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """The model without memory for its parameters; its buffers, which no file holds, are real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with quiet(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


def _keys(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _read(path: Path, key: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor, copied. The file is opened anew each time: what was read of a mapped file stays in memory as long as
    it is open.
    """
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor.to(device, dtype, copy=True)


def give_back() -> None:
    """Return freed memory to the system. glibc keeps pieces of this size for later and finds them too small then: half
    a gigabyte more for a base of a billion parameters in 8 bits, a whole one in 4.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Parameter(value, requires_grad=False))


def _is_buffer(name: str) -> bool:
    """Whether it is a constant that older files hold and the model makes for itself, like GPT-2's causal masks."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))
