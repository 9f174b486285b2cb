"""What can be measured of answers, each a small function behind one interface.

    words       token_f1, exact_match, rouge_1, rouge_2, rouge_l
    overlap     bleu (and corpus_bleu of the set), chrf
    similarity  tfidf, semantic, bertscore
    form        length_ratio, distinct_1, distinct_2, repetition, stopped, output_tokens
    refusing    unsafe_compliance, harmless_refusal: of the split `refusals_test`

A metric looks at `Answered` (question, reference and what a contender said) and gives a number for each, so that
answers can be scored again without generating them again. Refuses unknown names, naming the nearest, and metrics whose
package is not installed. Imports nothing heavy: packages start when a metric measures.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from pydantic import model_validator

from metier.core.errors import InputError, MissingExtra, nearest
from metier.core.stage import Config
from metier.measure.metrics import form, overlap, refusing, similarity, words
from metier.measure.metrics.interface import Answered, Measure, Metric, Whole, each, pairs
from metier.measure.metrics.similarity import BertScore, Semantic
from metier.text.nouns import Question

__all__ = ["METRICS", "Answered", "Measure", "Metric", "ModelMetric", "Whole", "cure_for", "known", "metric", "require"]

_SACREBLEU = ("sacrebleu", "eval")
_SKLEARN = ("sklearn", "eval")


def _refusing(name: str, measure: Callable[[Answered], float], applies: Callable[[Question], bool]) -> Metric:
    return Metric(
        name, each(measure), False, bounded=True, binary=True, reads_reference=False, applies=applies, rare=True
    )


def _distinct(n: int) -> Metric:
    whole = Whole(f"distinct_{n}_of_all", form.distinct_of_all(n), None)
    measure = each(form.distinct(n))
    return Metric(f"distinct_{n}", measure, None, bounded=True, reads_reference=False, whole=whole)


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("token_f1", pairs(words.token_f1), True, bounded=True),
        Metric("exact_match", pairs(words.exact_match), True, bounded=True, binary=True),
        Metric("rouge_1", pairs(words.rouge_n(1)), True, bounded=True),
        Metric("rouge_2", pairs(words.rouge_n(2)), True, bounded=True),
        Metric("rouge_l", pairs(words.rouge_l), True, bounded=True),
        Metric(
            "bleu",
            overlap.bleu,
            True,
            bounded=True,
            needs=_SACREBLEU,
            whole=Whole("corpus_bleu", overlap.corpus_bleu, True),
        ),
        Metric("chrf", overlap.chrf, True, bounded=True, needs=_SACREBLEU),
        Metric("tfidf", similarity.tfidf, True, bounded=True, needs=_SKLEARN),
        _distinct(1),
        _distinct(2),
        Metric("repetition", each(form.repetition), False, bounded=True, reads_reference=False),
        Metric("stopped", each(form.stopped), True, bounded=True, binary=True, reads_reference=False),
        Metric("output_tokens", each(form.output_tokens), None, bounded=False, reads_reference=False),
        Metric("length_ratio", pairs(form.length_ratio), None, bounded=False),
        _refusing("unsafe_compliance", refusing.complied, refusing.unsafe),
        _refusing("harmless_refusal", refusing.refused, refusing.harmless),
    )
}
"""Every metric that needs no settings, by its name."""


class ModelMetric(Config):
    """A metric that reads with a model, such as `{semantic: {model: all-MiniLM-L6-v2}}`: one of these."""

    semantic: Semantic | None = None
    """Cosine of sentence embeddings. Needs the extra `embed`."""
    bertscore: BertScore | None = None
    """BERTScore F1, not rescaled. Needs the extra `bertscore`."""

    @model_validator(mode="after")
    def _one(self) -> "ModelMetric":
        if (self.semantic is None) == (self.bertscore is None):
            raise ValueError("name one metric, and give each an entry of its own in the list")
        return self

    @property
    def name(self) -> str:
        """The metric's name in scores."""
        return "semantic" if self.semantic is not None else "bertscore"

    def metric(self, folders: Mapping[str, Path]) -> Metric:
        """The metric. folders: where each named model lies."""
        chosen = self.semantic or self.bertscore
        assert chosen is not None
        return chosen.metric(folders)


def known() -> Iterator[str]:
    """Every name, those that need a model included."""
    yield from METRICS
    yield from ModelMetric.model_fields


def metric(name: str) -> Metric:
    """The metric of that name. Raises InputError naming the nearest one, or what one that needs a model lacks."""
    if name in METRICS:
        return METRICS[name]
    raise InputError("no such metric", where="metrics", value=name, cure=cure_for(name))


def cure_for(name: str) -> str:
    """What to write instead of a name that is no metric's."""
    if name in ModelMetric.model_fields:
        return f"it needs a model: write {{{name}: {{model: ...}}}}"
    return nearest(name, known())


def require(name: str) -> None:
    """Raise MissingExtra where the package that a metric needs is not installed. Imports nothing."""
    needs = similarity.NEEDS[name] if name in similarity.NEEDS else METRICS[name].needs
    if needs is not None and find_spec(needs[0]) is None:
        raise MissingExtra(needs[0], needs[1], needed_by=f"the metric {name!r}")
