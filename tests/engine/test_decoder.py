"""Our own forward pass of generation: refilled places, a shared opening, gaps, and who is left to transformers."""

import random
from pathlib import Path

import pytest
import torch
from tests.engine.test_generate import loaded, prompts, push_towards_the_end, reference
from tests.fakes import byte_tokenizer, tiny_gpt2, tiny_llama
from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from metier.engine import local
from metier.engine.decoder import Decoder, body_for
from metier.engine.local import answers, generate
from metier.models.adapter import LoraSettings, add_lora
from metier.models.load import Loaded

SIZES = {"vocab_size": 265, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def own(model: torch.nn.Module) -> Loaded:
    return Loaded(model.eval(), byte_tokenizer(), Path("nowhere"))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama-untied", "gpt2"])
def test_finished_rows_make_room_and_the_others_never_notice(kind: str):
    who = push_towards_the_end(loaded(kind), 1.0) if kind == "llama-untied" else loaded(kind)
    asked = prompts(40, longest=90)
    limits = [random.Random(i).randrange(1, 30) for i in range(40)]
    got = generate(who, asked, max_new_tokens=limits, batch_size=4)
    assert len({g.tokens for g in got}) > 10, "rows must end at different steps for this test to say anything"
    assert [list(g.ids) for g in got] == [reference(who, p, n) for p, n in zip(asked, limits, strict=True)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_what_opens_all_prompts_is_read_once(kind: str, batch_size: int, monkeypatch: pytest.MonkeyPatch):
    who = loaded(kind)
    opening = [0, *range(60, 90)]
    asked = [[*opening, *p[1:]] for p in prompts(20)] + [opening]
    read: list[int] = []
    step = Decoder.step

    def told(self: Decoder, tokens: list[int], new: list[list[int]]) -> torch.Tensor:
        read.append(len(tokens) + sum(len(p) - self.prefix for p in new))
        return step(self, tokens, new)

    monkeypatch.setattr(Decoder, "step", told)
    got = generate(who, asked, max_new_tokens=12, batch_size=batch_size)
    assert [list(g.ids) for g in got] == [reference(who, p, 12) for p in asked]
    batches = -(-len(asked) // (local.REFILLS * batch_size))
    generated = sum(g.tokens for g in got)
    assert sum(read) <= sum(map(len, asked)) - 30 * len(asked) + 30 * batches + generated


def test_long_prompts_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "READ_AT_ONCE", 50)
    who = loaded("llama")
    asked = prompts(12, longest=45)
    got = generate(who, asked, max_new_tokens=9, batch_size=12)
    assert [list(g.ids) for g in got] == [reference(who, p, 9) for p in asked]


def test_an_adapter_goes_the_same_way():
    adapted = add_lora(tiny_llama(), LoraSettings(r=4))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    who = own(adapted)
    assert body_for(who.model, 128) is not None
    asked = prompts(8)
    assert [list(g.ids) for g in generate(who, asked, max_new_tokens=10)] == [reference(who, p, 10) for p in asked]


def test_biases_and_rotations_of_other_kinds():
    torch.manual_seed(0)
    qwen = Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=128)
    qwen.initializer_range = 0.2
    turned = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = tiny_llama(rope_parameters=turned | {"original_max_position_embeddings": 32})
    asked = prompts(8)
    for who in (own(Qwen2ForCausalLM(qwen)), own(scaled)):
        assert body_for(who.model, 128) is not None
        assert [list(g.ids) for g in generate(who, asked, max_new_tokens=10)] == [reference(who, p, 10) for p in asked]


def test_what_is_not_known_goes_through_its_own_forward_pass():
    torch.manual_seed(0)
    opt = OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128, init_std=0.2)
    sliding = tiny_llama(hidden_act="gelu")
    crossed = tiny_gpt2(scale_attn_by_inverse_layer_idx=True)
    for model in (OPTForCausalLM(opt), sliding, crossed):
        who = own(model)
        assert body_for(who.model, 128) is None
        asked = prompts(9)
        got = generate(who, asked, max_new_tokens=10, batch_size=4)
        assert [list(g.ids) for g in got] == [reference(who, p, 10) for p in asked]


def test_batches_that_are_done_are_left_out_and_the_rest_gets_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "REFILLS", 4)
    who = loaded("llama")
    asked = prompts(30)
    options = {"max_new_tokens": 8, "temperature": 0.9, "seed": 4, "batch_size": 2}
    whole = {i: g for part in answers(who, asked, **options) for i, g in part}
    assert sorted(whole) == list(range(30))
    done = set(list(whole)[:11])
    rest = {i: g for part in answers(who, asked, done=done, **options) for i, g in part}
    assert set(rest) >= set(whole) - done
    assert len(rest) == 30 - 8
    assert all(whole[i].ids == g.ids for i, g in rest.items())


def test_answers_come_as_they_are_finished():
    who = loaded("llama")
    asked = [[0, 60 + i] for i in range(6)]
    parts = list(answers(who, asked, max_new_tokens=[1, 9, 2, 9, 3, 1], batch_size=3))
    assert [i for i, _ in parts[0]] == [0]
    for part in parts:
        for _, one in part:
            assert one.first_token_seconds > 0
            assert (one.per_token_seconds > 0) == (one.tokens > 1)


def test_memory_of_the_cache_grows_with_what_is_read(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **o: made.append(size[2]) or zeros(*size, **o))
    generate(loaded("llama"), [[0, 60, 61]], max_new_tokens=120)
    assert made[0] < 80
    assert max(made) <= 128
