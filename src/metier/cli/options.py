"""Arguments and options that several commands have, each written once."""

from pathlib import Path
from typing import Annotated

import typer

from metier.core.store import store_folder

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STEP.FIELD=VALUE", help="Override a value (YAML); may be given several times."),
]
StoreFolder = Annotated[
    Path,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        envvar="METIER_STORE",
        parser=store_folder,
        help="Where finished steps are kept: a folder, or s3://bucket/prefix.",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report and models are published.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", "-k", help="Read all files before saying what is wrong in them.")
]
OnlyStep = Annotated[str | None, typer.Option("--only", metavar="STEP", help="Only this step and those that it needs.")]
Variant = Annotated[
    str | None, typer.Option("--variant", metavar="NAME", help="One of the recipe's variants, such as best.")
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Every step, small: a stand-in for each model, no network, results of its own.")
]
STORE = Path(".metier")
OUT = Path("runs")
