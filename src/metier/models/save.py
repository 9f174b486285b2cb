"""Write a model or an adapter so that the same weights give the same bytes, whoever saves them, whenever.

No clock, no path of this machine and no set order goes into a file. Refuses nothing; costs one copy of the largest
shard in memory. What is written loads with stock `AutoModelForCausalLM` and `AutoTokenizer` (an adapter, with peft).
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from metier.models.builtin import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE
from metier.models.extension import EXTENSION
from metier.models.load import quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHARD_BYTES = 4_000_000_000
"""The largest weights file that is written; a bigger model is split into shards with an index."""

_LOCAL_TOKENIZER_KEYS = ("name_or_path", "is_local", "local_files_only", "tokenizer_file")


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    out: Path,
    *,
    stop: Iterable[int] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a standalone model: config.json, safetensors in the weights' own dtype, generation_config.json, tokenizer.

    stop: ids besides the tokenizer's end token that end a turn (`text.chat.stop_ids`), for stock `generate`. Tied
    weights are written once and stay tied. generation_config.json names the special tokens only: sampling settings of
    the base were chosen for another model. It also keeps stock `generate` from rows that stand for no token.
    """
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    _set_tokens(model, tokenizer)
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    never = list(range(len(tokenizer), model.get_input_embeddings().weight.shape[0])) or None
    ends = _end_ids(model, tokenizer, stop)
    model.generation_config = GenerationConfig(**ids, eos_token_id=ends, suppress_tokens=never)
    with quiet():
        model.save_pretrained(str(out), max_shard_size=shard_bytes)
    save_tokenizer(tokenizer, out)


def save_adapter(model: "PeftModel", tokenizer: "PreTrainedTokenizerFast", out: Path, *, base: str) -> None:
    """Write an adapter: its configuration and weights as PEFT reads them, base.json and the tokenizer.

    base: how the adapter refers to the model it was trained on (`Source.link`). PEFT's own `save_pretrained` is not
    used: it writes the target modules in set order and the base's path, both different from run to run.
    """
    from peft.utils.save_and_load import get_peft_model_state_dict

    out.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: weights[name].detach().to("cpu").contiguous() for name in sorted(weights)}
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = {**model.active_peft_config.to_dict(), "base_model_name_or_path": None, "inference_mode": True}
    _write_json(out / ADAPTER_CONFIG, _plain(config))
    _write_json(out / BASE, {"base": base})
    save_tokenizer(tokenizer, out)


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja; keep what else there was beside them.

    transformers drops the SentencePiece file (tokenizer.model) on saving, but converters to other formats need it.
    extension.json says which tokens an extension added.
    """
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        tokenizer.save_pretrained(str(out))
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, {key: value for key, value in config.items() if key not in _LOCAL_TOKENIZER_KEYS})
    for name in ("tokenizer.model", EXTENSION):
        beside = Path(tokenizer.name_or_path) / name
        if beside.is_file() and beside.parent.resolve() != out.resolve():
            shutil.copyfile(beside, out / name)


def _set_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(model.config, name, None) is None:
            setattr(model.config, name, getattr(tokenizer, name))


def _end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", stop: Iterable[int]) -> int | list[int]:
    known = model.generation_config.eos_token_id if model.generation_config is not None else None
    before = known if isinstance(known, list) else [known] if known is not None else []
    ids = list(dict.fromkeys([tokenizer.eos_token_id, *before, *sorted(stop)]))
    return ids[0] if len(ids) == 1 else ids


def _plain(value: Any) -> Any:
    """JSON with sets as sorted lists and enumerations as their values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
