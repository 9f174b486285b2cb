"""Our generation loop against transformers' own, and what it promises beyond it."""

import random
from pathlib import Path

import pytest
import torch
from tests.fakes import CONTEXT, byte_tokenizer, tiny

from metier.core.errors import DataError, InputError, Interrupted, ModelError
from metier.engine.local import Generation, generate, length_batches, stream
from metier.engine.sampling import Sampling, generators, greedy
from metier.models.load import Loaded

KINDS = ("llama", "llama-untied", "gpt2")


def loaded(kind: str = "llama", seed: int = 0) -> Loaded:
    return Loaded(tiny(kind, seed), byte_tokenizer(), Path("nowhere"))


def prompts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[0] + [rng.randrange(6, 262) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def reference(who: Loaded, prompt: list[int], limit: int) -> list[int]:
    """transformers' greedy answer, with the same ids barred, up to the stop token."""
    banned = [0, 2, 3, 4, 5]
    out = who.model.generate(
        torch.tensor([prompt]), max_new_tokens=limit, do_sample=False, suppress_tokens=banned, eos_token_id=1
    )
    return [i for i in out[0, len(prompt) :].tolist() if i != 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_is_transformers_generate_token_for_token(kind: str, batch_size: int):
    for seed in range(2):
        who = loaded(kind, seed)
        asked = prompts(12, seed=seed)
        got = generate(who, asked, max_new_tokens=24, batch_size=batch_size)
        assert [list(g.ids) for g in got] == [reference(who, p, 24) for p in asked]


def push_towards_the_end(who: Loaded, strength: float) -> Loaded:
    """Bias the model so that rows stop at different times."""
    with torch.no_grad():
        direction = who.model.get_output_embeddings().weight
        direction[1] += strength * direction.mean(0) + 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    return who


def test_rows_that_stop_early_leave_the_others_unchanged():
    who = push_towards_the_end(loaded("llama-untied"), 1.0)
    asked = prompts(24)
    got = generate(who, asked, max_new_tokens=60, batch_size=24)
    lengths = {len(g.ids) for g in got}
    assert len(lengths) > 4, "rows must end at different steps for this test to say anything"
    assert {g.stopped for g in got} == {True, False}
    assert [list(g.ids) for g in got] == [reference(who, p, 60) for p in asked]
    for g in got:
        assert g.tokens == len(g.ids) + g.stopped
        assert g.stopped or len(g.ids) == 60


def test_an_answer_ends_where_the_context_does():
    for kind in KINDS:
        who = loaded(kind)
        asked = [[0] + [60] * (CONTEXT - 6), [0] + [70] * (CONTEXT // 2), [0] + [60] * (CONTEXT - 2)]
        got = generate(who, asked, max_new_tokens=100)
        assert [g.tokens for g in got] == [5, 63, 1]
        assert [list(g.ids) for g in got] == [reference(who, p, CONTEXT - len(p)) for p in asked]
        assert not any(g.stopped for g in got)


def test_special_tokens_and_unknown_ids_are_never_generated():
    who = loaded("llama-untied")
    with torch.no_grad():
        weight = who.model.get_output_embeddings().weight
        weight[[0, 2, 3]] = 50 * weight[100]
    who.model.resize_token_embeddings(len(who.tokenizer) + 7, mean_resizing=False)
    with torch.no_grad():
        who.model.get_output_embeddings().weight[-7:] = 60 * who.model.get_output_embeddings().weight[100]
    for temperature in (0.0, 1.5):
        for g in generate(who, prompts(6), max_new_tokens=30, temperature=temperature):
            assert all(6 <= i < len(who.tokenizer) for i in g.ids)


def test_greedy_breaks_ties_by_the_lowest_id():
    assert greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [float("-inf"), 0.0, 0.0]])) == [1, 0, 1]


def test_sampling_does_not_depend_on_batch_mates_or_order():
    who = loaded()
    asked = prompts(10)
    options = {"max_new_tokens": 16, "temperature": 0.9, "top_p": 0.9, "seed": 5}
    together = generate(who, asked, batch_size=10, **options)
    alone = [generate(who, [p], **options)[0] for p in asked]
    backwards = generate(who, asked[::-1], batch_size=4, **options)[::-1]
    assert [g.ids for g in together] == [g.ids for g in alone] == [g.ids for g in backwards]
    other = generate(who, asked, max_new_tokens=16, temperature=0.9, top_p=0.9, seed=6)
    assert [g.ids for g in together] != [g.ids for g in other]


def test_a_prompt_asked_twice_gets_two_samples():
    first, second, again = (d.random() for d in generators([[1, 2], [1, 2], [3]], seed=1))
    assert first != second
    assert again == next(iter(generators([[3]], seed=1))).random()


def test_samples_follow_the_distribution_and_top_p_cuts_its_tail():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None].expand(8000, -1)
    draws = [random.Random(i) for i in range(8000)]
    counts = torch.bincount(torch.tensor(Sampling(1.0, 1.0).choose(logits, draws)), minlength=4) / 8000
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.02)
    cut = torch.bincount(torch.tensor(Sampling(1.0, 0.7).choose(logits, draws)), minlength=4) / 8000
    assert torch.allclose(cut, torch.tensor([0.625, 0.375, 0, 0]), atol=0.02)
    only_the_best = Sampling(1.0, 1e-9).choose(logits, draws)
    assert set(only_the_best) == {0}


@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_sampling_refuses_what_means_nothing(temperature: float, top_p: float):
    with pytest.raises(InputError, match=r"temperature|top_p"):
        Sampling(temperature, top_p)


def test_seconds_are_shares_of_the_time_and_progress_counts_to_the_end():
    told: list[tuple[int, int]] = []
    got = generate(loaded(), prompts(9), max_new_tokens=4, batch_size=4, on_progress=lambda *p: told.append(p))
    assert told[-1] == (9, 9)
    assert [d for d, _ in told] == sorted({d for d, _ in told})
    assert all(g.seconds > 0 for g in got)


def test_a_stop_request_is_obeyed_between_tokens():
    asked = iter([False] * 5 + [True] * 100)
    with pytest.raises(Interrupted):
        generate(loaded(), prompts(4), max_new_tokens=50, should_stop=lambda: next(asked))


@pytest.mark.parametrize(
    ("prompt", "limit", "said"),
    [
        ([], 4, "prompt 0: a prompt has no tokens"),
        ([7] * CONTEXT, 4, "fills the model's context of 128"),
        ([7], 0, "max_new_tokens"),
    ],
)
def test_impossible_requests_are_refused(prompt: list[int], limit: int, said: str):
    with pytest.raises(DataError, match=said):
        generate(loaded(), [prompt], max_new_tokens=limit)


def test_a_diverged_model_is_named_as_such():
    who = loaded()
    with torch.no_grad():
        who.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not a number"):
        generate(who, prompts(1))


def test_nothing_asked_nothing_answered():
    assert generate(loaded(), []) == []


def test_the_model_is_left_in_the_mode_it_was_in():
    who = loaded()
    who.model.train()
    generate(who, prompts(1), max_new_tokens=2)
    assert who.model.training


def test_batches_hold_prompts_of_similar_length_longest_first():
    lengths = [3, 40, 7, 38, 20, 19, 3]
    batches = length_batches(lengths, 3)
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert batches[0][0] == 1
    for batch in batches:
        assert len(batch) <= 3
        assert min(lengths[i] for i in batch) * 2 >= max(lengths[i] for i in batch)
    with pytest.raises(DataError, match="batch_size"):
        length_batches(lengths, 0)


# --- streaming


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_pieces_join_to_the_generated_text(kind: str, temperature: float):
    who = loaded(kind)
    for prompt in prompts(4):
        options = {"max_new_tokens": 40, "temperature": temperature, "seed": 2}
        whole: Generation = generate(who, [prompt], **options)[0]
        assert "".join(stream(who, prompt, **options)) == whole.text


class Dictated(torch.nn.Module):
    """Stands for a model that says given ids, whatever it is asked."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.real = tiny("llama")
        self.config = self.real.config
        self.device = self.real.device
        self.ids = iter(ids)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.real.get_output_embeddings()

    def forward(self, **inputs: object) -> object:
        out = self.real(**inputs)
        out.logits[..., next(self.ids)] = 1e9
        return out


def test_characters_of_several_tokens_come_whole():
    text = "Ein Bär 🐻 sagt “ja”"
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text), "the bytes of a character must be tokens of their own for this test to say anything"
    who = Loaded(Dictated([*ids, 1]), tokenizer, Path("nowhere"))
    pieces = list(stream(who, [0, 60], max_new_tokens=60))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "🐻" in pieces


def test_bytes_that_are_no_text_come_out_as_replacement_characters():
    tokenizer = byte_tokenizer()
    torn = tokenizer.encode("é", add_special_tokens=False)[:1]
    ids = [*torn * 6, *tokenizer.encode("ok", add_special_tokens=False), *torn, 1]
    who = Loaded(Dictated(ids), tokenizer, Path("nowhere"))
    assert "".join(stream(who, [0, 60])) == "\ufffd" * 6 + "ok" + "\ufffd"


def test_a_stream_can_be_stopped_and_does_not_leak_inference_mode():
    pieces = stream(loaded(), [0, 60, 61], max_new_tokens=30, should_stop=iter([False] * 6 + [True] * 99).__next__)
    for _ in pieces:
        assert not torch.is_inference_mode_enabled()
