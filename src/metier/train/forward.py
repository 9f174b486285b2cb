"""A micro-step's loss and gradients, exact and with little waste: the one way in which training uses a model.

- pieces share a row without padding or seeing each other; a prefix that opens them all is computed once (`rows`)
- the blocks of known architectures run without what their own forward wastes (`fast`); others through their own forward
- in the last block, queries, the output projection and the MLP are computed only where a next token is a target
- the output head and the loss only there too, without full logits (`head`)
- blocks below the first trained parameter keep nothing for backward, run without dropout, and their output can come
  from a `PrefixCache`

Each equals the plain forward pass of transformers to rounding: tests compare loss and gradients in float32 within 1e-5,
and `check_exact` compares the loss of every model that is trained with the model's own, before training.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metier.core.errors import ModelError
from metier.models.new_rows import beneath, embedded, new_rows
from metier.models.quantized import Packed
from metier.models.shape import blocks, input_embeddings, is_tied, plain_name
from metier.models.stream import give_back
from metier.train.attention import transformers_attention
from metier.train.batches import Ids, Piece
from metier.train.fast import gpt2, llama
from metier.train.flops import count
from metier.train.head import HeadLoss, Taught, each_loss
from metier.train.int8 import Int8Linear, Int8Stack
from metier.train.memory import kept_memory, returned_memory
from metier.train.precision import Precision
from metier.train.prefix_cache import PrefixCache
from metier.train.rows import Row, pack
from metier.train.sharded import units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
ATTENTION = "metier_packed"
WORTH_SELECTING = 0.9
"""The last block is cut down to the tokens before targets where these are at most that share of the row."""
FAMILIES = (llama, gpt2)
Weigh = Callable[[Row, Tensor], tuple[Tensor, Tensor]]
"""From a row and the losses of its targets, (T,), to their weights, (T,), and what is reported as the loss."""


class Forward:
    """Loss and gradients of a model, inside a `with` block.

    model: a transformers model, perhaps with adapter layers inside (not the PeftModel around it). prefix: token ids
    that open most pieces. label_smoothing: of the training loss. neftune: the alpha of the noise on the embeddings
    while training (arXiv 2310.05914). checkpointing: recompute each block in backward instead of keeping what is in it.
    cache: for the frozen lower blocks. teacher: a model of the same vocabulary, in evaluation mode, and the share of
    the training loss that is the divergence from it. sharded: the model's weights are held by several processes.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        precision: Precision,
        prefix: Ids | None = None,
        label_smoothing: float = 0.0,
        neftune: float | None = None,
        checkpointing: bool = False,
        cache: PrefixCache | None = None,
        teacher: "tuple[Forward, float] | None" = None,
        sharded: bool = False,
    ):
        self.model = model
        self._precision = precision
        self._prefix = prefix
        self._smoothing = label_smoothing
        self._neftune = neftune
        self._checkpointing = checkpointing
        self._teacher = teacher
        self._sharded = sharded
        self._cache = None if neftune is not None else cache  # noise changes what the lower blocks read
        self.frozen = frozen_blocks(model)
        family = next((family for family in FAMILIES if family.fits(model)), None)
        dtype = torch.float32 if precision.name == "fp32" else precision.dtype
        self._dtype = dtype
        self._body = None if family is None else family.Body(model, dtype, self._through_module)
        self._int8_head = None if sharded else take_int8_head(model)
        if any(isinstance(module, Int8Linear) for module in model.modules()):
            give_back()  # the weights have become parts of larger ones, and what they were is free
        self._stack = ExitStack()
        self._learning = False
        self._aside: ThreadPoolExecutor | None = None
        self._ahead: tuple[Sequence[Piece], Future[Row]] | None = None

    def __enter__(self) -> Self:
        self._aside = self._stack.enter_context(ThreadPoolExecutor(1, "metier-rows"))
        small = any(isinstance(module, Packed) for module in self.model.modules())
        self._stack.enter_context(returned_memory() if small or self._sharded else kept_memory())
        if self._sharded:
            self._stack.enter_context(units(self.model, self._dtype, checkpointing=self._checkpointing))
        self._stack.enter_context(_packed_attention(self.model))
        if self._teacher is not None:
            self._stack.enter_context(_packed_attention(self._teacher[0].model))
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead = self._aside = None
        self._stack.close()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return input_embeddings(self.model).weight.device

    def _laid(self, micro: Sequence[Piece]) -> Row:
        return pack(micro, self._prefix).to(self.device)

    def _row(self, micro: Sequence[Piece]) -> Row:
        """On the model's device: what was prepared, where it is that."""
        ahead, self._ahead = self._ahead, None
        return ahead[1].result() if ahead is not None and ahead[0] is micro else self._laid(micro)

    def backward(
        self,
        micro: Sequence[Piece],
        *,
        scale: float | Tensor,
        following: Sequence[Piece] | None = None,
        weigh: Weigh | None = None,
    ) -> Tensor:
        """Add to every trained parameter's gradient that of `scale` x the weighted sum of the losses of all targets.

        following: what is likely to be asked for next; it is laid out beside what is computed now. weigh: gives the
        weights, from the row and the losses, and what the sum stands for (None: the pieces' own weights, and the sum
        itself). Returns that, unscaled: 0-dimensional, on the device, not waited for.
        """
        row = self._row(micro)
        if following is not None and self._aside is not None:
            self._ahead = following, self._aside.submit(self._laid, following)
        self._learning = True
        try:
            loss, value = self._within(lambda: self._learned(row, weigh))
        finally:
            self._learning = False
        torch.autograd.backward(loss * scale)
        return loss.detach() if value is None else value

    def _learned(self, row: Row, weigh: Weigh | None) -> tuple[Tensor, Tensor | None]:
        """The loss to go back from, and what is reported in its place."""
        hidden, value = self._hidden(row), None
        if weigh is not None:
            weights, value = weigh(row, self._losses(row, hidden))
            row = replace(row, weights=weights)
        return self._loss(row, hidden, self._smoothing), value

    def _within(self, work: Callable[[], T]) -> T:
        """`work` while the model's own weights are there."""
        return self.model(work) if self._sharded else work()

    def losses(self, micro: Sequence[Piece]) -> Tensor:
        """The loss of every target in nats, piece by piece in order: (T,), without gradients, smoothing and noise."""
        row = pack(micro, self._prefix).to(self.device)
        with torch.no_grad():
            return self._within(lambda: self._losses(row, self._hidden(row)))

    def summed_loss(self, micro: Sequence[Piece]) -> Tensor:
        """The plain sum of the losses of all targets in nats, without gradients, smoothing and noise."""
        row = self._laid(micro)
        with torch.no_grad():
            return self._within(lambda: self._loss(row, self._hidden(row), 0.0))

    def flops(self, micro: Sequence[Piece]) -> float:
        """Arithmetic that `backward` needs for these pieces, in multiply and add operations of matrix products.

        Twice a matrix's size for each token forward; as much for the gradient to its input, where anything below it
        trains; as much for its own gradient, where it trains. Attention counts half of L x L (causality). Without
        padding, without what a cache spares, with the last block and the head at targets only.
        """
        row = pack(micro, self._prefix)
        own = count(self.model, row, frozen=self.frozen, cached=self._cache is not None)
        teacher = self._teacher
        return own if teacher is None else own + count(teacher[0].model, row, frozen=teacher[0].frozen, cached=False)

    def _hidden(self, row: Row) -> Tensor:
        """The body's output at the row's sources: (T, hidden)."""
        if self._body is None:
            return self._hidden_through_model(row)
        body = self._body
        context = body.context(row)
        few = len(row.sources) <= WORTH_SELECTING * len(row)
        x = self._lower(row, context)
        for block in body.blocks[self.frozen :]:
            last = few and block is body.blocks[-1]
            if self._sharded:
                x = block.module(x, row, context, last)
            elif self._checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, row, context, last, use_reentrant=False)
            else:
                x = block(x, row, context, last)
        if not few or self.frozen == len(body.blocks):
            x = x.index_select(0, row.sources)
        elif len(row.asked) > len(row.sources):
            x = x.index_select(0, row.found)
        finished: Tensor = body.finish(x)
        return finished

    def _lower(self, row: Row, context: Any) -> Tensor:
        """What comes out of the frozen lower blocks, or the embeddings: (N, hidden)."""
        body = self._body
        assert body is not None
        if self.frozen == 0:
            x = body.embed(row)
            return self._noisy(x.float() if self._sharded else x, row)
        if self._cache is None:
            return self._through_frozen(row, context)
        return self._cache.values(row, self._computed).to(self.device)

    def _computed(self, pieces: Sequence[Piece]) -> tuple[Row, Tensor]:
        """Pieces in a row, through the frozen lower blocks."""
        body = self._body
        assert body is not None
        row = pack(pieces, self._prefix).to(self.device)
        return row, self._through_frozen(row, body.context(row))

    def fill_cache(self) -> Iterator[tuple[int, int]]:
        """Compute all that the cache is to hold, a row at a time: how many of how many are through."""
        if self._cache is not None and self._body is not None:
            for done in self._cache.fill(self._computed):
                yield done, self._cache.rows

    def _through_frozen(self, row: Row, context: Any) -> Tensor:
        """The frozen lower blocks without dropout: (N, hidden)."""
        body = self._body
        assert body is not None
        training = [module for module in self._below() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                x = self._noisy(body.embed(row), row)
                for block in body.blocks[: self.frozen]:
                    x = block(x, row, context)
        finally:  # memory may have run out
            for module in training:
                module.training = True
        return x

    def _below(self) -> list[nn.Module]:
        """Every module below the first trained parameter: the body's own dropout stands there too."""
        body, inner = self._body, self.model.base_model
        assert body is not None
        lower = [module for block in body.blocks[: self.frozen] for module in block.module.modules()]
        own = [module for module in inner.children() if not isinstance(module, nn.ModuleList)]
        return [inner, *own, *lower]

    def _noisy(self, x: Tensor, row: Row) -> Tensor:
        if self._neftune is None or not self._learning:
            return x
        lengths = row.lengths.to(x.device)
        size = self._neftune / torch.sqrt(lengths.float() * x.shape[1])
        return x + (torch.empty_like(x).uniform_(-1, 1) * size[:, None]).to(x.dtype)

    def _hidden_through_model(self, row: Row) -> Tensor:
        start = self._noisy(embedded(self.model.get_input_embeddings(), row.ids), row)
        with self._precision.autocast():
            out = self.model.base_model(
                inputs_embeds=start[None],
                position_ids=row.positions[None],
                attention_mask=None,
                use_cache=False,
                row=row,
            )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden.index_select(0, row.sources)

    def _loss(self, row: Row, hidden: Tensor, smoothing: float) -> Tensor:
        module = self.model.get_output_embeddings()
        weights, taught = row.weights, self._taught(row)
        head, fresh = beneath(module), new_rows(module)
        if self._int8_head is not None or _is_plain_linear(head):
            apart = (None, 0) if fresh is None else (fresh.values, fresh.first)

            def lost(hidden: Tensor) -> Tensor:
                loss: Tensor = HeadLoss.apply(  # type: ignore[no-untyped-call]
                    *(hidden, head.weight, head.bias, row.targets, weights, smoothing, self._dtype),
                    *(*apart, taught, self._int8_head),
                )
                return loss

            return self._at_head(lost, hidden)
        with self._precision.autocast():  # an adapter on the head: its own forward, all scores at once
            scores = module(hidden).float()
        losses = F.cross_entropy(scores, row.targets, reduction="none", label_smoothing=smoothing)
        if taught is not None:
            wanted = taught.logs(slice(None), self._dtype)
            away = F.kl_div(torch.log_softmax(scores, -1), wanted, reduction="none", log_target=True).sum(-1)
            losses = (1 - taught.share) * losses + taught.share * away
        return (losses if weights is None else losses * weights).sum()

    def _at_head(self, work: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """`work` while the head's weight is there; a tied one is there with the model's own."""
        if self._sharded and not is_tied(self.model):
            found: Tensor = self.model.get_output_embeddings()(work, hidden)
            return found
        return work(hidden)

    def _taught(self, row: Row) -> Taught | None:
        """What the teacher makes of a row's targets, while training."""
        if self._teacher is None or not self._learning:
            return None
        forward, share = self._teacher
        head = forward.model.get_output_embeddings()
        with torch.no_grad():
            return Taught(forward._hidden(row), head.weight, head.bias, share)

    def _losses(self, row: Row, hidden: Tensor) -> Tensor:
        """The loss of every target, without gradients: (T,)."""
        head = self.model.get_output_embeddings()
        with torch.no_grad():
            if self._int8_head is not None or _is_plain_linear(head):
                about = (head.weight, head.bias, row.targets, self._dtype, self._int8_head)
                return self._at_head(lambda h: each_loss(h, *about), hidden)
            with self._precision.autocast():
                scores = head(hidden).float()
            return F.cross_entropy(scores, row.targets, reduction="none")

    def _through_module(self, module: nn.Module, x: Tensor) -> Tensor:
        with self._precision.autocast():
            out: Tensor = module(x[None])
        return out[0].to(self._dtype)


def frozen_blocks(model: "PreTrainedModel") -> int:
    """How many of the lowest blocks nothing below or in trains: all that are, where nothing but the head trains."""
    if any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return 0
    layers = blocks(model)
    inside = {id(p) for p in layers.parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()}  # an adapter's layer is no nn.Linear
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside | head]
    if any("norm" not in name and "ln_f" not in name for name in others):
        return 0
    return next((i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())), len(layers))


def take_int8_head(model: "PreTrainedModel") -> Int8Stack | None:
    """The output head for an int8 base on a CPU, where nothing of it trains. One that is no embedding as well is held
    in int8 alone from then on."""
    head = model.get_output_embeddings()
    if type(head) is Int8Linear:
        return Int8Stack([head.frozen], carries=True)
    if not any(isinstance(module, Int8Linear) for module in model.modules()) or head.weight.device.type != "cpu":
        return None
    if not _is_plain_linear(head) or new_rows(head) is not None or head.weight.requires_grad:
        return None
    made = Int8Linear(head)
    if not is_tied(model):
        model.set_output_embeddings(made)
    return Int8Stack([made.frozen], carries=True)


def _is_plain_linear(head: nn.Module) -> bool:
    """A matrix and no more: neither packed in fewer bits nor with an adapter (whose class PEFT calls Linear too)."""
    return isinstance(head, nn.Linear) and plain_name(head) == "Linear"


@contextmanager
def _packed_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Within it, the model's own forward attends as packed rows need it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, transformers_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_args, **_kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _refuse_window(model: "PreTrainedModel", longest: int) -> None:
    """Raise ModelError where layers see fewer tokens back than the longest piece has: packed, they would see all."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) if kinds is None else "sliding_attention" in kinds
    if window and slides and longest > window:
        raise ModelError(
            f"this model's layers see {window} tokens back, and the longest sequence has {longest}",
            where="block_size or max_length",
            value=longest,
            cure=f"set it to at most {window}",
        )


def check_exact(model: "PreTrainedModel", pieces: Sequence[Piece], precision: Precision, *, tokens: int = 64) -> None:
    """Compare the packed loss with the model's own on two short pieces, dropout off. Raises ModelError on a difference.

    Within a thousandth in float32; in 16 bits or on an int8 base within three hundredths, as both round.
    """
    _refuse_window(model, max(map(len, pieces)))
    few = [Piece.of(p.id, p.ids[:tokens].tolist()) for p in pieces[:2]]
    was_training = model.training
    model.eval()
    try:
        rows = [torch.from_numpy(piece.ids.astype(np.int64))[None].to(model.device) for piece in few]
        with torch.no_grad(), precision.autocast():
            scores = [model(input_ids=row, use_cache=False).logits[0, :-1].float() for row in rows]
        plain = sum(F.cross_entropy(s, r[0, 1:], reduction="sum").item() for s, r in zip(scores, rows, strict=True))
        with Forward(model, precision=precision) as forward:
            packed = forward.summed_loss(few).item()
    finally:
        model.train(was_training)
    rounds = precision.name != "fp32" or any(isinstance(module, Int8Linear) for module in model.modules())
    tolerance = 3e-2 if rounds else 1e-3
    if not abs(packed - plain) <= tolerance * max(1.0, abs(plain)):
        raise ModelError(
            f"this architecture cannot be trained packed: its own loss is {plain:.4f} where packing gives {packed:.4f}",
            value=model.config.model_type,
            cure="use a decoder built like Llama or GPT-2, without sliding windows or scaled logits",
        )
