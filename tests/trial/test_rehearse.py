"""What a rehearsal takes of a recipe, and one that runs: true sizes, fewer layers, predicted beside measured."""

import json
from pathlib import Path

import pytest
import yaml

from metier.cli.rehearse import HEAD, rehearse_recipe
from metier.core.errors import InputError, RecipeError
from metier.models.sizes import SIZES, published
from metier.models.unborn import write_unborn
from metier.recipe import load_recipe
from metier.train.sizes import Shape
from metier.trial.rehearse import STEPS, rehearsals
from metier.trial.reshape import Trial

RECIPE = """\
name: trade
steps:
  texts: {kind: documents, sources: [{path: texts/*.jsonl}], heldout_fraction: 0.5}
  dialogues: {kind: examples, sources: [{path: mine/qa.jsonl}], dev_fraction: 0.2, test: [{path: qa.jsonl}]}
  words: {kind: extend_tokenizer, model: org/base, documents: texts}
  reader: {kind: pretrain, model: words, documents: texts, epochs: 3, dev_every: 5, keep_best: true, block_size: 64}
  read: {kind: merge, model: reader}
  adapter: {kind: tune, model: read, examples: dialogues, accumulation: 8, method: {lora: {r: 4, new_rows: true}}}
  answers: {kind: answer, models: [org/base, adapter], questions: dialogues}
smoke:
  steps:
    dialogues: {sources: [{path: qa.jsonl}], test: null}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    rows = [{"text": f"Text {i} is about the sea and all that lives in it. " * 4} for i in range(40)]
    (tmp_path / "texts/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question": f"What is {i}?", "answer": f"It is a number, and its name is {i}."} for i in range(40)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return tmp_path


def test_each_training_step_by_itself_on_the_model_that_its_chain_begins_with(root: Path):
    reader, adapter = rehearsals(yaml.safe_load(RECIPE), root)
    assert (reader.step, adapter.step) == ("reader", "adapter")
    assert reader.model == adapter.model == "org/base"
    assert set(reader.steps) == {"texts", "words", "reader"}
    assert set(adapter.steps) == {"texts", "words", "dialogues", "adapter"}  # not the reading, not the merge
    assert adapter.steps["adapter"]["model"] == "words"


def test_what_is_cut_and_what_stays(root: Path):
    reader, adapter = rehearsals(yaml.safe_load(RECIPE), root)
    cut = reader.steps["reader"]
    assert (cut["max_steps"], cut["epochs"], cut["accumulation"], cut["block_size"]) == (STEPS, 1, 1, 64)
    assert not {"dev_every", "keep_best"} & set(cut)
    assert "heldout_fraction" not in reader.steps["texts"]
    assert reader.whole["epochs"] == 3
    assert reader.steps["texts"]["sources"][0]["path"] == str(root / "texts/*.jsonl")
    assert adapter.whole["accumulation"] == 8


def test_data_that_are_not_here_are_lent_by_the_smoke_block(root: Path):
    reader, adapter = rehearsals(yaml.safe_load(RECIPE), root)
    assert reader.lent == ()
    assert adapter.lent == ("dialogues",)
    assert adapter.steps["dialogues"]["sources"][0]["path"] == str(root / "qa.jsonl")
    (root / "mine").mkdir()
    (root / "mine/qa.jsonl").write_text((root / "qa.jsonl").read_text())
    assert rehearsals(yaml.safe_load(RECIPE), root)[1].lent == ()


def test_a_recipe_that_trains_nothing(root: Path):
    value = yaml.safe_load(RECIPE)
    value["steps"] = {name: step for name, step in value["steps"].items() if name in ("texts", "dialogues")}
    with pytest.raises(RecipeError, match="trains nothing"):
        rehearsals(value, root)


def test_published_sizes_are_those_of_the_models():
    counts = {ref: sum(Shape.of(config).sizes.values()) for ref, (config, _) in SIZES.items()}
    assert counts["TinyLlama/TinyLlama-1.1B-Chat-v1.0"] == 1_100_048_384
    assert counts["openai-community/gpt2"] == 124_439_808
    assert counts["meta-llama/Llama-3.1-8B"] == 8_030_261_248


def test_a_model_of_unknown_size_and_one_without_a_tokenizer(root: Path):
    with pytest.raises(InputError, match="sizes of this model are not known") as caught:
        published("org/nobody", root)
    assert "config.json" in str(caught.value)
    path = root / "trade.yaml"
    path.write_text(RECIPE.replace("org/base", "openai-community/gpt2"))
    with pytest.raises(InputError, match="tokenizer is not here") as caught:
        rehearse_recipe(path, [], root / "store", root / "runs", trial=Trial(), tokenizers=None, layers=None)
    assert "--tokenizers" in str(caught.value)
    assert not (root / "store").exists()


def test_an_unborn_model_has_fewer_layers_and_loads(root: Path):
    found = published("seedling", root)
    assert found.layers == 6
    write_unborn({**found.with_layers(2), "tie_word_embeddings": False}, found.tokenizer, root / "unborn")
    from metier.models.load import load

    loaded = load(root / "unborn")
    assert len(loaded.model.model.layers) == 2
    assert float(loaded.model.model.layers[0].mlp.up_proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(loaded.model.model.norm.weight.float().mean()) == 1
    assert loaded.model.lm_head.weight.data_ptr() != loaded.model.model.embed_tokens.weight.data_ptr()


@pytest.mark.slow
def test_a_rehearsal_measures_and_projects(root: Path, capsys: pytest.CaptureFixture[str]):
    steps = "{kind: examples, sources: [{path: qa.jsonl}], dev_fraction: 0.2}"
    (root / "t.yaml").write_text(
        f"name: t\nsteps:\n  qa: {steps}\n"
        "  adapter: {kind: tune, model: seedling, examples: qa, method: {lora: {r: 4}}, epochs: 50, batch_size: 8}\n"
    )
    (root / "store").mkdir()
    (root / "store/machine.json").write_text('{"peaks": {"fp32": 5e10, "bf16": 1e11}, "auto": "fp32"}')
    made = rehearse_recipe(
        root / "t.yaml", [], root / "store", root / "runs", trial=Trial(), tokenizers=None, layers=3, quiet=True
    )
    assert made == root / "runs/t-rehearse/rehearsal.md"
    (row,) = json.loads(made.with_name("rehearsal.json").read_text())["steps"]
    assert (row["layers"], row["of_layers"], row["optimizer_steps"]) == (3, 6, STEPS)
    assert 3e8 < row["memory_bytes"] < 3e9
    assert row["memory_predicted_bytes"] == pytest.approx(row["memory_bytes"], rel=0.6)
    ratio = row["all_memory_bytes"] / row["all_memory_predicted_bytes"]
    assert ratio == pytest.approx(row["memory_bytes"] / row["memory_predicted_bytes"], rel=1e-3)
    assert row["all_seconds_predicted"] > row["seconds_predicted"]  # fifty epochs and twice the layers
    text = made.read_text()
    assert "3 of 6 layers of seedling" in text
    assert "nothing of how good" in text
    assert not (made.parent / "work").exists()
    assert HEAD[0] in capsys.readouterr().out
    assert load_recipe(root / "t.yaml").name == "t"
