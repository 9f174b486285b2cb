"""Read a GGUF file back: its tokenizer's fields, its configuration, and the model that transformers makes of it.

transformers' own reading of the header is not trusted: it takes GPT-2's context from a key that does not set the
number of positions, and leaves out position scaling. So the configuration is made here from the file's numbers, and
transformers reads the weights. Costs the model in float32.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.errors import ModelError
from metier.export.gguf.layout import LLAMA3_ROPE, gguf_package
from metier.export.gguf.vocabulary import Vocabulary
from metier.models.load import load_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class File:
    """The header of a GGUF file. Raises ModelError for what is none."""

    def __init__(self, path: Path) -> None:
        gguf = gguf_package()
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise ModelError(
                f"this is no GGUF file ({error})", where=str(path), cure="write it again with an `export` step"
            ) from error
        self.path = path
        self.architecture = str(self.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def number(self, key: str) -> Any:
        """The value under a key of the architecture's, which must be there."""
        value = self.get(f"{self.architecture}.{key}")
        if value is None:
            raise ModelError("the header lacks a number", where=str(self.path), value=key, cure="write the file again")
        return value

    def tensors(self) -> dict[str, tuple[tuple[int, ...], str, int]]:
        """Shape (rows first), type and bytes of each tensor."""
        return {
            t.name: (tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, int(t.n_bytes))
            for t in self._reader.tensors
        }


def read_vocabulary(source: Path | File) -> Vocabulary:
    """What a file says of its tokenizer, as `vocabulary` described it. Opening one of 128,000 tokens takes seconds."""
    file = source if isinstance(source, File) else File(source)
    key = "tokenizer.ggml."
    eos = int(file.get(key + "eos_token_id"))
    eot = file.get(key + "eot_token_id", eos)
    return Vocabulary(
        model=file.get(key + "model"),
        pre=file.get(key + "pre"),
        tokens=tuple(file.get(key + "tokens")),
        types=tuple(file.get(key + "token_type")),
        scores=tuple(file.get(key + "scores", ())),
        merges=tuple(file.get(key + "merges", ())),
        eos=eos,
        stops=frozenset({eos, int(eot)}),
        space_prefix=bool(file.get(key + "add_space_prefix", False)),
        template=str(file.get("tokenizer.chat_template", "")),
        bos=_id(file, "bos"),
        pad=_id(file, "padding"),
        unk=_id(file, "unknown"),
    )


def _id(file: File, name: str) -> int | None:
    value = file.get(f"tokenizer.ggml.{name}_token_id")
    return None if value is None else int(value)


def read_model(source: Path | File) -> "PreTrainedModel":
    """The model in a GGUF file in float32, evaluation mode, its weights read by transformers."""
    file = source if isinstance(source, File) else File(source)
    return load_gguf(file.path, config_of(file))


def config_of(file: File) -> "PretrainedConfig":
    """The configuration that a file's header tells."""
    from transformers import GPT2Config, LlamaConfig

    rows = len(file.get("tokenizer.ggml.tokens"))
    tensors = file.tensors()
    tied = "output.weight" not in tensors
    if file.architecture == "gpt2":
        return GPT2Config(
            vocab_size=rows,
            n_positions=file.number("context_length"),
            n_embd=file.number("embedding_length"),
            n_inner=file.number("feed_forward_length"),
            n_layer=file.number("block_count"),
            n_head=file.number("attention.head_count"),
            layer_norm_epsilon=file.number("attention.layer_norm_epsilon"),
            tie_word_embeddings=tied,
        )
    if file.architecture != "llama":
        raise ModelError("no such architecture is read", where=str(file.path), value=file.architecture)
    return LlamaConfig(
        vocab_size=rows,
        max_position_embeddings=file.number("context_length"),
        hidden_size=file.number("embedding_length"),
        intermediate_size=file.number("feed_forward_length"),
        num_hidden_layers=file.number("block_count"),
        num_attention_heads=file.number("attention.head_count"),
        num_key_value_heads=file.number("attention.head_count_kv"),
        head_dim=file.number("attention.key_length"),
        rms_norm_eps=file.number("attention.layer_norm_rms_epsilon"),
        rope_parameters=_rope(file, "rope_freqs.weight" in tensors),
        tie_word_embeddings=tied,
    )


def _rope(file: File, by_frequency: bool) -> dict[str, Any]:
    theta = {"rope_theta": file.number("rope.freq_base")}
    if kind := file.get(f"{file.architecture}.rope.scaling.type"):
        return {"rope_type": kind, "factor": file.number("rope.scaling.factor"), **theta}
    if by_frequency:
        # the factors do not tell the four numbers they were made from, which are written beside them
        return {"rope_type": "llama3", **theta, **{name: file.number(f"metier.rope.{name}") for name in LLAMA3_ROPE}}
    return {"rope_type": "default", **theta}
