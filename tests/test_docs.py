"""The pages under docs/ say what the program does. `python tests/test_docs.py` writes their tables of settings anew."""

import re
from pathlib import Path

import pytest

from metier.core.described import table
from metier.core.stage import Config, Resources
from metier.data.settings import Refusals
from metier.data.streaming import Stream, StreamSource
from metier.engine.endpoint import Endpoint, Prices
from metier.evaluate.choose import Choose
from metier.evaluate.exposure import ExposureGate
from metier.evaluate.harness import Harness
from metier.evaluate.held import Held
from metier.evaluate.knowledge import Knowledge
from metier.evaluate.stage import Answer, Perplexity, Score
from metier.export.combining import Combine, Interpolate, Residual
from metier.export.stage import Export, Merge
from metier.judge.stage import Calibrate, EvidenceJudge, Judge, JudgeEndpoint, LocalJudge, Pairwise, RubricFile
from metier.measure.metrics import METRICS, BertScore, ModelMetric, Semantic
from metier.prune.methods import Heads, Layers, Weights, Width
from metier.prune.settings import Calibration, Guard
from metier.prune.stage import Keep, Prune
from metier.report.partial import FILE as PARTIAL
from metier.synthesize.grounding import Grounding
from metier.synthesize.known import Knows
from metier.synthesize.settings import Ask, FactTable
from metier.synthesize.synthesis import Synthesize
from metier.synthesize.templates import Template
from metier.tokenizer.stage import ExtendTokenizer, NewModel, TrainTokenizer
from metier.track import TRACKERS
from metier.track.tracker import TRAINING
from metier.train.methods import Freeze, Lora
from metier.train.stage import Pretrain, Training, Tune
from metier.train.unlearn import Unlearn

DOCS = Path(__file__).resolve().parents[1] / "docs"


def rows(page: str) -> dict[str, str]:
    """The rows of a page's tables by what stands between backticks in the first column."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE))


def test_every_curve_and_tracker_is_in_the_page_on_tracking():
    assert set(rows("tracking.md")) == {*TRAINING, "dev_loss", "result/<metric>"}
    text = (DOCS / "tracking.md").read_text(encoding="utf-8")
    assert all(f"--track {name}" in text for name in TRACKERS)


BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


Parts = dict[str, tuple[type[Config], object]]
PARTS: dict[str, Parts] = {
    "training.md": {
        "`pretrain` and `tune`": (Training, ()),
        "`pretrain` alone": (Pretrain, Training.model_fields),
        "`tune` alone": (Tune, Training.model_fields),
        "`method: {freeze: {...}}`": (Freeze, ()),
        "`method: {lora: {...}}`": (Lora, ()),
    },
    "tokenizer.md": {
        "`extend_tokenizer`": (ExtendTokenizer, ()),
        "`train_tokenizer`": (TrainTokenizer, ()),
        "`shape` of `train_tokenizer`": (NewModel, ()),
    },
    "safety.md": {
        "`refusals` of `examples`": (Refusals, ()),
        "`unlearn`, beside what `pretrain` and `tune` share": (Unlearn, Training.model_fields),
        "`knowledge`": (Knowledge, ()),
        "a contender in fewer bits, of `answer` and `knowledge`": (Held, ()),
    },
    "evaluation.md": {
        "`answer`": (Answer, ()),
        "an endpoint among `models`": (Endpoint, ()),
        "`choose`": (Choose, ()),
        "`harness`": (Harness, ()),
        "`score`": (Score, ()),
        "`perplexity`": (Perplexity, ()),
        "`contamination`, where models are asked": (ExposureGate, ()),
        "`{semantic: {...}}` among `metrics`": (Semantic, ()),
        "`{bertscore: {...}}` among `metrics`": (BertScore, ()),
    },
    "streams.md": {
        "`stream`": (Stream, ()),
        "an entry of `sources`": (StreamSource, ()),
    },
    "export.md": {
        "`export`": (Export, ()),
        "`merge`": (Merge, ()),
        "`combine`": (Combine, ()),
        "`residual`": (Residual, ()),
        "`interpolate`": (Interpolate, ()),
    },
    "synthesis.md": {
        "`synthesize`": (Synthesize, ()),
        "`ask: {...}`": (Ask, ()),
        "`tables: [{...}]`": (FactTable, ()),
        "`grounding: {...}`": (Grounding, ()),
        "a template": (Template, ()),
        "`knows`": (Knows, ()),
    },
    "judges.md": {
        "`judge`": (Judge, ()),
        "a judge whose model runs here": (LocalJudge, ()),
        "a judge behind an endpoint": (JudgeEndpoint, ()),
        "what an endpoint costs: `prices`": (Prices, ()),
        "the evidence judge with an encoder": (EvidenceJudge, ()),
        "`rubric: {file: ...}`": (RubricFile, ()),
        "`pairwise`": (Pairwise, ()),
        "`calibrate`": (Calibrate, ()),
    },
    "scale.md": {"`resources` of any step": (Resources, ())},
    "pruning.md": {
        "`prune`": (Prune, ()),
        "`method: {heads: {...}}`": (Heads, ()),
        "`method: {width: {...}}`": (Width, ()),
        "`method: {layers: {...}}`": (Layers, ()),
        "`method: {weights: {...}}`": (Weights, ()),
        "`calibration`": (Calibration, ()),
        "`guard` of `prune`, `conditions` of `guard`": (Guard, ()),
        "the step `guard`": (Keep, ()),
    },
}
"""Page -> title of each table -> what has the settings, and those that are told elsewhere."""


def settings(page: str) -> str:
    """The tables of every setting that the page is about, from the stages themselves."""
    return "\n".join(f"### {title}\n\n{table(stage, without)}" for title, (stage, without) in PARTS[page].items())


def with_settings(page: str) -> str:
    head, rest = (DOCS / page).read_text(encoding="utf-8").split(BEGIN)
    return head + BEGIN + settings(page) + rest[rest.index(END) :]


@pytest.mark.parametrize("page", PARTS)
def test_a_page_has_every_setting_as_it_is(page):
    assert (DOCS / page).read_text(encoding="utf-8") == with_settings(page), "run `python tests/test_docs.py`"


def test_the_page_on_training_has_every_setting():
    assert set(rows("training.md")) == {
        *Pretrain.model_fields,
        *Tune.model_fields,
        *Freeze.model_fields,
        *Lora.model_fields,
    }


def test_what_the_page_on_training_says_of_learning_rates_holds():
    common = {"model": "m", "documents": "d"}
    rates = [Pretrain(**common, method=m).peak_rate for m in ("full", {"freeze": {"blocks": 1}}, {"lora": {}})]
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| peak learning rate")]
    assert [float(cell) for cell in row.strip("|").split("|")[1:]] == rates


def test_every_field_in_backticks_before_a_colon_is_one():
    page = (DOCS / "training.md").read_text(encoding="utf-8").split(BEGIN)[0]
    named = set(re.findall(r"`([a-z_]+): ", page)) - {"method"}
    fields = {*Pretrain.model_fields, *Tune.model_fields, *Freeze.model_fields, *Lora.model_fields}
    assert named
    assert named <= fields


def test_the_page_on_evaluation_names_no_metric_and_no_file_that_is_none():
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8").split(BEGIN)[0]
    table = page[page.index("## Which measure") : page.index("All of these are cheap")]
    named = set(re.findall(r"`\{?([a-z_0-9]+)(?:: \{[^`]*)?`", table)) - {"choose", "perplexity"}
    assert named <= {*METRICS, *ModelMetric.model_fields}
    assert {"token_f1", "semantic", "chrf"} <= named
    assert PARTIAL in page


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(with_settings(name), encoding="utf-8", newline="\n")
