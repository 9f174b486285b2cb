"""The catalogue: every stage that a recipe can name, in pipeline order. Imports no torch: stages do, when they run."""

from metier.core.stage import Stage
from metier.data.stage import Documents, Examples
from metier.evaluate.choose import Choose
from metier.evaluate.harness import Harness
from metier.evaluate.stage import Answer, Perplexity, Score
from metier.export.stage import Merge
from metier.synthesize.stage import Recall, Rehearse
from metier.synthesize.synthesis import Synthesize
from metier.train.stage import Pretrain, Tune

STAGES: tuple[type[Stage], ...] = (
    Documents,
    Examples,
    Recall,
    Rehearse,
    Synthesize,
    Pretrain,
    Tune,
    Merge,
    Answer,
    Choose,
    Harness,
    Score,
    Perplexity,
)

CATALOGUE: dict[str, type[Stage]] = {stage.model_fields["kind"].default: stage for stage in STAGES}
"""Kind -> stage."""
