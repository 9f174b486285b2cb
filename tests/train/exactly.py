"""The reference that the fast path is held against: each piece alone through the model's own forward, full logits."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metier.train.batches import Piece, weight_of
from metier.train.forward import Forward
from metier.train.precision import Precision

FP32 = Precision("fp32", "for a test")
LENGTHS = (20, 40, 17, 38, 41, 14, 90)
OPENING = 12
"""Tokens that open every piece but those of `all`."""
TOLERANCE = 1e-5
"""Of a gradient's largest entry."""


def pieces_of(kind: str, lengths: Sequence[int] = LENGTHS, **settings: float) -> list[Piece]:
    """all: every token is a target. sft: the last third, behind a common opening. sparse: some, behind one."""
    random = np.random.default_rng(0)
    opening = random.integers(6, 250, OPENING)
    result = []
    for index, length in enumerate(lengths):
        ids = random.integers(6, 250, length)
        trained = np.ones(length, bool)
        if kind != "all":
            ids[:OPENING] = opening[:length]
            trained = np.arange(length) >= length - max(1, length // 3)
        if kind == "sparse":
            trained = (random.random(length) > 0.8) & (np.arange(length) > OPENING)
            trained[-1] = True
        result.append(Piece.of(str(index), ids.tolist(), trained.tolist(), **settings))
    return result


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def stirred(model: nn.Module, std: float = 0.1) -> nn.Module:
    """Its adapters' B is not zero any more."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)
    return model


def taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain(model: nn.Module, pieces: Sequence[Piece], smoothing: float = 0.0) -> tuple[float, dict[str, Tensor]]:
    """The weighted sum of the losses, and the gradients of its mean."""
    total = 0.0
    for piece in pieces:
        where = next(model.parameters()).device
        ids = torch.from_numpy(piece.ids.astype(np.int64))[None].to(where)
        weights = torch.from_numpy(piece.targets[1:].astype(np.float32)).to(where)
        if piece.weights is not None:
            weights = weights * torch.from_numpy(piece.weights[1:]).to(where)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none", label_smoothing=smoothing)
        loss = (losses * weights).sum()
        (loss / weight_of(pieces)).backward()
        total += loss.item()
    return total, taken_gradients(model)


def packed(forward: Forward, pieces: Sequence[Piece]) -> tuple[float, dict[str, Tensor]]:
    """The same by the fast path."""
    with forward:
        loss = forward.backward(pieces, scale=1 / weight_of(pieces)).item()
    return loss, taken_gradients(forward.model)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Gradients of the same parameters, within `tolerance` of each one's largest entry."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        worst = (found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-9)
        assert worst <= tolerance, f"{name}: {worst:.1e}"


def assert_exact(forward: Forward, pieces: Sequence[Piece], smoothing: float = 0.0) -> None:
    expected, wanted = plain(forward.model, pieces, smoothing)
    loss, found = packed(forward, pieces)
    assert abs(loss - expected) <= TOLERANCE * abs(expected)
    assert_same(found, wanted)
