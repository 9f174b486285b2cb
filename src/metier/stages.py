"""The catalogue: every stage that a recipe can name, in pipeline order. A class is imported when its kind is named."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from metier.core.stage import Stage

STAGES = {
    "documents": "metier.data.stage:Documents",
    "examples": "metier.data.stage:Examples",
    "stream": "metier.data.streaming:Stream",
    "recall": "metier.synthesize.stage:Recall",
    "rehearse": "metier.synthesize.stage:Rehearse",
    "synthesize": "metier.synthesize.synthesis:Synthesize",
    "train_tokenizer": "metier.tokenizer.stage:TrainTokenizer",
    "extend_tokenizer": "metier.tokenizer.stage:ExtendTokenizer",
    "knows": "metier.synthesize.known:Knows",
    "pretrain": "metier.train.stage:Pretrain",
    "tune": "metier.train.stage:Tune",
    "unlearn": "metier.train.unlearn:Unlearn",
    "merge": "metier.export.stage:Merge",
    "combine": "metier.export.combining:Combine",
    "residual": "metier.export.combining:Residual",
    "interpolate": "metier.export.combining:Interpolate",
    "prune": "metier.prune.stage:Prune",
    "guard": "metier.prune.stage:Keep",
    "answer": "metier.evaluate.stage:Answer",
    "choose": "metier.evaluate.choose:Choose",
    "harness": "metier.evaluate.harness:Harness",
    "score": "metier.evaluate.stage:Score",
    "perplexity": "metier.evaluate.stage:Perplexity",
    "knowledge": "metier.evaluate.knowledge:Knowledge",
    "export": "metier.export.stage:Export",
    "judge": "metier.judge.stage:Judge",
    "calibrate": "metier.judge.stage:Calibrate",
}
"""Kind -> where its class is. `tests/test_catalogue.py` holds it against the classes that there are."""


class _Catalogue(Mapping[str, type[Stage]]):
    """Kind -> stage. Building all classes would take longer than all else that `metier plan` does."""

    def __getitem__(self, kind: str) -> type[Stage]:
        module, _, name = STAGES[kind].partition(":")
        stage: type[Stage] = getattr(import_module(module), name)
        return stage

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)

    def __contains__(self, kind: object) -> bool:
        return kind in STAGES


CATALOGUE: Mapping[str, type[Stage]] = _Catalogue()
"""Kind -> stage."""
