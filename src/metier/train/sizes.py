"""What a training step's model and settings are in numbers, from config.json and the recipe alone. No torch.

Knows the architectures of `models.anatomy`. Which parameters train, and in which type each is held, is decided here by
the same rules as in `methods` and `job`; tests hold the counts against real models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from metier.models.anatomy import Anatomy, known
from metier.train.methods import FreezeMethod, LoraMethod, Method

Type = Literal["fp32", "bf16", "fp16"]
Quantize = Literal["int8", "8bit", "4bit"] | None
SHORT_TYPES_FROM = 128
"""Hidden size from which bf16 and fp16 pay: below, they gain less than a tenth, which is not worth their rounding."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes. positions: learned ones, 0 where they are rotary. dropouts: in the residual and in attention.

    stored_bytes: of a number on disk.
    """

    family: Literal["llama", "gpt2"]
    anatomy: Anatomy
    width: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    context: int
    positions: int
    dropouts: tuple[float, float]
    stored_bytes: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape | None":
        """From a config.json; None for an architecture that is not known here."""
        anatomy = known(config)
        if anatomy is None:
            return None
        stored = 2.0 if str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16") else 4.0
        vocabulary = int(config["vocab_size"])
        if config["model_type"] == "gpt2":
            width, heads = int(config["n_embd"]), int(config["n_head"])
            inner = int(config.get("n_inner") or 4 * width)
            drops = float(config.get("resid_pdrop", 0.1)), float(config.get("attn_pdrop", 0.1))
            context = int(config.get("n_positions") or 1024)
            return cls(
                "gpt2", anatomy, width, inner, heads, heads, width // heads, vocabulary, context, context, drops, stored
            )
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or width // heads)
        drops = 0.0, float(config.get("attention_dropout") or 0.0)
        return cls(
            "llama",
            anatomy,
            width,
            int(config["intermediate_size"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            head_dim,
            vocabulary,
            int(config["max_position_embeddings"]),
            0,
            drops,
            stored,
        )

    @property
    def keys(self) -> int:
        """The width of keys, and of values."""
        return self.key_heads * self.head_dim

    @property
    def queries(self) -> int:
        """The width of queries."""
        return self.heads * self.head_dim

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many numbers each parameter has, by its full name; a tied head is left out."""
        return {name: self._size(name) for name in self.anatomy.parameters if not self._is_tied_head(name)}

    @cached_property
    def blocks(self) -> list[dict[str, tuple[int, int]]]:
        """The linear layers of each block: the last parts of their names, with their sides (in, out)."""
        found: list[dict[str, tuple[int, int]]] = [{} for _ in range(self.anatomy.depth)]
        for name, sides in self.anatomy.linear.items():
            found[block_of(name) or 0][name] = sides
        return found

    def _is_tied_head(self, name: str) -> bool:
        return self.anatomy.tied and name == f"{self.anatomy.head}.weight"

    def _size(self, name: str) -> int:
        layer, _, kind = name.rpartition(".")
        if layer in self.anatomy.linear:
            sides = self.anatomy.linear[layer]
            return prod(sides) if kind == "weight" else sides[1]
        if layer == self.anatomy.head or layer.endswith(("embed_tokens", "wte")):
            return self.vocabulary * self.width
        return self.positions * self.width if layer.endswith("wpe") else self.width


@dataclass(frozen=True)
class Job:
    """The settings that decide what a step takes. cache: whether the frozen lower blocks' output is kept, and where.

    new_rows: how many rows of the embeddings, and of a head that is not tied, train apart from the rest. teacher_bytes:
    of a teacher's weights. shards: how many processes hold the model between them.
    """

    shape: Shape
    method: Method
    precision: Type
    quantize: Quantize = None
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    checkpointing: bool = False
    keeps_best: bool = False
    cache: Literal["memory", "disk", "off"] = "off"
    device: str = "cpu"
    new_rows: int = 0
    teacher_bytes: float = 0.0
    shards: int = 1

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer's adapter; empty but for LoRA."""
        return adapter_ranks(self.shape.anatomy, self.method) if isinstance(self.method, LoraMethod) else {}

    @property
    def adapts(self) -> bool:
        """Whether what trains stands beside frozen weights: a LoRA, new rows, or both."""
        return self.method == "rows" or isinstance(self.method, LoraMethod)

    @cached_property
    def trained(self) -> dict[str, int]:
        """How many numbers train, by parameter; a layer's adapter under the layer's name."""
        if self.adapts:
            rows = dict.fromkeys(("embeddings.new",), self.new_rows * self.shape.width) if self.new_rows else {}
            if self.new_rows and not self.shape.anatomy.tied:
                rows["head.new"] = self.new_rows * self.shape.width
            return {name: rank * sum(self._sides(name)) for name, rank in self.ranks.items()} | rows
        if not isinstance(self.method, FreezeMethod):
            return dict(self.shape.sizes)
        return {name: size for name, size in self.shape.sizes.items() if self._unfrozen(name)}

    @property
    def products(self) -> float:
        """Bytes of a number in matrix products."""
        return 4.0 if self.precision == "fp32" else 2.0

    @property
    def residual(self) -> float:
        """Bytes of a number in the stream between blocks: it has the type of the embeddings."""
        embeddings = next(name for name in self.shape.sizes if name.endswith(("embed_tokens.weight", "wte.weight")))
        return 4.0 if embeddings in self.trained else self.products

    @cached_property
    def frozen_blocks(self) -> int:
        """How many of the lowest blocks keep nothing, as nothing below or in them trains."""
        places = {block_of(name) for name in self.trained}
        below = [n for n in self.trained if block_of(n) is None and "norm" not in n and "ln_f" not in n]
        if any(self.shape.anatomy.head not in name or self.shape.anatomy.tied for name in below):
            return 0
        return min((place for place in places if place is not None), default=self.shape.anatomy.depth)

    @property
    def trains_head(self) -> bool:
        """Whether the output head's matrix trains, itself or as the embeddings that it is tied to."""
        head = f"{self.shape.anatomy.head}.weight"
        tied = [name for name in self.trained if name.endswith(("embed_tokens.weight", "wte.weight"))]
        return head in self.trained or bool(self.shape.anatomy.tied and tied)

    @property
    def int8_head(self) -> bool:
        """Whether the frozen output head is in int8 too, as `forward.take_int8_head` decides it."""
        untouched = not self.trains_head and not self.new_rows and self.shape.anatomy.head not in self.ranks
        return self.quantize == "int8" and self.device == "cpu" and self.shards == 1 and untouched

    @property
    def way(self) -> Literal["fast", "dora", "modules"]:
        """How the layers are computed: by the fast path, by it and with their outputs kept (DoRA), or through their
        modules' own forward (DoRA with dropout)."""
        if not isinstance(self.method, LoraMethod) or not self.method.lora.dora:
            return "fast"
        return "modules" if self.method.lora.dropout else "dora"

    def _sides(self, name: str) -> tuple[int, int]:
        return self.shape.anatomy.head_sides if name == self.shape.anatomy.head else self.shape.anatomy.linear[name]

    def _unfrozen(self, name: str) -> bool:
        assert isinstance(self.method, FreezeMethod)
        freeze, anatomy = self.method.freeze, self.shape.anatomy
        place = block_of(name)
        if place is not None and place >= anatomy.depth - freeze.blocks:
            return True
        if place is None and ("norm" in name or "ln_f" in name):
            return True
        head = name.endswith(("embed_tokens.weight", "wte.weight")) if anatomy.tied else name.startswith(anatomy.head)
        return (freeze.head and head) or any(re.search(pattern, name) for pattern in freeze.patterns)


@dataclass(frozen=True)
class Reading:
    """What a step reads.

    tokens, targets: of an epoch. epochs: may be part of one. windows: optimizer steps of an epoch. micro: tokens of the
    largest micro-step. per_window: micro-steps of one optimizer step. length: of the piece that a token stands in, on
    average over tokens. uniform: whether pieces are equally long. pieces: how many. dev: tokens of the dev split.
    dev_micro: tokens that go through the model at once there. about: guessed from other data. stream: where tokens come
    as they are read, the bytes of memory that are held of them.
    """

    tokens: float
    targets: float
    epochs: float
    windows: float
    micro: float
    per_window: float
    length: float
    uniform: bool
    pieces: float
    dev: float = 0.0
    dev_micro: float = 0.0
    about: bool = False
    stream: float = 0.0


def block_of(name: str) -> int | None:
    """The index of the block that a layer or parameter stands in, None outside the blocks."""
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return int(found[1]) if found else None


def adapter_ranks(anatomy: Anatomy, method: LoraMethod) -> dict[str, int]:
    """The rank of each layer that the adapter goes on, by PEFT's rules for names and rank patterns."""
    lora = method.lora
    targets = anatomy.names if lora.targets == "all-linear" else lora.targets
    every = [*anatomy.linear, anatomy.head]
    hit = [name for name in every if any(name == t or name.endswith(f".{t}") for t in targets)]
    return {
        name: next((rank for p, rank in lora.rank_pattern.items() if re.match(rf"(.*\.)?({p})$", name)), lora.r)
        for name in hit
    }
