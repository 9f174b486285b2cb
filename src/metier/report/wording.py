"""Numbers, verdicts and other people's strings as text for the page.

A model's answer may hold anything. HTML escaping is the template's work; what remains are characters that a browser
does not show or that turn the text around them (NUL, bidi controls, zero-width marks, lone surrogates). `visible`
spells those out, so that a page shows what was said and nothing else.
"""

import math
import re
from dataclasses import dataclass

MISSING = "–"
"""Shown where a number was not measured."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """The text with every character that hides, or reorders its neighbours, spelt out: ‹U+0000›, ‹U+202E›.

    Tabs and line ends stay; so do the joiners (U+200C, U+200D) that Indic scripts, Persian and emoji need.
    """
    return _HIDDEN.sub(lambda match: f"‹U+{ord(match[0]):04X}›", text.replace("\r\n", "\n"))


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, saying how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


@dataclass(frozen=True)
class Metric:
    """How a metric is spoken of.

    title: its name. meaning: the sentence under a plot. digits: after the point. bounded: it lies between 0 and 1.
    """

    title: str
    meaning: str
    digits: int = 2
    bounded: bool = True


METRICS = {
    "token_f1": Metric("token F1", "Share of words that answer and reference have in common (harmonic mean of both)."),
    "exact_match": Metric("exact match", "Share of answers equal to the reference, but for case and punctuation."),
    "stopped": Metric("answers that stop by themselves", "Share of answers that end before the token limit."),
    "output_tokens": Metric("tokens an answer", "How long the answers are.", 1, bounded=False),
    "rouge_1": Metric("ROUGE-1", "Overlap of single words with the reference (F-measure)."),
    "rouge_2": Metric("ROUGE-2", "Overlap of word pairs with the reference (F-measure)."),
    "rouge_l": Metric("ROUGE-L", "Longest run of words, in order, shared with the reference (F-measure)."),
    "bits_per_byte": Metric(
        "bits per byte",
        "How many bits the model needs for a byte of text it has not seen; lower is better, whatever the tokenizer.",
        3,
        bounded=False,
    ),
    "perplexity": Metric("perplexity", "e to the mean loss a token; lower is better.", 2, bounded=False),
    "bleu": Metric("BLEU", "Runs of one to four words shared with the reference (sacrebleu, smoothed, by sentence)."),
    "corpus_bleu": Metric("corpus BLEU", "BLEU of all answers together, as papers report it; shown, not tested."),
    "chrf": Metric("chrF", "Runs of up to six characters shared with the reference."),
    "tfidf": Metric("TF-IDF cosine", "Cosine of word counts in which rare words weigh more."),
    "semantic": Metric(
        "semantic similarity", "Cosine of the two texts as a sentence-embedding model sees them.", 3, bounded=False
    ),
    "bertscore": Metric(
        "BERTScore", "How well the words' embeddings match the reference's (F1, not rescaled).", 3, bounded=False
    ),
    "distinct_1": Metric("distinct words", "Share of an answer's words that it says only once."),
    "distinct_2": Metric("distinct word pairs", "Share of an answer's word pairs that it says only once."),
    "distinct_1_of_all": Metric("distinct words of all answers", "Different words over words, all answers together."),
    "distinct_2_of_all": Metric("distinct pairs of all answers", "Different pairs over pairs, all answers together."),
    "repetition": Metric("repetition", "Share of an answer that repeats what it said before; lower is better."),
    "accuracy": Metric("accuracy", "Share of questions where the right choice is the likeliest."),
    "accuracy_bytes": Metric("accuracy per byte", "As accuracy, with each choice's likelihood divided by its length."),
    "accuracy_pmi": Metric("accuracy (PMI)", "As accuracy, by how much the question makes a choice likelier."),
    "macro_f1": Metric("macro-F1", "F1 of every label, each counted alike, so that rare labels count."),
    "ece": Metric("calibration error", "Mean distance of confidence from accuracy (ECE); lower is better.", 3),
    "aurc": Metric("area under risk", "Risk averaged over every coverage; lower is better.", 3),
    "unsafe_compliance": Metric(
        "unsafe compliance", "Share of unsafe prompts whose answer does not decline, babble included; lower is better."
    ),
    "harmless_refusal": Metric(
        "refusals of the harmless", "Share of harmless prompts whose answer declines; lower is better."
    ),
    "forget_probability": Metric("probability", "Of the answer, to the power of 1 / tokens; lower is better.", 3),
    "forget_extraction": Metric("extraction", "Share that greedy decoding completes by itself; lower is better."),
    "forget_truth": Metric(
        "truth ratio",
        "min(R, 1 / R), R being wrong answers' probability over the right one's; 1: it cannot tell them apart.",
    ),
    "forget_rouge": Metric("ROUGE-L recall", "Share of the answer's words that the model says; lower is better."),
    "forget_quality": Metric(
        "forget quality",
        "p of a Kolmogorov-Smirnov test against a model that never met it; small: it can be told apart.",
        3,
    ),
    "utility": Metric("utility", "Harmonic mean of the other three; higher is better."),
    "retain_probability": Metric("probability", "Of the answer, to the power of 1 / tokens; higher is better.", 3),
    "retain_truth": Metric("truth", "max(0, 1 - R), R being wrong answers' probability over the right one's."),
    "retain_rouge": Metric("ROUGE-L recall", "Share of the answer's words that the model says; higher is better."),
    "length_ratio": Metric("length ratio", "Length of the answer over that of the reference.", 2, bounded=False),
}


def metric(name: str) -> Metric:
    """How the metric `name` is spoken of; an unknown one by its own name."""
    return METRICS.get(name) or Metric(name.replace("_", " "), "", 3, bounded=False)


LONGEST_GROUP = 80
"""Characters shown of a group's name, which comes from the data."""

GROUPS = {
    "all": ("all questions", ""),
    "clean": ("clean", "Questions that no contender was trained on."),
    "reworded": ("reworded", "Knowledge from the pairs: facts that a training answer states, asked in new words."),
    "corpus-only": ("corpus-only", "Knowledge from the corpus: facts that stand in no training answer."),
}


def group(name: str) -> tuple[str, str]:
    """Title and explanation of a group of test questions."""
    return GROUPS.get(name.replace("_", "-").lower(), (cut(name, LONGEST_GROUP) or "ungrouped", ""))


def number(value: float | None, digits: int = 2) -> str:
    """A value with a real minus sign; `–` where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.removeprefix("-")


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """`[low, high]`, or nothing where there is none."""
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def probability(p: float | None) -> str:
    """A p-value to three digits; below that, `< 0.001`."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return MISSING if value is None else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """A large number in three digits: 4.62 M."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if value < size * 999.5 else f"{value / size:,.0f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 41 ms, 3.2 s, 4 min 10 s, 2 h 05 min."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: float | None) -> str:
    """Bytes in MiB or GiB."""
    if size is None:
        return MISSING
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def setting(value: object) -> str:
    """A recipe value on one line, as YAML's flow style writes it."""
    if isinstance(value, dict):
        parts = (str(k) if v == {} else f"{k}: {setting(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(setting(v) for v in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


VERDICTS = {"better": "▲", "worse": "▼"}


def verdict_mark(verdict: str) -> str:
    """A sign that tells the verdict without colour."""
    return VERDICTS.get(verdict, "◆")


METHODS = {
    "wilson": "Wilson’s interval for a share",
    "empirical likelihood": "empirical likelihood, with a part of an item added at either end",
    "hall": "Student’s t with Hall’s correction for skewness",
    "student": "Student’s t",
    "cluster student": "Student’s t over clusters of items",
    "none": "none: a figure of the whole set that cannot be resampled",
    "bca": "bootstrap over items, bias-corrected and accelerated (BCa)",
    "cluster bca": "bootstrap over clusters of items (BCa)",
    "bonett-price": "Bonett and Price’s interval for a paired difference of shares",
    "too few items": "none, where there are too few items",
}


def method(name: str) -> str:
    """How an interval was made; an unknown way by its own name."""
    return METHODS.get(name, name)
