"""Similarity of meaning, or what passes for it: TF-IDF cosine, sentence embeddings, BERTScore.

Models are named in the recipe, as a step, a folder or a hub id that stands in the local cache, so their contents are
part of what the scores are made from; nothing is downloaded. They run in float32 on the CPU. A similarity says that two
texts speak of the same thing, not that they agree: `it is safe` and `it is not safe` are near neighbours.

Costs (all-MiniLM-L6, 22 M parameters, two cores): several hundred short answers a second, and some seconds to import.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from metier.core.errors import ModelError
from metier.core.stage import Config, ModelRef, stop_if_asked
from metier.measure.metrics.interface import Answered, Metric
from metier.models.builtin import CONFIG, read_json

BATCH = 32
WORDS = r"[^\W_]+"
"""What a word is to TF-IDF: the words of ROUGE, which single letters and digits belong to."""


class Semantic(Config):
    """Cosine of sentence embeddings of answer and reference (Reimers and Gurevych 2019)."""

    model: ModelRef
    """A model for sentence-transformers, or any encoder for transformers (its mean over tokens is taken then)."""

    def metric(self, folders: Mapping[str, Path]) -> Metric:
        """The metric, its model lying in the folder of its name."""
        folder = folders[self.model]
        return Metric("semantic", lambda items: semantic(items, folder), True, bounded=False, needs=NEEDS["semantic"])


class BertScore(Config):
    """BERTScore F1 (Zhang et al. 2020): each token is matched with its nearest in the other text.

    Not rescaled: unrelated sentences score far above 0. It compares contenders; its level says little.
    """

    model: ModelRef
    """An encoder for transformers."""
    layer: int | None = Field(None, ge=1)
    """The layer whose output is compared. Left out: the one that bert-score recommends for that hub id, or else the
    last."""

    def metric(self, folders: Mapping[str, Path]) -> Metric:
        """The metric, its model lying in the folder of its name."""
        folder = folders[self.model]

        def measure(items: Sequence[Answered]) -> list[float]:
            return bertscore(items, folder, name=self.model, layer=self.layer)

        return Metric("bertscore", measure, True, bounded=False, needs=NEEDS["bertscore"])


NEEDS = {"semantic": ("sentence_transformers", "embed"), "bertscore": ("bert_score", "bertscore")}
"""The package and the extra of each metric that reads with a model."""


def tfidf(items: Sequence[Answered]) -> list[float]:
    """Cosine of TF-IDF vectors of answer and reference, by scikit-learn.

    Rareness is counted over the references of all items, so it is the same for every contender. A word that stands in
    no reference is as rare as can be, and counts against the answer. A text without words gives 0.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    answers, references = [i.text for i in items], [i.reference for i in items]
    vectors = TfidfVectorizer(token_pattern=WORDS)
    split = vectors.build_analyzer()
    known = sorted({word for text in (*answers, *references) for word in split(text)})
    if not known:
        return [0.0] * len(items)
    vectors.set_params(vocabulary=known)
    wanted = vectors.fit_transform(references)
    said = vectors.transform(answers)
    cosines = said.multiply(wanted).sum(axis=1)
    return [min(1.0, float(cosine)) for cosine in cosines.ravel().tolist()[0]]


def semantic(items: Sequence[Answered], folder: Path) -> list[float]:
    """Cosine of the embeddings that sentence-transformers gives answer and reference, from -1 to 1."""
    from metier.models.load import quiet

    with quiet():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
        for part in model:
            part.register_forward_pre_hook(lambda *_: stop_if_asked())
        texts = list(dict.fromkeys(text for item in items for text in (item.text, item.reference)))
        found = model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
    place = {text: index for index, text in enumerate(texts)}
    return [float(found[place[i.text]] @ found[place[i.reference]]) for i in items]


def bertscore(items: Sequence[Answered], folder: Path, *, name: str, layer: int | None) -> list[float]:
    """F1 of bert-score, without idf weights. As there, 0 where answer or reference is empty."""
    from metier.models.load import quiet

    if layer is not None and layer > _layers(folder):
        last = _layers(folder)
        raise ModelError(
            f"the model has {last} layers", where=f"bertscore: {name}", value=layer, cure=f"at most {last}"
        )
    with quiet():
        from bert_score import BERTScorer
        from bert_score.utils import model2layers

        chosen = layer or model2layers.get(name.partition("@")[0]) or _layers(folder)
        full = [index for index, item in enumerate(items) if item.text.strip() and item.reference.strip()]
        if not full:
            return [0.0] * len(items)
        scorer = BERTScorer(
            model_type=str(folder), num_layers=chosen, device="cpu", batch_size=BATCH, use_fast_tokenizer=True
        )
        scorer._model.register_forward_pre_hook(lambda *_: stop_if_asked())
        _, _, found = scorer.score([items[i].text for i in full], [items[i].reference for i in full])
    scores = [0.0] * len(items)
    for index, value in zip(full, found.tolist(), strict=True):
        scores[index] = float(value)
    return scores


def _layers(folder: Path) -> int:
    """How many layers an encoder has, from its config.json."""
    config = read_json(folder / CONFIG)
    found = next((config[key] for key in _DEPTH if isinstance(config.get(key), int)), None)
    if found is None:
        raise ModelError("the model's config does not say how many layers it has", where=str(folder / CONFIG))
    return int(found)


_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
