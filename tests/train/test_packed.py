"""The fast path is exact: losses and gradients equal those of each sequence alone through the model's own forward."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fakes
from metier.core.errors import ModelError
from metier.models.adapter import LoraSettings, add_lora
from metier.train import packed
from metier.train.batches import Piece, targets_of

KINDS = ("llama", "llama-untied", "gpt2")
LENGTHS = {"mixed": [5, 40, 7, 38, 41, 2, 90], "equal": [24, 24, 24], "one": [33]}


def pieces_of(lengths: list[int], *, all_trained: bool) -> list[Piece]:
    random = np.random.default_rng(0)
    masks = [np.ones(n, bool) if all_trained else random.random(n) > 0.6 for n in lengths]
    for mask in masks:
        mask[-1] = True
    return [Piece.of(str(i), random.integers(6, 250, n).tolist(), masks[i].tolist()) for i, n in enumerate(lengths)]


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain(model, pieces: list[Piece]) -> float:
    """The reference: one forward a sequence, full logits, transformers' own attention."""
    count, total = targets_of(pieces), 0.0
    for piece in pieces:
        ids = torch.from_numpy(piece.ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(piece.targets), ids[0], -100)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = F.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100)
        (loss / count).backward()
        total += loss.item()
    return total


def assert_equal(model, pieces: list[Piece]) -> None:
    expected = plain(model, pieces)
    wanted = gradients(model)
    with packed.packed_attention(model):
        loss = packed.backward(model, packed.pack(pieces), scale=1 / targets_of(pieces)).item()
        again = packed.summed_loss(model, packed.pack(pieces)).item()
    found = gradients(model)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert again == pytest.approx(expected, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("all_trained", [True, False])
def test_full(kind: str, lengths: str, all_trained: bool):
    model = without_dropout(fakes.tiny(kind).train())
    assert_equal(model, pieces_of(LENGTHS[lengths], all_trained=all_trained))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora(kind: str):
    model = without_dropout(fakes.tiny(kind).train())
    adapted = add_lora(model, LoraSettings(r=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert_equal(model, pieces_of(LENGTHS["mixed"], all_trained=False))


def test_lora_on_an_untied_head():
    model = fakes.tiny("llama-untied").train()
    add_lora(model, LoraSettings(r=4, targets=("lm_head", "q_proj")))
    assert_equal(model, pieces_of(LENGTHS["mixed"], all_trained=True))


def test_only_the_head_trains():
    model = fakes.tiny("llama-untied").train()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert_equal(model, pieces_of(LENGTHS["mixed"], all_trained=True))


def test_many_chunks_equal_one(monkeypatch: pytest.MonkeyPatch):
    model = fakes.tiny("llama").train()
    pieces = pieces_of([120, 120, 100], all_trained=True)
    monkeypatch.setattr(packed, "LOGITS", 1)
    assert len(list(packed.chunks(model, torch.zeros(337, 32), torch.zeros(337)))) == 3
    assert_equal(model, pieces)


def test_autocast_gives_nearly_the_same():
    model = fakes.tiny("llama").train()
    row = packed.pack(pieces_of([120, 120, 100], all_trained=True))
    with packed.packed_attention(model):
        exact = packed.backward(model, row, scale=1 / 337).item()
        wanted = gradients(model)
        near = packed.backward(
            model, row, scale=1 / 337, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        ).item()
    assert near == pytest.approx(exact, rel=0.01)
    assert near != exact
    found = torch.cat([g.flatten() for g in gradients(model).values()])
    cosine = F.cosine_similarity(found, torch.cat([g.flatten() for g in wanted.values()]), dim=0)
    assert cosine > 0.99


def test_no_document_sees_another():
    model = fakes.tiny("llama")
    first, second = pieces_of([20, 20], all_trained=True)
    _, other = pieces_of([30, 20], all_trained=True)
    with packed.packed_attention(model), torch.no_grad():
        alone = packed.hidden_states(model, packed.pack([first, second]))[-19:]
        beside = packed.hidden_states(model, packed.pack([other, second]))[-19:]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-6)


def test_the_layout_places_every_token():
    layout = packed.make_layout([3, 10, 9, 1, 3])
    assert layout.shapes == ((2, 10), (2, 3), (1, 1))
    assert layout.sources[layout.places].tolist() == list(range(26))
    assert packed.make_layout([4, 4]).straight
    assert not packed.make_layout([4, 5]).straight


def test_attention_without_a_layout_is_refused():
    model = fakes.tiny("llama")
    with packed.packed_attention(model), pytest.raises(ValueError, match="packed attention takes one row"):
        model(input_ids=torch.tensor([[7, 8, 9]]), use_cache=False)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_whose_own_loss_differs_is_refused():
    model = fakes.tiny("llama")
    pieces = pieces_of([30, 20], all_trained=True)
    with packed.packed_attention(model):
        packed.check_exact(model, pieces)
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with packed.packed_attention(model), pytest.raises(ModelError, match="cannot be trained packed"):
        packed.check_exact(model, pieces)


def test_the_attention_is_put_back_after_an_error():
    model = fakes.tiny("gpt2")
    with contextlib.suppress(RuntimeError), packed.packed_attention(model):
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"
