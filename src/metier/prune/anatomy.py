"""What a model has that can be pruned, and what is left of it, from its config.json alone: no torch, no weights.

Knows Llama, Mistral, Qwen2 and GPT-2. Refuses other architectures, more than there is, and what stock transformers
could not load: heads removed from some blocks only, or from GPT-2, whose head width follows from their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metier.core.errors import ModelError
from metier.models.anatomy import known

Raw = Mapping[str, Any]
What = Literal["heads", "groups", "queries", "width", "layers", "weights", "2:4"]
"""heads: query heads set to zero. groups: whole key/value groups removed. queries: as many query heads of each group
removed. width: channels of the MLPs. layers: blocks. weights: single weights set to zero. 2:4: blocks in which two of
every four weights are."""
SUPPORTED = ("gpt2", "llama", "mistral", "qwen2")
GPT2_NAMES = {
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}


@dataclass(frozen=True)
class Shape:
    """depth: blocks. heads: query heads of a block; groups: its key/value heads. head: the width of one.

    inner: channels of an MLP. hidden: the width of the residual stream.
    """

    kind: str
    depth: int
    heads: int
    groups: int
    head: int
    inner: int
    hidden: int

    @property
    def queries(self) -> int:
        """Query heads of a key/value group."""
        return self.heads // self.groups

    @property
    def is_gpt2(self) -> bool:
        """Whether its parts are called and laid out as GPT-2's."""
        return self.kind == "gpt2"


@dataclass(frozen=True)
class Cut:
    """How much is taken. taken of whole: units of `what`, in each of `blocks`; a share of 1 for weights.

    For layers and 2:4 the units are blocks themselves.
    """

    what: What
    taken: float
    whole: float
    blocks: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """The share taken, 0 to 1; of 2:4 the share of weights that are zero."""
        share = self.taken / self.whole
        return share / 2 if self.what == "2:4" else share

    @property
    def removes(self) -> bool:
        """Whether something is gone from the files, rather than zero in them."""
        return self.taken > 0 and self.what in ("groups", "queries", "width", "layers")

    @property
    def words(self) -> str:
        """As a person reads it."""
        if self.what == "weights":
            return f"{self.taken:.0%} of the weights zero"
        count = f"{self.taken:g} of {self.whole:g}"
        return {
            "heads": f"{count} heads zero in {len(self.blocks)} blocks",
            "groups": f"{count} key/value groups removed",
            "queries": f"{count} query heads of each group removed",
            "width": f"{count} MLP channels removed",
            "layers": f"{count} layers removed",
            "2:4": f"2 of every 4 weights zero in {count} blocks",
        }[self.what]


def shape_of(config: Raw, where: str = "model") -> Shape:
    """The shape that a config.json describes. Raises ModelError for an architecture that cannot be pruned here."""
    kind = str(config.get("model_type"))
    if kind not in SUPPORTED:
        raise ModelError(
            "models of this architecture cannot be pruned",
            where=where,
            value=kind,
            cure=f"use one built like these: {', '.join(SUPPORTED)}",
        )
    if kind == "gpt2":
        hidden, heads = int(config["n_embd"]), int(config["n_head"])
        inner = int(config.get("n_inner") or 4 * hidden)
        return Shape(kind, int(config["n_layer"]), heads, heads, hidden // heads, inner, hidden)
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return Shape(
        kind,
        int(config["num_hidden_layers"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or hidden // heads),
        int(config["intermediate_size"]),
        hidden,
    )


def cut_config(config: Raw, cut: Cut, kept_layers: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The config.json of what is left. kept_layers: which blocks are, where layers are taken (else their number)."""
    shape, left = shape_of(config), dict(config)
    if not cut.removes:
        return left
    taken = int(cut.taken)

    def put(name: str, value: Any) -> None:
        left[GPT2_NAMES.get(name, name) if shape.is_gpt2 else name] = value

    if cut.what == "width":
        put("intermediate_size", shape.inner - taken)
    elif cut.what == "layers":
        put("num_hidden_layers", shape.depth - taken)
        if left.get("layer_types"):
            kept = kept_layers or tuple(range(shape.depth - taken))
            left["layer_types"] = [left["layer_types"][i] for i in kept]
    else:
        groups = shape.groups - (taken if cut.what == "groups" else 0)
        queries = shape.queries - (taken if cut.what == "queries" else 0)
        left |= {"num_key_value_heads": groups, "num_attention_heads": groups * queries, "head_dim": shape.head}
    return left


def parameters(config: Raw) -> int:
    """How many parameters a model of that config.json has; a tied weight counts once. Of known architectures."""
    anatomy = known(config)
    assert anatomy is not None, "shape_of refuses others"
    hidden, vocabulary = anatomy.head_sides
    total = 0
    for name in anatomy.parameters:
        layer, _, kind = name.rpartition(".")
        if layer in anatomy.linear:
            ins, outs = anatomy.linear[layer]
            total += ins * outs if kind == "weight" else outs
        elif name == "lm_head.weight":
            total += 0 if anatomy.tied else hidden * vocabulary
        elif layer.endswith(("embed_tokens", "wte")):
            total += hidden * vocabulary
        elif layer.endswith("wpe"):
            total += hidden * int(config["n_positions"])
        else:
            total += hidden  # norms
    return total


def cache_bytes(shape: Shape, itemsize: int) -> int:
    """Bytes that the keys and values of one token take, in numbers of that size."""
    return 2 * shape.depth * shape.groups * shape.head * itemsize
