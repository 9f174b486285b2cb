"""Write a model folder as one GGUF file, weights streamed one tensor at a time.

Types: F32, F16, BF16, Q8_0 and Q4_0, computed here; in Q4_0 files embeddings and head are Q8_0, norms and biases are
always F32. The same folder gives the same bytes. Refuses a row that the type's blocks of 32 do not divide, and numbers
that 16 bits cannot hold. Costs a read of the weights and the largest tensor in memory, as float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import safe_open

from metier.core.disk import whole
from metier.core.errors import ModelError
from metier.export.gguf.layout import Array, Placed, check_layout, gguf_package, header, places, rope_factors
from metier.export.gguf.vocabulary import Vocabulary, vocabulary
from metier.models.builtin import check_folder, is_adapter, weight_files
from metier.models.load import check_loadable, check_readable, read_config, read_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GgufType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]
GGUF_TYPES: tuple[GgufType, ...] = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
BLOCK = 32
"""Numbers of a row that Q8_0 and Q4_0 quantise together."""

_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file. source: the weights' file and its name there, None for one that is computed."""

    source: tuple[Path, str] | None
    place: Placed
    shape: tuple[int, ...]
    kind: str


def check_gguf(folder: Path, kinds: tuple[str, ...]) -> None:
    """Raise InputError unless the model in `folder` can be written in every type of `kinds`. Reads no weights."""
    gguf_package()
    config = _config(folder)
    for kind in kinds:
        _tensors(folder, config, kind)
    rows = next(t.shape[0] for t in _tensors(folder, config, "F32") if t.place.name == "token_embd.weight")
    vocabulary(read_tokenizer(folder), rows, where=str(folder))


def write_gguf(
    folder: Path,
    out: Path,
    kind: GgufType,
    *,
    name: str = "model",
    check_stop: Callable[[], None] = lambda: None,
) -> Vocabulary:
    """Write the whole model in `folder` (no adapter) to the file `out`. Returns what the file says of the tokenizer.

    name: shown by programs that list models. check_stop: called between tensors; may raise.
    Raises ModelError for what the format cannot hold, MissingExtra without the package `gguf`.
    """
    gguf = gguf_package()
    config = _config(folder)
    tensors = _tensors(folder, config, kind)
    rows = next(t.shape[0] for t in tensors if t.place.name == "token_embd.weight")
    words = vocabulary(read_tokenizer(folder), rows, where=str(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as aside:
        writer = gguf.GGUFWriter(aside, config.model_type)
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for field in header(config, rows):
            key = f"{config.model_type}.{field.key}"
            writer.add_key_value(key, field.value, gguf.GGUFValueType[field.kind])
        _add_vocabulary(writer, words)
        for tensor in tensors:
            _add_info(gguf, writer, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            check_stop()
            writer.write_tensor_data(_encoded(gguf, tensor, _values(tensor, config)))
        writer.close()
    return words


def _config(folder: Path) -> "PretrainedConfig":
    check_folder(folder)
    if is_adapter(folder):
        raise ModelError(
            "an adapter is merged before it is written as GGUF",
            where=str(folder),
            cure="add a `merge` or `export` step",
        )
    config = read_config(folder)
    check_loadable(folder, config)
    check_layout(config, str(folder))
    return config


def _tensors(folder: Path, config: "PretrainedConfig", kind: str) -> list[Tensor]:
    """Every tensor of the file in order, checked to fit its type."""
    shapes: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file_name in weight_files(folder):
        check_readable(folder / file_name)
        with safe_open(folder / file_name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no dict: it has no iteration of its own)
                shapes[key] = (folder / file_name, tuple(file.get_slice(key).get_shape()))
    found = []
    for key, place in places(config, list(shapes), str(folder)).items():
        path, shape = shapes[key]
        if place.turn is np.transpose:
            shape = shape[::-1]
        found.append(Tensor((path, key), place, shape, _type_of(place, kind)))
        _check_blocks(found[-1], key, kind, folder)
    if (factors := rope_factors(config)) is not None:
        place = Placed("rope_freqs.weight", lambda rows: rows, plain=True)
        found.append(Tensor(None, place, factors.shape, "F32"))
    return found


def _type_of(place: Placed, kind: str) -> str:
    if place.plain:
        return "F32"
    return "Q8_0" if place.embedding and kind == "Q4_0" else kind


def _check_blocks(tensor: Tensor, key: str, kind: str, folder: Path) -> None:
    if tensor.kind.startswith("Q") and tensor.shape[-1] % BLOCK:
        raise ModelError(
            f"{kind} quantises rows in blocks of {BLOCK}, and a row of {key} has {tensor.shape[-1]} numbers",
            where=str(folder),
            value=list(tensor.shape),
            cure="use F16 or BF16 for this model",
        )


def _add_vocabulary(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.types))
    if words.scores:
        writer.add_token_scores(list(words.scores))
    if words.merges:
        writer.add_token_merges(list(words.merges))
    if words.bos is not None:
        writer.add_bos_token_id(words.bos)
    writer.add_eos_token_id(words.eos)
    if words.pad is not None:
        writer.add_pad_token_id(words.pad)
    if words.unk is not None:
        writer.add_unk_token_id(words.unk)
    for stop in sorted(words.stops - {words.eos})[:1]:
        writer.add_eot_token_id(stop)
    writer.add_add_bos_token(words.bos is not None)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(words.space_prefix)
    if words.template:
        writer.add_chat_template(words.template)


def _add_info(gguf: Any, writer: Any, tensor: Tensor) -> None:
    kind = gguf.GGMLQuantizationType[tensor.kind]
    bytes_shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
    size = int(np.prod(bytes_shape))
    writer.add_tensor_info(tensor.place.name, bytes_shape, np.dtype(np.uint8), size, raw_dtype=kind)


def _values(tensor: Tensor, config: "PretrainedConfig") -> Array:
    """The tensor as float32, its rows in llama.cpp's order."""
    if tensor.source is None:
        factors = rope_factors(config)
        assert factors is not None
        return factors
    path, key = tensor.source
    with safe_open(path, framework="pt") as file:
        values: Array = file.get_tensor(key).to(torch.float32).numpy()
    if not np.isfinite(values).all():
        raise ModelError("a weight is not a finite number", where=f"{path}: {key}", cure="train the model again")
    if tensor.kind in ("F16", "Q8_0", "Q4_0") and abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ModelError(
            f"a weight is larger than {tensor.kind} can hold",
            where=f"{path}: {key}",
            value=float(abs(values).max()),
            cure="use BF16 or F32",
        )
    return np.ascontiguousarray(tensor.place.turn(values))


def _encoded(gguf: Any, tensor: Tensor, values: Array) -> Array:
    encoded: Array = gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor.kind])
    return encoded
