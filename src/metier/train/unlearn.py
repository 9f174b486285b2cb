"""The stage `unlearn`: what a recipe may ask of taking knowledge out of a model. Imports nothing heavy until it runs.

Not to be confused with refusal tuning, which teaches a model to decline: that changes what it says (behaviour), and it
still knows. Unlearning lowers the likelihood of the texts themselves (knowledge); asked about them, the model says
something else, and does not decline. `knowledge` measures what is left.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.errors import DataError, RecipeError
from metier.core.stage import Context, Needs, Source
from metier.train.known import cache_of, has_rows
from metier.train.stage import Prompted

if TYPE_CHECKING:
    from metier.text.chat import Tokenizer
    from metier.train.batches import Batches
    from metier.train.forgetting import Objective
    from metier.train.forward import Forward
    from metier.train.material import Material

BETA = {"npo": 0.1, "simnpo": 2.5}
"""The values of the papers' experiments on TOFU."""
WITHOUT = {
    "label_smoothing": 0.0,
    "neftune": None,
    "keep_best": False,
    "patience": None,
    "teacher": None,
}
"""Settings of training that would work against it, with the values that leave them off."""


class Unlearn(Prompted):
    """Make the model forget some texts, and keep the rest: the likelihood of `forget` falls, that of `retain` stays."""

    version: ClassVar[int] = 1
    data_field: ClassVar[str] = "forget"
    dev_split: ClassVar[str] = "heldout"

    kind: Literal["unlearn"] = "unlearn"
    """What this step does."""
    forget: Annotated[str, Needs("examples", "documents")]
    """The step whose training rows to forget: of examples the answers, of documents every token."""
    retain: Annotated[str, Needs("examples", "documents")]
    """The step whose training rows to keep, best of the kind that lies nearest to what is forgotten."""
    general: Annotated[str, Needs("documents", "examples")] | None = None
    """The step whose held-out texts (`heldout`, of examples `dev`) say when to stop. Left out: those of `retain`."""
    max_general_rise: float | None = Field(0.1, gt=0)
    """Stop once the loss on these has risen by more than this share of what it was, and go back to the last state in
    which it had not. null: never."""
    loss: Literal["npo", "gradient_difference", "simnpo"] = "npo"
    """npo: negative preference optimisation (arXiv 2404.05868), whose push fades as the texts become unlikely. simnpo:
    the same without a start model (arXiv 2410.07163). gradient_difference: ascent that never fades, for comparison."""
    beta: float | None = Field(None, gt=0)
    """How soon the push fades: larger is sooner. Left out: 0.1 for npo, 2.5 for simnpo."""
    gamma: float = Field(0.0, ge=0)
    """With simnpo: by how much the mean log-probability of a token is to fall further."""
    retain_weight: float = Field(1.0, gt=0)
    """What the mean loss of the retained tokens counts."""
    retain_each: int = Field(1, ge=1)
    """Rows to retain that are read beside each row to forget."""

    @model_validator(mode="after")
    def _agrees(self) -> "Unlearn":
        if self.beta is not None and self.loss not in BETA:
            raise ValueError(f"beta has no effect with `loss: {self.loss}`: leave it out")
        if self.gamma and self.loss != "simnpo":
            raise ValueError(f"gamma has no effect with `loss: {self.loss}`: leave it out, or use simnpo")
        if self.shard:
            raise ValueError("shard is not for unlearning: leave it out")
        for name, off in WITHOUT.items():
            if getattr(self, name) != off:
                raise ValueError(f"{name} works against forgetting: leave it out")
        return self

    @property
    def most_loss(self) -> float | None:
        """One more than the rise that is let pass."""
        return None if self.max_general_rise is None else 1 + self.max_general_rise

    @property
    def beside(self) -> float:
        """What is retained."""
        return self.retain_each / (1 + self.retain_each)

    def dev_source(self, sources: Mapping[str, Source]) -> tuple[Source, str]:
        """What says when to stop, by the kind of its step."""
        source = sources[self.general or self.retain]
        examples = any(has_rows(folder / "dev.jsonl") for folder in source.paths)
        return source, "dev" if examples else "heldout"

    def check(self, sources: Mapping[str, Source]) -> None:
        """As every training step; and what is forgotten is not what is kept."""
        for name in ("retain", "general"):
            if getattr(self, name) == self.forget:
                raise RecipeError(
                    "the same step cannot be forgotten and kept", where=name, value=self.forget, cure="name another"
                )
        super().check(sources)

    def check_dev(self, sources: Mapping[str, Source]) -> None:
        """There is something to stop by, unless nothing is to stop it."""
        if self.max_general_rise is not None or self.dev_every is not None:
            super().check_dev(sources)

    def refuse_without_dev(self) -> None:
        """Raise DataError unless nothing is asked of a general loss."""
        asked = "max_general_rise" if self.max_general_rise is not None else "dev_every"
        if getattr(self, asked) is not None:
            raise DataError(
                f"there is nothing to stop by: step {self.general or self.retain!r} has no held-out texts",
                where="general" if self.general else asked,
                value=getattr(self, asked),
                cure="name a `general` step with some, hold some of `retain` out, or set max_general_rise: null",
            )

    def material(self, tokenizer: "Tokenizer", length: int, ctx: Context) -> "Material":
        """Both sets and the general texts, those to forget marked."""
        from dataclasses import replace

        from metier.train.forgetting import to_forget
        from metier.train.material import unlearning

        self.dress(tokenizer, ctx.sources)
        dev, split = self.dev_source(ctx.sources)
        found = unlearning(
            ctx.source(self.forget).path,
            ctx.source(self.retain).path,
            dev.path,
            split,
            tokenizer,
            length=length,
            max_masked=self.max_masked,
            events=ctx.events,
            check_stop=ctx.check_stop,
            cache=cache_of(ctx),
        )
        return replace(found, pieces=tuple(map(to_forget, found.pieces)))

    def batches(self, material: "Material", micro_tokens: int | None) -> "Batches":
        """Each piece to forget with some to retain."""
        from metier.train.forgetting import Pairs

        return Pairs(
            material.pieces,
            (),
            0.0,
            None,
            self.batch_size,
            self.accumulation,
            self.seed,
            micro_tokens,
            retain=material.retain,
            each=self.retain_each,
        )

    def objective(
        self, forward: "Forward", material: "Material", micro_tokens: int, check_stop: Callable[[], None]
    ) -> "Objective":
        """The loss; for npo with what the model gave each piece before."""
        from metier.train.batches import micros
        from metier.train.forgetting import Objective, log_probabilities

        wants_start = self.loss == "npo"
        start = log_probabilities(forward, micros(material.pieces, micro_tokens), check_stop) if wants_start else {}
        return Objective(self.loss, self.beta or BETA.get(self.loss, 1.0), self.gamma, self.retain_weight, start)
