"""Weights, gradients and moments held by all processes between them: FSDP2 (`fully_shard`, arXiv 2304.11277) under the
project's own forward pass.

A unit is gathered before it is used and let go after: each block, the head, the embeddings, and the last norm with what
is tied. FSDP2 works through a module's `forward`, which the fast path does without; so each unit's is replaced by one
that does the fast path's work with the weights that are gathered at that moment. In bf16 a unit is gathered in bf16 and
its gradient summed in float32 (mixed precision); what is held stays float32.

Costs, for each process: 16 bytes a parameter over the number of processes, and the two largest units whole, with their
gradients. Loading and saving hold the whole model in float32 once, without moments and gradients.

Checkpoints hold a file of each process's shards in the form of torch's distributed checkpointing in safetensors, which
reads them, for any number of processes. It reads plain ones too, so either goes on from the other's.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from metier.core.errors import ModelError
from metier.models.shape import blocks, is_tied
from metier.train.fast import gpt2, llama
from metier.train.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = (llama, gpt2)


def shard(model: "PreTrainedModel", precision: Precision) -> None:
    """Leave this process its part of every parameter, in place. Raises ModelError for an architecture without a fast
    path, whose forward is its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not any(family.fits(model) for family in FAMILIES):
        raise ModelError(
            "this architecture cannot be held by several processes between them",
            where="shard",
            value=model.config.model_type,
            cure="use a decoder built like Llama or GPT-2, or leave shard out",
        )
    mesh = init_device_mesh(precision.device.type, (dist.get_world_size(),))
    short = None if precision.name == "fp32" else precision.dtype
    policy = MixedPrecisionPolicy(param_dtype=short, reduce_dtype=torch.float32, cast_forward_inputs=False)
    ends = [] if is_tied(model) else [model.get_input_embeddings(), model.get_output_embeddings()]
    for unit in (*blocks(model), *ends, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)  # gradients are summed, as each is of a part of the window's loss
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor


@contextmanager
def units(model: "PreTrainedModel", dtype: torch.dtype, *, checkpointing: bool) -> Iterator[None]:
    """Within it, the forward of each block is the fast path's, that of head and model runs what it is given."""
    from torch.distributed.fsdp import FSDPModule

    (family,) = [family for family in FAMILIES if family.fits(model)]
    changed: list[nn.Module] = []

    def refuse(module: nn.Module, x: Tensor) -> Tensor:
        raise AssertionError(f"{type(module).__name__} of {len(x)} tokens has no formula")

    def fast(layer: nn.Module, x: Tensor, row: Any, context: Any, last: bool = False) -> Tensor:
        block = family.Block(layer, dtype, refuse)  # of the weights that are gathered now
        if checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, x, row, context, last, use_reentrant=False)
            return again
        once: Tensor = block(x, row, context, last)
        return once

    def put(module: nn.Module, forward: Any) -> None:
        module.forward = forward
        changed.append(module)

    for layer in blocks(model):
        put(layer, partial(fast, layer))
    if not is_tied(model):
        put(model.get_output_embeddings(), _run)
    put(model, _run)
    try:
        yield
    finally:
        for module in changed:
            del module.forward
        for module in model.modules():  # the last forward pass may have left the model's own weights whole
            if isinstance(module, FSDPModule):
                module.reshard()


def _run(work: Any, *inputs: Any) -> Any:
    return work(*inputs)


def whole(model: "PreTrainedModel", into: "PreTrainedModel | None") -> "PreTrainedModel | None":
    """All weights in `into`, a model of the same shape on process 0; the others give None. All call it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if into is not None:
                into.get_parameter(name).copy_(value)
    return into


def norm_of(found: Tensor) -> Tensor:
    """A gradient norm over all shards."""
    return found.full_tensor() if isinstance(found, DTensor) else found


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Each process's shards in a file of its own below `folder`, what is the same in all in the first's.

    In the form that torch's distributed checkpointing writes and reads, but from where the tensors lie: its own writer
    makes a copy of all of them first, which was more than all else that a process held.
    """
    from safetensors.torch import save_file
    from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, DCP_VERSION_KEY, SAVED_OFFSETS_KEY

    rank = dist.get_rank()
    own: dict[str, Tensor] = {}
    offsets: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            if local.numel():
                (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
                own[name], offsets[name] = local.contiguous(), {SAVED_OFFSETS_KEY: list(chunk.offsets)}
        elif rank == 0:
            own[name], offsets[name] = tensor, {SAVED_OFFSETS_KEY: [0] * tensor.ndim}
    told = {CUSTOM_METADATA_KEY: json.dumps(offsets), DCP_VERSION_KEY: "1.0", "format": "pt"}
    save_file(own, folder / f"shard-{rank + 1:05d}-of-{dist.get_world_size():05d}.safetensors", metadata=told)


def read(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, sharded or plain. like: parameters by name, whose shards alone are read of what
    belongs to them. Without any, in one process, all is read whole."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Any] = {}
    for name, told in reader.read_metadata().state_dict_metadata.items():
        parameter = like.get(name.rpartition("/")[2])
        assert isinstance(told, TensorStorageMetadata)
        dtype = told.properties.dtype
        if parameter is not None and parameter.shape == told.size:
            found[name] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        else:
            found[name] = torch.empty(told.size, dtype=dtype)
    load(found, storage_reader=reader, no_dist=not like)
    return found
