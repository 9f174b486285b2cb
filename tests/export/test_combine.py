"""Arithmetic on weights: exact where it should be, and refused between models of different origin."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import byte_tokenizer, save_tiny, tiny, tiny_llama
from metier.core.errors import DataError, Interrupted, MetierError, ModelError, RecipeError
from metier.core.events import Events
from metier.core.stage import Context, Source, Stage
from metier.export import combine
from metier.export.combine import agreed
from metier.export.combining import Combine, Interpolate, Residual
from metier.models.adapter import LoraSettings, add_lora, merge
from metier.models.load import load
from metier.models.save import save_adapter, save_model
from metier.text.artifacts import write_jsonl


def adapter(root: Path, name: str, seed: int, base: str = "base", **settings: Any) -> Path:
    loaded = load(root / base)
    torch.manual_seed(seed)
    model = add_lora(merge(loaded), LoraSettings(**{"r": 4, "alpha": 8, **settings}))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, loaded.tokenizer, root / name, base=f"../{base}")
    return root / name


def run(stage: Stage, root: Path, stop: bool = False, **others: Path) -> tuple[dict[str, float], Path]:
    out = root / "out"
    for name in ("files", "measured", "scratch"):
        (out / name).mkdir(parents=True, exist_ok=True)
    names = [path.name for path in root.iterdir() if path.is_dir()]
    sources = {name: Source(name, (root / name,), str(root / name), "0") for name in names}
    context = Context(
        "made", out / "files", out / "measured", out / "scratch", Events("made"), sources, stop=lambda: stop
    )
    stage.check(sources)
    return dict(stage.run(context)), out / "files"


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value.data for name, value in merge(load(folder)).named_parameters()}


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.allclose(left[n], right[n], atol=1e-6) for n in left)


@pytest.fixture(params=["llama", "llama-untied", "gpt2"])
def family(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A base, two adapters of different rank and kind, and a whole model, all of that base."""
    save_tiny(tmp_path / "base", request.param)
    adapter(tmp_path, "a", 1)
    adapter(tmp_path, "b", 2, r=2, dora=True)
    model = tiny(request.param)
    torch.manual_seed(3)
    for value in model.parameters():
        value.data += 0.02 * torch.randn_like(value)
    save_model(model, byte_tokenizer(), tmp_path / "c")
    return tmp_path


def test_linear_is_the_average_of_the_models(family: Path) -> None:
    _, out = run(Combine(models=["a", "b", "c"], base="base", weights=[2, 1, 1]), family)
    a, b, c = (weights(family / name) for name in "abc")
    assert close(weights(out), {n: 0.5 * a[n] + 0.25 * b[n] + 0.25 * c[n] for n in a})
    about = json.loads((out / "about.json").read_text())
    assert about["weights"] == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert about["method"] == "combine, linear"


def test_task_arithmetic_adds_what_each_training_changed(family: Path) -> None:
    metrics, out = run(Combine(models=["a", "c"], base="base", method="task_arithmetic", weights=[1, -0.5]), family)
    base, a, c = (weights(family / name) for name in ("base", "a", "c"))
    assert close(weights(out), {n: base[n] + (a[n] - base[n]) - 0.5 * (c[n] - base[n]) for n in a})
    assert metrics["parameters"] == sum(value.numel() for value in a.values())
    _, out = run(Combine(models=["b"], base="base", method="task_arithmetic"), family)
    assert close(weights(out), weights(family / "b"))


def test_ties_trims_elects_and_averages_the_winners() -> None:
    left = torch.tensor([4.0, -3.0, 0.1, 2.0, 0.0])
    right = torch.tensor([2.0, 5.0, 0.2, -2.0, 0.0])
    # kept of each: its three largest; at the fourth place the signs have equal weight, and nobody wins
    assert torch.allclose(agreed([left, right], [1, 1], 0.6), torch.tensor([3.0, 5.0, 0.0, 0.0, 0.0]))
    assert torch.allclose(agreed([left, right], [3, 1], 0.6), torch.tensor([7.0, -6.0, 0.0, 4.0, 0.0]))
    assert torch.equal(agreed([left], [0.5], 1.0), 0.5 * left)


def test_ties_of_one_whole_change_is_the_model(family: Path) -> None:
    _, out = run(Combine(models=["a"], base="base", method="ties", density=1.0), family)
    assert close(weights(out), weights(family / "a"))
    _, out = run(Combine(models=["a", "b", "c"], base="base", method="ties"), family)
    base, made = weights(family / "base"), weights(out)
    changed = [float((made[n] != base[n]).float().mean()) for n in made if made[n].dim() == 2]
    assert 0.05 < max(changed) <= 0.6 + 1e-3  # three vectors, of each a fifth


def test_the_residual_adds_what_the_sibling_learnt(family: Path) -> None:
    _, out = run(Residual(model="c", chat="a", base="base", weight=0.5), family)
    base, a, c = (weights(family / name) for name in ("base", "a", "c"))
    assert close(weights(out), {n: c[n] + 0.5 * (a[n] - base[n]) for n in a})
    assert load(out).tokenizer.chat_template == load(family / "a").tokenizer.chat_template


# --- interpolation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def reading(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "base")
    model = tiny_llama()
    torch.manual_seed(3)
    for value in model.parameters():
        value.data += 0.1 * torch.randn_like(value)
    save_model(model, byte_tokenizer(), tmp_path / "tuned")
    (tmp_path / "general").mkdir()
    texts = ["The water was cold and clear.", "A ray glides over the sand.", "She opened the door.", "It rained."]
    write_jsonl(tmp_path / "general" / "heldout.jsonl", [{"id": str(i), "text": t} for i, t in enumerate(texts * 3)])
    return tmp_path


def interpolation(**settings: Any) -> Interpolate:
    return Interpolate(model="tuned", base="base", documents="general", **settings)


def test_interpolation_keeps_the_strongest_within_the_limit(reading: Path) -> None:
    metrics, out = run(interpolation(max_rise=0.3), reading)
    about = json.loads((out / "about.json").read_text())
    tries = about["tries"]
    assert [one["weight"] for one in tries] == sorted((one["weight"] for one in tries), reverse=True)
    assert [one["within"] for one in tries] == [False] * (len(tries) - 1) + [True]
    assert 0 < metrics["weight"] < 1
    assert metrics["rise"] <= 0.3
    assert tries[-1]["high"] <= 0.3 < tries[-2]["high"]
    base, tuned = weights(reading / "base"), weights(reading / "tuned")
    weight = metrics["weight"]
    assert close(weights(out), {n: (1 - weight) * base[n] + weight * tuned[n] for n in base})


def test_a_wide_limit_keeps_the_model_and_none_within_is_an_error(reading: Path) -> None:
    metrics, out = run(interpolation(max_rise=100), reading)
    assert metrics["weight"] == 1
    assert close(weights(out), weights(reading / "tuned"))
    with pytest.raises(MetierError, match="every weight forgets more") as caught:
        run(interpolation(max_rise=0, weights=[1, 0.5]), reading)
    assert "allow more with max_rise" in str(caught.value)


def test_it_can_be_stopped_and_goes_on(reading: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        run(interpolation(), reading, stop=True)
    uninterrupted, _ = run(interpolation(max_rise=0.3), reading)
    kept = sorted((reading / "out" / "scratch").iterdir())
    kept[-1].unlink()
    read: list[int] = []
    reader = combine.document_nll
    monkeypatch.setattr(combine, "document_nll", lambda *a, **k: read.append(1) or reader(*a, **k))
    assert run(interpolation(max_rise=0.3), reading)[0] == uninterrupted
    assert len(read) == 1


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    save_tiny(tmp_path / "other", seed=5)
    adapter(tmp_path, "a", 1)
    adapter(tmp_path, "b", 2, base="other")
    for stage in (
        Combine(models=["a", "b"], base="base"),
        Residual(model="other", chat="b", base="base"),
    ):
        with pytest.raises(ModelError, match="trained on another model than the base") as caught:
            run(stage, tmp_path)
        assert caught.value.exit_code == 2


def test_models_of_other_shapes_or_words(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    save_model(tiny_llama(intermediate_size=96), byte_tokenizer(), tmp_path / "wide")
    save_model(tiny_llama(tied=False), byte_tokenizer(), tmp_path / "untied")
    save_model(tiny_llama(), byte_tokenizer(merges=(("t", "h"), ("Ġ", "a"), ("Ġ", "t"))), tmp_path / "words")
    for name, message in (
        ("wide", r"mlp\.down_proj\.weight is \[32, 96\], and \[32, 64\] in the base"),
        ("untied", r"lm_head\.weight is in one alone"),
        ("words", "their tokenizers give other ids"),
    ):
        with pytest.raises(ModelError, match=message):
            run(Combine(models=[name], base="base"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["a", "a"]}, "names the same one twice"),
        ({"models": ["a"], "weights": [1, 2]}, "there are 1 models"),
        ({"models": ["a"], "density": 0.5}, "density is for ties alone"),
        ({"models": ["a", "b"], "weights": [1, -1]}, "the shares sum to 0"),
        ({"models": ["a", "b"], "method": "ties", "weights": [1, 0]}, "weights of ties are above 0"),
    ],
)
def test_settings_without_sense(settings: dict[str, Any], message: str) -> None:
    nowhere = {name: Source(name, (), name, "0") for name in ("a", "b", "base")}
    with pytest.raises(RecipeError, match=message):
        Combine(base="base", **settings).check(nowhere)


def test_a_residual_of_twice_the_same_and_a_limit_without_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be different"):
        Residual(model="a", chat="b", base="a").check({})
    (tmp_path / "general").mkdir()
    source = Source("general", (tmp_path / "general",), "general", "0")
    with pytest.raises(DataError, match="there are no documents: the heldout split"):
        interpolation().check({"general": source})
