"""What a recipe may ask of export: `merge` an adapter, `export` a folder for others. Imports nothing heavy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from metier.core.errors import RecipeError, nearest
from metier.core.machine import Estimate, Machine
from metier.core.stage import Context, ModelRef, Needs, Source, Stage

if TYPE_CHECKING:
    from metier.export.card import Facts
    from metier.export.folder import Wanted

GgufName = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"]


class Merge(Stage):
    """Write an adapter into its base: a standalone model that needs neither. A model without one is passed through."""

    produces: ClassVar[str] = "model"

    kind: Literal["merge"] = "merge"
    """What this step does."""
    model: ModelRef
    """The model to merge: usually a step that trained an adapter."""
    dtype: Literal["base", "float32", "bfloat16"] = "base"
    """Number format of the written weights; `base`: bfloat16 where the base's files are, else float32."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise ModelError where the model, or the base of its adapter, is not whole."""
        from metier.models.builtin import base_link, check_folder, follow, is_adapter

        for folder in sources[self.model].paths:
            check_folder(folder)
            if is_adapter(folder):
                follow(base_link(folder), folder)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Merge, verify against the adapter, write. Metrics: parameters, bytes, and the largest logit differences."""
        from metier.export.merge import merge_model

        merged = merge_model(
            ctx.source(self.model).path, ctx.out, dtype=self.dtype, events=ctx.events, check_stop=ctx.check_stop
        )
        metrics: dict[str, float] = {"parameters": merged.total, "bytes": merged.bytes}
        if merged.parity is not None:
            metrics |= {"merged_difference": merged.parity.merged, "written_difference": merged.parity.written}
        return metrics


class Export(Stage):
    """A folder for other people's machines, proved to be the model that was tested.

    Holds the model for transformers, and on request GGUF files with a Modelfile for Ollama, and folders in 8 or 4 bits.
    Each form is asked the same prompts as the model before: where ids, logits or answers are past the format's
    tolerance, the step fails and nothing is published. The numbers stand on the model card, README.md.
    """

    produces: ClassVar[str] = "model"

    kind: Literal["export"] = "export"
    """What this step does."""
    model: ModelRef
    """The model to export; an adapter is merged into its base in float32 first."""
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Number format of the safetensors; `base`: that of the files it was made from."""
    gguf: list[GgufName] = Field([])
    """GGUF files to write, such as [F16, Q8_0]; the first one goes into the Modelfile. Needs the extra `gguf`; the
    K-quants (Q4_K_M ...) need `llamacpp` too."""
    bits: list[Literal["int8", "nf4"]] = Field([])
    """Folders for bitsandbytes: `int8` (8 bits), `nf4` (4 bits). Needs the extra `quant`."""
    scores: list[Annotated[str, Needs("scores")]] = Field([])
    """Steps whose scores of this model stand on the card, with their intervals."""
    title: str = ""
    """The card's heading; the model's name where nothing is given."""
    description: str = ""
    """What the model is for, in a sentence or two."""
    licence: str = ""
    """The licence that the model may be used under, such as apache-2.0. Left out, the card says that none is stated."""
    limits: list[str] = Field([])
    """What the model must not be used for or cannot do, a sentence each; they come before those that always hold."""
    watts: float | None = Field(None, gt=0)
    """What the machine that trained draws under load, in watts: the card then estimates the energy."""

    @field_validator("gguf", "bits", "scores")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("each may be named once")
        return value

    def check(self, sources: Mapping[str, Source]) -> None:
        """The model is whole, each format can hold it, what the formats need is installed, and the scores know it."""
        from metier.export.needs import check_installed

        check_installed(self.gguf, self.bits)
        for name in self.scores:
            for folder in sources[name].paths:
                scores_of(folder, name, self.model)
        for folder in sources[self.model].paths:
            from metier.export.folder import check_export

            check_export(folder, self.wanted())

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:
        """Memory, disk and a rough time, from the weights' headers."""
        from metier.export.estimate import export_estimate

        return export_estimate(sources[self.model], machine, dtype=self.dtype, gguf=self.gguf, bits=self.bits)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write, compare, write the card. Metrics: bytes, parameters, and the largest logit difference of each form."""
        from metier.export.card import measured_part
        from metier.export.folder import export_model
        from metier.export.history import history

        source = ctx.source(self.model).path
        known = history(source, self.model)
        made = export_model(
            source,
            ctx.out,
            self.wanted(),
            self.facts([(name, scores_of(ctx.source(name).path, name, self.model)) for name in self.scores]),
            known,
            scratch=ctx.scratch,
            events=ctx.events,
            check_stop=ctx.check_stop,
        )
        (ctx.measured / "card.md").write_text(measured_part(made.in_llamacpp, known, self.watts), encoding="utf-8")
        rows = [row.json() for row in made.in_llamacpp]
        (ctx.measured / "parity.json").write_text(json.dumps({"forms": rows}, indent=1) + "\n", encoding="utf-8")
        differences = {f"{row.form} difference": row.difference for row in made.rows}
        return {"parameters": made.parameters, "bytes": made.bytes, **differences}

    def wanted(self) -> "Wanted":
        """The formats."""
        from metier.export.folder import Wanted

        return Wanted(self.dtype, tuple(self.gguf), tuple(self.bits))

    def facts(self, scores: Sequence[tuple[str, Mapping[str, Any]]]) -> "Facts":
        """What the card tells. scores: (where from, contents of scores.json)."""
        from metier.export.card import Facts

        title = self.title or self.model.rstrip("/").rsplit("/", 1)[-1]
        return Facts(title, self.description, self.licence, tuple(self.limits), self.model, scores)


def scores_of(folder: Path, name: str, model: str) -> Mapping[str, Any]:
    """The contents of scores.json in a step's folder, which must hold scores of `model`. name: the step's."""
    scores: Mapping[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    known = list(dict.fromkeys(str(row["contender"]) for row in scores["rows"]))
    if model not in known:
        raise RecipeError(
            f"step {name!r} has no scores of the model {model!r}",
            where="scores",
            value=name,
            cure=f"score it there ({nearest(model, known)}), or leave that step out",
        )
    return scores
