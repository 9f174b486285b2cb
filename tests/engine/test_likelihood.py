"""Log-likelihood of labels: what sharing and packing give is what one plain forward pass of each string gives."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from tests.fakes import CONTEXT, byte_tokenizer, tiny, tiny_gpt2, tiny_llama

from metier.core.errors import DataError, Interrupted
from metier.engine import likelihood
from metier.engine.likelihood import Fork, fork_logprobs
from metier.models.load import Loaded

RANDOM = Random(3)


def loaded(model: object) -> Loaded:
    return Loaded(model, byte_tokenizer(), Path("nowhere"))  # type: ignore[arg-type]


def ids(count: int) -> tuple[int, ...]:
    return tuple(RANDOM.randrange(6, 260) for _ in range(count))


def forks(*, prefix: int = 0, count: int = 9) -> list[Fork]:
    """Contexts of many lengths; continuations of one token, of several, and such that begin alike."""
    begin, alike = ids(prefix), ids(3)
    return [
        Fork(
            begin + ids(RANDOM.choice([1, 2, 30, 70])), (ids(1), ids(1), ids(4), alike + ids(2), alike, alike + ids(1))
        )
        for _ in range(count)
    ]


def plain(model: torch.nn.Module, fork: Fork) -> list[float]:
    """One string at a time, all logits, in float32."""
    found = []
    for continuation in fork.continuations:
        row = torch.tensor([[*fork.context, *continuation]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=row).logits[0, :-1].double(), -1)
        picked = logprobs.gather(1, row[0, 1:, None])[len(fork.context) - 1 :]
        found.append(float(picked.sum()))
    return found


def close(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@pytest.mark.parametrize("prefix", [0, 20])
def test_equals_a_plain_forward_pass_of_each_string(kind: str, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "ROW_TOKENS", 150)  # several rows
    model = tiny(kind, seed=4)
    asked = forks(prefix=prefix)
    before = model.config._attn_implementation
    progress: list[tuple[int, int]] = []
    close(
        fork_logprobs(loaded(model), asked, on_progress=lambda *p: progress.append(p)),
        [plain(model, fork) for fork in asked],
    )
    assert progress[-1] == (9, 9)
    assert len(progress) > 1
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_packed_reading_is_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain way is there for other architectures; here it only reads the trial."""
    read: list[int] = []
    usual = likelihood._Reader._plain
    monkeypatch.setattr(likelihood._Reader, "_plain", lambda self, f: read.append(len(f)) or usual(self, f))  # type: ignore[func-returns-value]
    model = loaded(tiny("llama"))
    fork_logprobs(model, forks())
    fork_logprobs(model, forks())
    assert read == [2]  # once for a model in memory


def test_an_architecture_that_does_not_pack_is_read_plainly() -> None:
    """Layers that see 8 tokens back cannot share rows as others do."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        sliding_window=8,
        initializer_range=0.2,
    )
    model = MistralForCausalLM(config).eval()
    asked = forks(count=3)
    close(fork_logprobs(loaded(model), asked), [plain(model, fork) for fork in asked])


def test_attention_of_its_own_is_read_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that disagrees by more than rounding is believed."""
    monkeypatch.setattr(likelihood, "TOLERANCE", -1.0)
    model = tiny_gpt2()
    asked = forks(count=3)
    close(fork_logprobs(loaded(model), asked), [plain(model, fork) for fork in asked])


def test_one_fork_and_none() -> None:
    model = tiny_llama()
    (one,) = forks(count=1)
    close(fork_logprobs(loaded(model), [one]), [plain(model, one)])
    assert fork_logprobs(loaded(model), []) == []


def test_contexts_that_are_all_alike_keep_a_token_of_their_own() -> None:
    model, context = tiny_llama(), ids(40)
    asked = [Fork(context, (ids(2),)), Fork(context, (ids(1), ids(3)))]
    close(fork_logprobs(loaded(model), asked), [plain(model, fork) for fork in asked])


def test_bad_input() -> None:
    model = loaded(tiny_llama())
    with pytest.raises(DataError, match="no tokens"):
        fork_logprobs(model, [Fork((), ((7,),))])
    with pytest.raises(DataError, match="no tokens"):
        fork_logprobs(model, [Fork((7,), ((7,), ()))])
    with pytest.raises(DataError, match="no tokens"):
        fork_logprobs(model, [Fork((7,), ())])
    full = Fork(ids(CONTEXT), ((7,), (7, 8)))
    with pytest.raises(DataError, match=f"exceed the model's {CONTEXT} tokens"):
        fork_logprobs(model, [full])
    assert full.cut(CONTEXT) == Fork(full.context[1:], full.continuations)
    assert full.cut(500) == full
    fork_logprobs(model, [full.cut(CONTEXT)])
    with pytest.raises(Interrupted):
        fork_logprobs(model, forks(count=1), should_stop=lambda: True)
