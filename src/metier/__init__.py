"""Metier teaches a small language model a trade.

From Python: `metier.init`, `metier.run`, `metier.model` (see `metier.api`), which are imported when first used.

Layers, imports only ever pointing right:
api > cli > report | serve | scale | track > pipeline > recipe > trial > stages
> data | tokenizer | synthesize | train | prune | export | evaluate | judge > engine > measure > models > text > core
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metier.api import Model, Run, init, model, run

__version__ = "0.1.0"
__all__ = ["Model", "Run", "init", "model", "run"]


def __getattr__(name: str) -> Any:
    """The names of `metier.api`, so that `import metier` costs nothing. Raises AttributeError for any other."""
    if name not in __all__:
        raise AttributeError(f"module 'metier' has no attribute {name!r}")
    from metier import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
