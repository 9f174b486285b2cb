"""The merge stage: an adapter and its base become one standalone model. Imports nothing heavy until it runs."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from metier.core.stage import Context, ModelRef, Source, Stage


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
