"""What a recipe may say about where rows come from and how they are mixed."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from metier.core.stage import Config, FilePattern, Needs
from metier.data.formats.hub import Hub
from metier.data.near import Near
from metier.data.shapes import check_mapping


class Origin(Config):
    """What all sources have in common."""

    path: FilePattern | None = None
    """File, folder or glob; of a folder, the files that can be read."""
    hub: Hub | None = None
    """A data set of the Hugging Face hub at one commit, or a local folder laid out like one, instead of a path."""
    keep: list[str] = Field(default_factory=list)
    """Further fields of the rows to carry along, as `meta`."""
    only: dict[str, str | list[str]] = Field(default_factory=dict)
    """Read only the rows in which these fields hold this value, or one of these: {split: train}."""
    weight: float | None = Field(None, gt=0)
    """How much of an epoch's tokens come from this source, beside the weights of the others: 3 and 1 are three quarters
    and one quarter. Left out for all sources, every row is read once an epoch. Give all of them one, or none."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Origin":
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source has either a `path` or a `hub` data set")
        return self


class TextSource(Origin):
    """Where documents come from."""

    field: str = Field("text", min_length=1)
    """The field of the rows that holds the text. .txt, .md, .html and .pdf files are one document each."""
    id_field: str = Field("id", min_length=1)
    """The field of the rows that holds their id, such as a PubMed number."""


class ExampleSource(Origin):
    """Where examples come from."""

    fields: dict[str, str] | None = None
    """Our field names to those of the rows, where they differ: {question: q, answer: a}. Several with ` + ` between
    them become one text: {answer: final_decision + LONG_ANSWER}."""

    @field_validator("fields")
    @classmethod
    def _known_names(cls, fields: dict[str, str] | None) -> dict[str, str] | None:
        if fields is not None:
            check_mapping(fields)
        return fields


class Duplicates(Config):
    """Which rows are superfluous because another one says the same."""

    exact: bool = True
    """Drop a row that repeats another one of its split."""
    near: Near | bool = False
    """Drop a row that is nearly another one. true: with the defaults. Takes about 1 KB of memory a row."""

    @property
    def wanted(self) -> Near | None:
        """The settings of near-duplicates, where they are looked for."""
        return (Near() if self.near else None) if isinstance(self.near, bool) else self.near


class TextReplay(Config):
    """General texts to mix in, against forgetting."""

    sources: list[TextSource] = Field(default_factory=list)
    """Where they come from."""
    step: Annotated[str, Needs("documents")] | None = None
    """A step whose documents they are instead, such as a `recall` step: what the base model itself has to say."""
    ratio: float = Field(0.1, gt=0, lt=1)
    """Their share of the tokens that are trained on."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TextReplay":
        if bool(self.sources) == (self.step is not None):
            raise ValueError("replay comes either from `sources` or from a `step`")
        return self


class ExampleReplay(Config):
    """General examples to mix in, against forgetting."""

    sources: list[ExampleSource] = Field(default_factory=list)
    """Where they come from."""
    step: Annotated[str, Needs("examples")] | None = None
    """A step whose examples they are instead, such as a `rehearse` step: what the base model itself answers."""
    ratio: float = Field(0.1, gt=0, lt=1)
    """Their share of the tokens that are trained on."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ExampleReplay":
        if bool(self.sources) == (self.step is not None):
            raise ValueError("replay comes either from `sources` or from a `step`")
        return self


class Refusals(Config):
    """Questions to be declined, each beside a harmless one that sounds alike and is answered.

    Refusals alone teach a small model to refuse whatever sounds alike: the twins are there to keep it helpful.
    """

    sources: list[ExampleSource] = Field(default_factory=list)
    """Examples to train on whose answers decline."""
    twins: list[ExampleSource] = Field(default_factory=list)
    """Harmless examples that sound alike, in the same order: one for each refusal."""
    share: float = Field(0.05, gt=0, lt=1)
    """Their share, twins included, of the tokens that are trained on."""
    test: list[ExampleSource] = Field(default_factory=list)
    """Unsafe prompts to measure with, each with an answer that declines. They make the split `refusals_test`, as the
    group `unsafe`, and are dropped from everything that is trained on."""
    test_twins: list[ExampleSource] = Field(default_factory=list)
    """Harmless prompts that sound alike, to measure with: the group `harmless` of that split."""

    @model_validator(mode="after")
    def _both_sides(self) -> "Refusals":
        for one, other in (("sources", "twins"), ("test", "test_twins")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                lacking = other if getattr(self, one) else one
                raise ValueError(
                    f"`{one}` and `{other}` go together, as a model that declines everything is no careful one: "
                    f"give `{lacking}` too"
                )
        if not self.sources and not self.test:
            raise ValueError("give `sources` and `twins` to train on, `test` and `test_twins` to measure with, or all")
        if not self.sources and "share" in self.model_fields_set:
            raise ValueError("share has no effect without `sources` and `twins` to train on: leave it out")
        return self

    @property
    def origins(self) -> list[ExampleSource]:
        """Every source that is named here."""
        return [*self.sources, *self.twins, *self.test, *self.test_twins]


def weights_agree(sources: list[TextSource] | list[ExampleSource]) -> None:
    """Raise ValueError unless all sources have a weight, or none."""
    weighted = sum(source.weight is not None for source in sources)
    if weighted not in (0, len(sources)):
        raise ValueError(f"{weighted} of {len(sources)} sources have a weight: give all of them one, or none")


def no_weights(name: str, sources: list[TextSource] | list[ExampleSource]) -> None:
    """Raise ValueError where a source has a weight that nothing would look at."""
    if any(source.weight is not None for source in sources):
        raise ValueError(f"a weight has no effect in `{name}`: only `sources` are drawn by weight")
