"""`metier convert`: a pickled model, asked for by its file's name, as a folder with safetensors."""

from pathlib import Path

import typer


def convert_pickled(file: Path, out: Path) -> None:
    """Read the weights in `file`, and nothing else of it; write the model to `out`."""
    from metier.models.unpickle import convert

    count = convert(file, out)
    typer.echo(f"{count:,} parameters as safetensors in {out}")
