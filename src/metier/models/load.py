"""Load a model, its tokenizer and its configuration from a folder: the only place that does.

Refuses, each with its cause and cure: weights that are not safetensors or do not fit their configuration, pickles,
code that comes with a model, quantised weights, architectures that are not causal language models, an adapter whose
base is another model, tokenizers that would be read wrongly. Never goes to the network. Costs the weights' size in
memory (4 bytes a parameter in float32) and importing transformers (2 s; adapters: 3 s for peft).
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from metier.core.errors import ModelError
from metier.models.builtin import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    base_link,
    check_folder,
    follow,
    is_adapter,
    read_json,
    weight_files,
)
from metier.models.fitting import does_not_fit

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")

_PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_CURE_DAMAGED = "the file is damaged or incomplete (a Git LFS pointer?): copy or download the model again"


class _Needless(logging.Filter):
    """Drops two lines of bitsandbytes: at import (peft does that) where an optional kernel is absent, and at each
    product in 8 bits of what is not float16.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        return not text.startswith(("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast"))


for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).addFilter(_Needless())


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer, and the folder they came from.

    adapter: its name in the model, where that holds several (`add_adapters`).
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerFast"
    folder: Path
    adapter: str | None = None

    @property
    def context(self) -> int:
        """The longest sequence the model was built for, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def is_adapter(self) -> bool:
        """Whether the model is an adapter on its base (a PeftModel) rather than a plain model."""
        return is_adapter(self.folder)


def load(folder: Path, *, dtype: torch.dtype = torch.float32, base: Path | None = None) -> Loaded:
    """The model and tokenizer in `folder`, with weights in `dtype`.

    An adapter is loaded on its base, named by base.json (or by `base`, while the adapter is still being built); where
    that base is an adapter itself, it is merged first. Raises ModelError for anything that is not whole and fitting.
    """
    check_folder(folder)
    if is_adapter(folder):
        return _load_adapter(folder, dtype, base)
    config = read_config(folder)
    check_loadable(folder, config)
    model = _load_weights(folder, config, dtype)
    tokenizer = read_tokenizer(folder)
    _check_vocabulary(folder, tokenizer, model.get_input_embeddings().weight.shape[0])
    return Loaded(model, tokenizer, folder)


def read_config(folder: Path) -> "PretrainedConfig":
    """The configuration of the model in `folder` (of its base, for an adapter). Reads no weights."""
    from transformers import AutoConfig

    if is_adapter(folder):
        return read_config(follow(base_link(folder), folder))
    raw = read_json(folder / "config.json")
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(
            f"the configuration cannot be read ({_first_line(error)})",
            where=str(folder / "config.json"),
            value=raw.get("model_type"),
            cure="use a model of a type that the installed transformers knows, without code of its own",
        ) from error


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer in `folder` (an adapter without one takes its base's).

    One that has no padding token gets a padding token of its own where the vocabulary holds one, else its end token.
    That is for filling up batches only: what is trained on follows from positions, never from comparing ids with it.
    """
    from transformers import AutoTokenizer

    if is_adapter(folder) and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return read_tokenizer(follow(base_link(folder), folder))
    _check_tokenizer_files(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError, AttributeError, ImportError) as error:
        raise ModelError(
            f"the tokenizer cannot be read ({_first_line(error)})",
            where=str(folder),
            cure="copy tokenizer.json and tokenizer_config.json from where the model came from",
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token, so a model could never stop",
            where=str(folder / "tokenizer_config.json"),
            cure='name it there: "eos_token": "..."',
        )
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((t for t in _PAD_TOKENS if t in known), tokenizer.eos_token)
    return tokenizer


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format of most of a model's weights on disk (its base's, for an adapter). Reads headers only."""
    if is_adapter(folder):
        return stored_dtype(follow(base_link(folder), folder))
    sizes: Counter[str] = Counter()
    for name in weight_files(folder):
        check_readable(folder / name)
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no dict: it has no iteration of its own)
                part = file.get_slice(key)
                sizes[part.get_dtype()] += prod(part.get_shape())
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = sizes.most_common(1)[0][0] if sizes else "nothing"
    if found not in kinds:
        raise ModelError(
            "the weights are not floating point numbers that can be trained",
            where=str(folder),
            value=found,
            cure="use the model as float32, bfloat16 or float16",
        )
    return kinds[found]


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what transformers and peft print while loading and saving; what matters is checked here instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_loadable(folder: Path, config: "PretrainedConfig") -> None:
    """Raise ModelError unless it is a causal language model whose weights are not quantised."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    where = str(folder / "config.json")
    named = list(config.architectures or [])
    fits = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    if not fits or (named and not any(name.endswith(_CAUSAL) for name in named)):
        raise ModelError(
            "this is not a causal language model",
            where=where,
            value=named or config.model_type,
            cure="use a model that writes text left to right, such as a LlamaForCausalLM",
        )
    method = read_json(folder / "config.json").get("quantization_config")
    if method is not None:
        raise ModelError(
            "the weights are quantised, and can be neither trained nor merged exactly",
            where=where,
            value=method.get("quant_method") if isinstance(method, dict) else method,
            cure="use the model it was quantised from",
        )


def _check_tokenizer_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES if name != "tokenizer_config.json"):
        raise ModelError(
            "the model has no tokenizer",
            where=str(folder),
            cure="copy tokenizer.json and tokenizer_config.json from where the model came from",
        )
    if (folder / "tokenizer_config.json").is_file():
        return
    # transformers would read either file without complaint, losing the space prefix and the special tokens
    example = (
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", '
        '"add_bos_token": true, "legacy": false}'
    )
    raise ModelError(
        "the tokenizer has no tokenizer_config.json, without which it is read wrongly",
        where=str(folder),
        cure=f"copy it from where the model came from; for a Llama SentencePiece tokenizer.model it is {example}",
    )


def _check_vocabulary(folder: Path, tokenizer: "PreTrainedTokenizerFast", rows: int) -> None:
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"the tokenizer uses ids up to {highest}, but the model has only {rows} embeddings",
            where=str(folder),
            cure="put the tokenizer there that belongs to the model",
        )


def check_readable(path: Path) -> None:
    """Raise ModelError unless it is a whole safetensors file. Reads the header."""
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the weights cannot be read ({_first_line(error)})", where=str(path), cure=_CURE_DAMAGED
        ) from error


def _load_weights(folder: Path, config: "PretrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    for name in weight_files(folder):
        check_readable(folder / name)
    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # so that they are reported below, by name
                output_loading_info=True,
            )
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise ModelError(
            f"the model cannot be loaded ({_first_line(error)})",
            where=str(folder),
            cure="check that config.json belongs to these weights",
        ) from error
    check_report(folder, report)
    return model.eval()


def from_weights(folder: Path, config: "PretrainedConfig", weights: Mapping[str, torch.Tensor]) -> "PreTrainedModel":
    """The model of `config` with these weights, in their dtype. folder: named in errors. Raises ModelError."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32)
    try:
        with quiet():
            model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"the weights do not fit the config beside them ({_first_line(error)})",
            where=str(folder),
            cure="check that config.json belongs to these weights",
        ) from error
    check_report(folder, report)
    made: PreTrainedModel = model.eval()
    return made


def load_gguf(path: Path, config: "PretrainedConfig") -> "PreTrainedModel":
    """The model in a GGUF file, its weights as float32, in evaluation mode. Raises ModelError where they do not fit.

    config: what the file's header says; transformers reads headers of some architectures wrongly.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        with quiet(), redirect_stderr(StringIO()):  # its progress bar knows no other way to be still
            model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, NotImplementedError, ImportError) as error:
        raise ModelError(
            f"the GGUF file cannot be read ({_first_line(error)})", where=str(path), cure="export the model again"
        ) from error
    check_report(path, report)
    made: PreTrainedModel = model.eval()
    return made


def load_quantized(
    folder: Path, kind: Literal["int8", "nf4"] | None, dtype: torch.dtype = torch.float32
) -> "PreTrainedModel":
    """The whole model in `folder` with its blocks in 8 or 4 bits, on the CPU; kind None: it is written that way.

    dtype: of all else, and of the products.

    Only for measuring what is exported: `load` refuses such weights, which can be neither trained nor merged.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, dict[str, Any]] = {
        "int8": {"load_in_8bit": True},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        },
    }
    wanted: dict[str, Any] = {} if kind is None else {"quantization_config": BitsAndBytesConfig(**settings[kind])}
    try:
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": "cpu"},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **wanted,
            )
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, ImportError) as error:
        raise ModelError(f"the model cannot be quantised ({_first_line(error)})", where=str(folder)) from error
    return model.eval()


def check_report(folder: Path, report: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers and drops what is too many; neither is wanted."""
    wrong = {name: sorted(report[f"{name}_keys"], key=str) for name in ("missing", "mismatched", "unexpected")}
    meaning = {
        "missing": "weights that config.json calls for are not in the file",
        "mismatched": "weights in the file have other shapes than config.json says",
        "unexpected": "the file holds weights that config.json knows nothing of",
    }
    for name, keys in wrong.items():
        if keys:
            raise ModelError(
                f"{meaning[name]} ({len(keys)})",
                where=str(folder),
                value=keys[0],
                cure="put the config.json there that belongs to the weights",
            )


def _load_adapter(folder: Path, dtype: torch.dtype, base: Path | None) -> Loaded:
    from peft import PeftModel

    from metier.models.adapter import merge
    from metier.models.new_rows import settle
    from metier.models.shape import cast_

    below = base or follow(base_link(folder), folder)
    if is_adapter(below):
        plain = merge(load(below))
        cast_(plain.parameters(), dtype)
    else:
        plain = load(below, dtype=dtype).model
    check_readable(folder / ADAPTER_WEIGHTS)
    _check_rows(folder, below, plain.get_input_embeddings().weight.shape[0])
    try:
        with quiet():
            model = PeftModel.from_pretrained(plain, str(folder), torch_device=str(plain.device))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise does_not_fit(folder, below, _first_line(error)) from error
    _check_complete(folder, model, below)
    settle(model)
    tokenizer = read_tokenizer(folder)
    _check_vocabulary(folder, tokenizer, plain.get_input_embeddings().weight.shape[0])
    return Loaded(model.eval(), tokenizer, folder)


def _check_rows(folder: Path, below: Path, rows: int) -> None:
    """Refuse an adapter with rows for new tokens on a base without such rows: PEFT fails there with an IndexError."""
    wanted = read_json(folder / ADAPTER_CONFIG).get("trainable_token_indices")
    ids = wanted.values() if isinstance(wanted, dict) else [wanted or []]
    highest = max((max(some, default=-1) for some in ids), default=-1)
    if highest >= rows:
        raise ModelError(
            f"the adapter has rows for tokens up to {highest}, and its base has only {rows} rows: the base was not "
            "extended as the one that the adapter was trained on",
            where=str(folder / ADAPTER_CONFIG),
            value=str(below),
            cure=f"name the extended model (of the step extend_tokenizer) as base in {folder / 'base.json'}",
        )


def add_adapters(base: Loaded, folders: Mapping[str, Path]) -> dict[str, Loaded]:
    """Adapters side by side on one loaded base, which they share: name -> what is loaded.

    The base's own layers are changed in place; without an adapter switched on it answers as before. Raises ModelError
    for an adapter that does not fit it.
    """
    from peft import PeftModel

    made: dict[str, Loaded] = {}
    model: Any = base.model
    for number, (name, folder) in enumerate(folders.items()):
        check_readable(folder / ADAPTER_WEIGHTS)
        inside = f"adapter{number}"  # PEFT's names hold no dots
        try:
            with quiet():
                if number == 0:
                    model = PeftModel.from_pretrained(
                        model, str(folder), adapter_name=inside, torch_device=str(model.device)
                    )
                else:
                    model.load_adapter(str(folder), adapter_name=inside, torch_device=str(model.device))
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise does_not_fit(folder, base.folder, _first_line(error)) from error
        tokenizer = read_tokenizer(folder)
        _check_vocabulary(folder, tokenizer, model.get_input_embeddings().weight.shape[0])
        made[name] = Loaded(model.eval(), tokenizer, folder, inside)
    return made


def _check_complete(folder: Path, model: "PeftModel", below: Path) -> None:
    """PEFT leaves a layer that the file does not cover at random, and drops weights for layers that are not there."""
    from peft.utils.save_and_load import get_peft_model_state_dict

    called_for = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        held = set(file.keys())
    if absent := sorted(called_for - held):
        raise does_not_fit(folder, below, f"it holds nothing for {len(absent)} weights, such as {absent[0]}")
    if extra := sorted(name for name in held - called_for if ".lora_" in name):
        raise does_not_fit(folder, below, f"the base has no place for {len(extra)} weights, such as {extra[0]}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
