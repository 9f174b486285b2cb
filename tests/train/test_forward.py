"""The fast path is exact: loss and every gradient are those of each sequence alone through the model's own forward."""

import contextlib
import math
import threading
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from exactly import (
    FP32,
    assert_exact,
    assert_same,
    packed,
    pieces_of,
    plain,
    stirred,
    taken_gradients,
    without_dropout,
)
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import fakes
from metier.core.errors import ModelError
from metier.models.adapter import LoraSettings, add_lora
from metier.models.shape import freeze_all_but, output_head
from metier.train import strips
from metier.train.batches import Ids, Piece, shared_prefix, size_of, weight_of
from metier.train.forward import Forward, check_exact, frozen_blocks
from metier.train.precision import Precision
from metier.train.rows import Row, pack

pytestmark = pytest.mark.usefixtures("both_ways")

KINDS = ("llama", "llama-untied", "gpt2")
MODES = ("full", "lora", "last block", "head")
DATA = ("all", "sft", "sparse")
SHAPE = {
    "vocab_size": 265,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def prepared(kind: str, mode: str) -> PreTrainedModel:
    model = without_dropout(fakes.tiny(kind).train())
    if mode == "lora":
        stirred(add_lora(model, LoraSettings(r=4)))
    elif mode == "last block":
        freeze_all_but(model, 1, head=False)
    elif mode == "head":
        model.requires_grad_(False)
        output_head(model).requires_grad_(True)
    return model


def lora(kind: str, **settings: object) -> PreTrainedModel:
    model = without_dropout(fakes.tiny(kind).train())
    stirred(add_lora(model, LoraSettings(**{"r": 4, **settings})))
    return model


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_plain_ones(kind: str, mode: str, data: str):
    pieces = pieces_of(data)
    prefix = shared_prefix(pieces)
    assert (prefix is None) == (data == "all")
    assert_exact(Forward(prepared(kind, mode), precision=FP32, prefix=prefix), pieces)


@pytest.mark.parametrize("mode", ["full", "lora", "head"])
@pytest.mark.parametrize("lengths", [(5, 40, 7, 38, 41, 2, 90), (24, 24, 24), (33,), (3,)])
def test_any_mix_of_lengths(lengths: tuple[int, ...], mode: str):
    assert_exact(Forward(prepared("llama-untied", mode), precision=FP32), pieces_of("all", lengths))


@pytest.mark.parametrize("data", ["all", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_label_smoothing(kind: str, data: str):
    pieces = pieces_of(data)
    forward = Forward(prepared(kind, "full"), precision=FP32, prefix=shared_prefix(pieces), label_smoothing=0.1)
    assert_exact(forward, pieces, 0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_prompts_that_weigh_less(mode: str, smoothing: float):
    pieces = pieces_of("sft", prompt_weight=0.3)
    assert weight_of(pieces) < sum(piece.trained for piece in pieces)
    assert_exact(Forward(prepared("llama", mode), precision=FP32, label_smoothing=smoothing), pieces, smoothing)


def test_weighted_and_plain_pieces_in_one_row():
    pieces = [*pieces_of("sft", prompt_weight=0.3), *pieces_of("all", (15, 22))]
    assert_exact(Forward(prepared("llama", "full"), precision=FP32), pieces)


@pytest.mark.parametrize("mode", ["full", "lora", "last block"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_checkpointing_changes_nothing(kind: str, mode: str):
    pieces = pieces_of("sft")
    forward = Forward(prepared(kind, mode), precision=FP32, prefix=shared_prefix(pieces), checkpointing=True)
    assert_exact(forward, pieces)


def test_checkpointing_draws_the_same_dropout_twice():
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = fakes.tiny("gpt2").train()
        stirred(add_lora(model, LoraSettings(r=4, dropout=0.3)))
        torch.manual_seed(1)
        return packed(Forward(model, precision=FP32, checkpointing=checkpointing), pieces_of("sparse"))[1]

    assert_same(gradients(True), gradients(False), 0.0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rslora": True, "alpha": 8.0},
        {"targets": ("q_proj", "v_proj")},
        {"targets": ("mlp.down_proj",)},
        {"rank_pattern": {"layers.1.mlp.up_proj": 2}},
    ],
)
def test_kinds_of_lora(kind: str, settings: dict[str, object]):
    if kind == "gpt2" and settings.keys() & {"targets", "rank_pattern"}:
        settings = {"targets": ("c_attn",)} if "targets" in settings else {"rank_pattern": {"h.1.mlp.c_fc": 2}}
    pieces = pieces_of("sft")
    assert_exact(Forward(lora(kind, **settings), precision=FP32, prefix=shared_prefix(pieces)), pieces)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dora(kind: str):
    pieces = pieces_of("sft")
    model = lora(kind, dora=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:  # or it would still be what the norm is
                parameter.mul_(torch.rand(len(parameter)) + 0.5)
    forward = Forward(model, precision=FP32, prefix=shared_prefix(pieces))
    assert forward._body.blocks[0]._o.whole
    assert_exact(forward, pieces)


def test_dora_with_dropout_goes_through_its_own_module():
    forward = Forward(lora("llama", dora=True, dropout=0.5), precision=FP32)
    assert not forward._body.blocks[0]._o.whole


@pytest.mark.parametrize("data", DATA)
def test_lora_on_an_untied_head(data: str):
    pieces = pieces_of(data)
    model = lora("llama-untied", targets=("lm_head", "q_proj"))
    forward = Forward(model, precision=FP32, prefix=shared_prefix(pieces), label_smoothing=0.1)
    assert_exact(forward, pieces, 0.1)


@pytest.mark.parametrize("mode", ["full", "last block"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_other_models_built_like_llama(kind: str, mode: str):
    torch.manual_seed(0)
    if kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, head_dim=16, sliding_window=None))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2))
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.bias.normal_()
    model.train()
    if mode == "last block":
        freeze_all_but(model, 1)
    pieces = pieces_of("sft")
    forward = Forward(model, precision=FP32, prefix=shared_prefix(pieces))
    assert forward._body is not None
    assert_exact(forward, pieces)


@pytest.mark.parametrize("mode", ["full", "last block"])
def test_an_architecture_without_a_fast_path_goes_through_its_own_forward(mode: str):
    torch.manual_seed(0)
    model = without_dropout(GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)).train())
    if mode == "last block":
        freeze_all_but(model, 1)
    pieces = pieces_of("sft")
    forward = Forward(model, precision=FP32, prefix=shared_prefix(pieces))
    assert forward._body is None
    assert_exact(forward, pieces)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("data", ["all", "sft"])
@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_long_sequences_attend_by_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, kind: str, mode: str, data: str):
    monkeypatch.setattr(strips, "SHORT", 8)
    pieces = pieces_of(data)
    assert_exact(Forward(prepared(kind, mode), precision=FP32, prefix=shared_prefix(pieces)), pieces)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pieces_that_lack_the_prefix_go_beside_those_that_have_it(kind: str):
    tuned = pieces_of("sft")
    pieces = [tuned[0], *pieces_of("all", (25, 9)), *tuned[1:]]
    assert_exact(Forward(prepared(kind, "full"), precision=FP32, prefix=shared_prefix(tuned)), pieces)


@pytest.mark.parametrize("mode", MODES)
def test_a_prefix_changes_nothing(mode: str):
    pieces = pieces_of("sft")
    model = prepared("llama-untied", mode)
    loss, gradients = packed(Forward(model, precision=FP32), pieces)
    again, others = packed(Forward(model, precision=FP32, prefix=shared_prefix(pieces)), pieces)
    assert again == pytest.approx(loss, rel=1e-6)
    assert_same(others, gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_sees_another(kind: str):
    model = fakes.tiny(kind)
    first, second = pieces_of("all", (20, 20))
    other = pieces_of("sft", (30,))[0]
    with Forward(model, precision=FP32) as forward, torch.no_grad():
        alone = forward.summed_loss([second]).item()
        beside = [forward.summed_loss([piece, second]) - forward.summed_loss([piece]) for piece in (first, other)]
    assert beside == pytest.approx([alone, alone], rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_the_sum_without_smoothing_weights_left_in(kind: str):
    model = prepared(kind, "full")
    pieces = pieces_of("sft")
    expected, _ = plain(model, pieces)
    with Forward(model, precision=FP32, label_smoothing=0.2, prefix=shared_prefix(pieces)) as forward:
        assert forward.summed_loss(pieces).item() == pytest.approx(expected, rel=1e-5)
    assert not taken_gradients(model)


def test_gradients_of_micro_steps_add_up():
    model = prepared("llama", "full")
    pieces = pieces_of("sft")
    _, wanted = packed(Forward(model, precision=FP32), pieces)
    with Forward(model, precision=FP32) as forward:
        for cut in (pieces[:3], pieces[3:]):
            forward.backward(cut, scale=torch.tensor(1 / weight_of(pieces)))
    assert_same(taken_gradients(model), wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_bf16_gives_nearly_the_same(kind: str, mode: str):
    model = prepared(kind, mode)
    pieces = pieces_of("sft")
    exact, wanted = packed(Forward(model, precision=FP32), pieces)
    near, found = packed(Forward(model, precision=Precision("bf16", "for a test")), pieces)
    assert near == pytest.approx(exact, rel=0.01)
    assert near != exact
    a, b = (torch.cat([gradient.flatten() for gradient in g.values()]) for g in (wanted, found))
    assert F.cosine_similarity(a, b, dim=0) > 0.99


def test_how_many_blocks_are_frozen():
    assert frozen_blocks(prepared("llama", "full")) == 0
    assert frozen_blocks(prepared("llama", "lora")) == 0
    assert frozen_blocks(prepared("llama", "last block")) == 1
    assert frozen_blocks(prepared("llama-untied", "head")) == 2
    assert frozen_blocks(prepared("llama", "head")) == 0  # tied: the embeddings train
    gpt2 = fakes.tiny("gpt2")
    gpt2.transformer.wte.requires_grad_(False)
    gpt2.transformer.h.requires_grad_(False)
    assert frozen_blocks(gpt2) == 0  # the position embeddings train


def test_frozen_blocks_run_without_dropout_and_those_above_with_it():
    model = fakes.tiny("gpt2").train()
    freeze_all_but(model, 1, head=False)
    pieces = pieces_of("all", (40, 30))
    losses = []
    for share in (0.0, 0.5):
        for module in (*model.transformer.h[0].modules(), model.transformer.drop):
            if isinstance(module, torch.nn.Dropout):
                module.p = share
        torch.manual_seed(0)
        losses.append(packed(Forward(model, precision=FP32), pieces)[0])
    assert losses[0] == losses[1]
    assert all(module.training for module in model.modules())
    torch.manual_seed(1)
    assert packed(Forward(model, precision=FP32), pieces)[0] != losses[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_neftune_disturbs_only_what_is_learned_from(kind: str):
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)) if kind == "neox" else fakes.tiny(kind)
    without_dropout(model.train())
    pieces = pieces_of("all")
    quiet, noisy = Forward(model, precision=FP32), Forward(model, precision=FP32, neftune=5.0)
    loss, _ = packed(quiet, pieces)
    torch.manual_seed(0)
    first, second = (packed(noisy, pieces)[0] for _ in range(2))
    assert len({loss, first, second}) == 3
    with noisy:
        assert noisy.summed_loss(pieces).item() == pytest.approx(loss, rel=1e-6)


def test_the_noise_is_bounded_by_the_length_of_each_piece():
    pieces = pieces_of("sft")
    model = fakes.tiny("llama")
    forward = Forward(model, precision=FP32, neftune=5.0, prefix=shared_prefix(pieces))
    seen: list[torch.Tensor] = []
    row_of = []
    noisy = forward._noisy
    forward._noisy = lambda x, row: (row_of.append(row), seen.append(noisy(x, row) - x))[0] or x
    packed(forward, pieces)
    (noise,), (row,) = seen, row_of
    for piece, start, end in row.parts:
        bound = 5 / math.sqrt(len(piece) * 32)
        largest = noise[start:end].abs().max()
        assert 0.9 * bound < largest <= bound * (1 + 1e-4)


def test_no_noise_reaches_a_cache():
    from metier.train.prefix_cache import PrefixCache

    model = prepared("llama", "last block")
    pieces = pieces_of("all")
    cache = PrefixCache(size_of(pieces), 32, torch.float32)
    packed(Forward(model, precision=FP32, neftune=5.0, cache=cache), pieces)
    assert cache.tokens == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_packs_exactly_is_let_through(kind: str, precision: str):
    model = fakes.tiny(kind).train()
    check_exact(model, pieces_of("all"), Precision(precision, "for a test"))
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_model_whose_own_loss_differs_is_refused():
    model = fakes.tiny("llama")
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with pytest.raises(ModelError, match="cannot be trained packed") as caught:
        check_exact(model, pieces_of("all"), FP32)
    assert caught.value.value == "llama"


@pytest.mark.parametrize("window", [2, 64])
def test_a_sliding_window_shorter_than_the_longest_piece_is_refused(window: int):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=window)).eval()
    assert max(map(len, pieces_of("all"))) > 64
    with pytest.raises(ModelError, match=f"layers see {window} tokens back") as caught:
        check_exact(model, pieces_of("all"), FP32)
    assert str(window) in str(caught.value)


def test_a_sliding_window_that_no_piece_reaches_is_trained():
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=128)).eval()
    check_exact(model, pieces_of("all"), FP32)


def test_the_attention_is_put_back_after_an_error():
    model = fakes.tiny("gpt2")
    with contextlib.suppress(RuntimeError), Forward(model, precision=FP32):
        assert model.config._attn_implementation == "metier_packed"
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"


def test_the_next_row_is_laid_out_beside_what_is_computed(monkeypatch: pytest.MonkeyPatch):
    first, second, third = (pieces_of("sft", lengths) for lengths in ((20, 40), (38, 41), (17, 25)))
    model = lora("llama-untied")
    wanted = {}
    for micro in (first, second, third):
        loss, gradients = packed(Forward(model, precision=FP32), micro)
        wanted[id(micro)] = loss, gradients
    laid: list[str] = []

    def seen(pieces: Sequence[Piece], prefix: Ids | None = None) -> Row:
        laid.append(threading.current_thread().name)
        return pack(pieces, prefix)

    monkeypatch.setattr("metier.train.forward.pack", seen)
    with Forward(model, precision=FP32) as forward:
        # the second was announced, the third came in another's place
        for micro, following in ((first, second), (second, first), (third, None)):
            loss = forward.backward(micro, scale=1 / weight_of(micro), following=following).item()
            expected, gradients = wanted[id(micro)]
            assert loss == expected
            assert_same(taken_gradients(model), gradients, 0.0)
    main = threading.main_thread().name
    assert [name == main for name in laid] == [True, False, False, True]
