"""The command line. Each command's work is in a module of its own, imported when the command is called.

Exit codes: 0 done, 1 something failed, 2 the input is wrong and nothing was written, 75 stopped on request (the same
command goes on), 130 stopped at once. Nothing here imports torch; `chat` and `doctor` do, when called.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from metier.cli import environment
from metier.cli.options import (
    OUT,
    STORE,
    KeepGoing,
    OnlyStep,
    OutFolder,
    Overrides,
    RecipeFile,
    Smoke,
    StoreFolder,
    Variant,
)
from metier.core.errors import MetierError

app = typer.Typer(
    help="Teach a small language model a trade: one recipe from raw text to a measured specialist.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command that the arguments name; deliberate errors go to stderr, without a traceback."""
    environment.set_defaults()
    try:
        app()
    except MetierError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    only: OnlyStep = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print the recipe with every default instead.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="8xH100", help="What training would take there, instead: memory, speed, time."
        ),
    ] = None,
    variant: Variant = None,
    smoke: Smoke = False,
) -> None:
    """Say what a run would do, and why. Writes no artifact."""
    from metier.cli.plan import show_plan, show_resolved
    from metier.trial.reshape import Trial

    if cluster is not None:
        from metier.cli.cluster import show_cluster

        show_cluster(recipe, overrides or [], store, only, Trial(variant, smoke), cluster)
    elif resolved:
        show_resolved(recipe, overrides or [], Trial(variant, smoke))
    else:
        show_plan(recipe, overrides or [], store, only, Trial(variant, smoke))


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    out: OutFolder = OUT,
    only: OnlyStep = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and the report's path.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every event as a line of JSON.")] = False,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", metavar="TRACKER", help="tensorboard or wandb (offline); may be given several times."),
    ] = None,
    keep_going: KeepGoing = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes", metavar="N", min=0, help="Stop at a safe point after so long, with exit code 75."
        ),
    ] = None,
    variant: Variant = None,
    smoke: Smoke = False,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", min=1, help="Train with so many processes on this machine."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CLUSTER", help="Run on Ray: local, auto, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="True sizes, random weights, a few steps: memory and time, measured.")
    ] = False,
    tokenizers: Annotated[
        Path | None, typer.Option("--tokenizers", metavar="DIR", help="Of --rehearse: a folder of tokenizers.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", metavar="N", min=1, help="Of --rehearse: so many, not as many as fit.")
    ] = None,
) -> None:
    """Run a recipe: what is made already is kept. Then publish its report. Run it again after a stop: it goes on."""
    from metier.cli.run import Mode, run_recipe
    from metier.trial.reshape import Trial

    if quiet and json:
        raise typer.BadParameter("give --quiet or --json, not both")
    if not rehearse and (tokenizers is not None or layers is not None):
        raise typer.BadParameter("--tokenizers and --layers belong to --rehearse")
    if rehearse:
        from metier.cli.rehearse import rehearse_recipe

        if smoke or json or only is not None or track or keep_going or max_minutes is not None or processes or on:
            raise typer.BadParameter("--rehearse goes with --set, --variant, --store, --out, --quiet alone")
        made = rehearse_recipe(
            recipe, overrides or [], store, out, trial=Trial(variant), tokenizers=tokenizers, layers=layers, quiet=quiet
        )
        typer.echo(str(made) if quiet else f"Rehearsal: {made}")
        return
    mode: Mode = "quiet" if quiet else "json" if json else "auto"
    run_recipe(
        recipe,
        overrides or [],
        store,
        out,
        only,
        mode,
        track or [],
        keep_going=keep_going,
        max_minutes=max_minutes,
        trial=Trial(variant, smoke),
        processes=processes,
        on=on,
    )


@app.command()
def fetch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    variant: Variant = None,
    look: Annotated[bool, typer.Option("--look", help="Only say what would be fetched, and whether it fits.")] = False,
) -> None:
    """Fetch a recipe's models from the hub, once, after looking whether they fit (HF_HUB_OFFLINE=0)."""
    from metier.cli.fetch import fetch_recipe
    from metier.trial.reshape import Trial

    fetch_recipe(recipe, overrides or [], store, trial=Trial(variant), only_look=look)


@app.command()
def ablate(
    recipe: RecipeFile,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="STEP", help="Leave this out; may be given several times.")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Leave out every step that can be, one at a time.")] = False,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    out: OutFolder = OUT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and the table's path.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every event as a line of JSON.")] = False,
    variant: Variant = None,
    smoke: Smoke = False,
) -> None:
    """Run a recipe without a step, all else from the store, and set the results beside the full run."""
    from metier.cli.ablate import run_ablations
    from metier.cli.run import Mode
    from metier.trial.reshape import Trial

    if quiet and json:
        raise typer.BadParameter("give --quiet or --json, not both")
    mode: Mode = "quiet" if quiet else "json" if json else "auto"
    trial = Trial(variant, smoke)
    run_ablations(recipe, overrides or [], store, out, without or [], mode, each=each, trial=trial)


@app.command()
def status(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    variant: Variant = None,
    smoke: Smoke = False,
) -> None:
    """Show what each step last made: when, how long it took, its metrics, and whether it is up to date."""
    from metier.cli.plan import show_status
    from metier.trial.reshape import Trial

    show_status(recipe, overrides or [], store, Trial(variant, smoke))


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    keep_going: KeepGoing = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with more examples, token by token.")
    ] = None,
    variant: Variant = None,
    smoke: Smoke = False,
) -> None:
    """Check a recipe and all its data, and show which tokens train. Loads no weights, runs no step."""
    from metier.cli.check import check_recipe
    from metier.trial.reshape import Trial

    check_recipe(recipe, overrides or [], store, keep_going=keep_going, html=html, trial=Trial(variant, smoke))


@app.command()
def init(
    data: Annotated[
        list[str] | None, typer.Argument(metavar="DATA...", help="Files, folders or globs with your texts.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option("--model", help="The model to start from.")] = "seedling",
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="RECIPE", help="Copy a recipe that ships, with its data."),
    ] = None,
) -> None:
    """Look at your data and write a commented recipe that runs; or start from one that ships."""
    from metier.cli.init import write_recipe
    from metier.cli.like import write_like

    if (like is None) == (not data):
        raise typer.BadParameter("name your data, or a recipe with --like: one of the two")
    if like is not None:
        write_like(like, out)
    else:
        write_recipe(data or [], out, model)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from metier.cli.schema import show_schema

    show_schema()


@app.command()
def report(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    out: OutFolder = OUT,
    variant: Variant = None,
    smoke: Smoke = False,
) -> None:
    """Publish the report again from what the store holds."""
    from metier.cli.report import report_again
    from metier.trial.reshape import Trial

    report_again(recipe, overrides or [], store, out, Trial(variant, smoke))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A folder in runs/, a recipe, recipe/step, recipe/contender.")],
    b: Annotated[str, typer.Argument(metavar="B", help="As A. Differences are A minus B.")],
    store: StoreFolder = STORE,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page too.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write JSON too.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a spreadsheet's CSV too.")] = None,
) -> None:
    """Compare any two, item by item, where they were asked the same: intervals, paired tests, verdicts."""
    from metier.cli.compare import compare_two

    compare_two(a, b, store, html=html, json_file=json, csv_file=csv)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="recipe/step, a folder, or a built-in model.")],
    ask: Annotated[str | None, typer.Option("--ask", metavar="QUESTION", help="Answer this and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told first.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: always the likeliest.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Draw among the likeliest alone.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End an answer there; may be given several times."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="A,B", help="Put each question to these models too.")
    ] = None,
    store: StoreFolder = STORE,
) -> None:
    """Talk with a model, or with several side by side. /quit ends, /clear forgets, /system TEXT says what to be."""
    from metier.cli.chat import Settings, start_chat

    settings = Settings(system, temperature, max_new_tokens, top_p, seed, tuple(stop or ()))
    others = [name.strip() for name in (compare or "").split(",") if name.strip()]
    start_chat([model, *(name for name in others if name != model)], store, settings, ask)


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="recipe/step, a folder, a built-in model, or NAME=one of these."),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; others than this machine need METIER_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A further name that this server is called by."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto, fp32, bf16, or int8 (half the memory of bf16).")
    ] = "auto",
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests of a model answered at a time.")] = 8,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Requests that may wait; more get 429.")] = 64,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 2048,
    max_prompt_tokens: Annotated[
        int | None, typer.Option("--max-prompt-tokens", min=1, help="The longest prompt.")
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1000, help="Bytes of a request.")] = 1_000_000,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=1, help="An answer's time.")] = 300.0,
    store: StoreFolder = STORE,
    out: OutFolder = OUT,
) -> None:
    """Serve models on this machine: OpenAI's protocol, and a web page to talk with them and to read their reports."""
    from metier.cli.serve import Settings, serve_models

    if dtype not in ("auto", "fp32", "bf16", "int8"):
        raise typer.BadParameter("auto, fp32, bf16 or int8", param_hint="--dtype")
    settings = Settings(host, port, tuple(allow_host or ()), dtype, slots, waiting)  # type: ignore[arg-type]
    limits = {
        "body_bytes": max_body,
        "prompt_tokens": max_prompt_tokens,
        "new_tokens": max_new_tokens,
        "seconds": max_seconds,
    }
    serve_models(models, store, out, settings, limits)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="recipe/step, a folder, or a built-in model.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make.")],
    gguf: Annotated[
        list[str] | None,
        typer.Option("--gguf", metavar="TYPE", help="F32, F16, BF16, Q8_0, Q4_0, Q4_K_M ...; several times."),
    ] = None,
    bits: Annotated[
        list[str] | None, typer.Option("--bits", metavar="KIND", help="int8 or nf4; several times.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the safetensors: float32, bfloat16, float16.")] = "base",
    scores: Annotated[
        list[str] | None,
        typer.Option("--scores", metavar="RECIPE/STEP", help="Scores for the model card; several times."),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="The model card's heading.")] = "",
    description: Annotated[str, typer.Option("--description", help="What the model is for.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="What it may be used under, such as apache-2.0.")] = "",
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="What it must not be used for; several times.")
    ] = None,
    watts: Annotated[float | None, typer.Option("--watts", help="What the training machine draws under load.")] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Upload to the hub too (HF_TOKEN, HF_HUB_OFFLINE=0)."),
    ] = None,
    store: StoreFolder = STORE,
) -> None:
    """Write a folder for others (transformers, llama.cpp, Ollama), proved to be the same model, with a model card."""
    from metier.cli.export import export_folder

    settings = {
        "gguf": gguf or [],
        "bits": bits or [],
        "dtype": dtype,
        "title": title,
        "description": description,
        "licence": licence,
        "limits": limit or [],
        "watts": watts,
    }
    export_folder(model, out, store, settings, scores=scores or [], push=push)


@app.command()
def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    store: StoreFolder = STORE,
    step: Annotated[str | None, typer.Option("--step", metavar="STEP", help="The judge step, where several.")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Where labels go; else the calibrate step's file.")
    ] = None,
    who: Annotated[str | None, typer.Option("--who", metavar="NAME", help="Whose labels they are.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many answers to label.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sample; one for all who label the same.")] = 0,
    web: Annotated[bool, typer.Option("--web", help="In the browser, on this machine alone.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the browser's form; 0: a free one.")] = 0,
) -> None:
    """Label a sample of judged answers yourself, so that judges can be held against you."""
    from metier.cli.label import start

    start(
        recipe,
        overrides or [],
        store,
        step=step,
        labels=labels,
        who=who,
        count=count,
        seed=seed,
        web=web,
        port=port,
    )


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pickled file of weights: .bin, .pt, .pth, .ckpt.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the model is written.")],
) -> None:
    """Make safetensors of pickled weights. Whatever else the pickle would do is not done."""
    from metier.cli.convert import convert_pickled

    convert_pickled(file, out)


@app.command()
def doctor(store: StoreFolder = STORE) -> None:
    """Say what this machine can do, and keep its speeds for `plan`."""
    from metier.cli.doctor import examine

    examine(store)


store_app = typer.Typer(help="Look after the store.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command("verify")
def store_verify(
    store: StoreFolder = STORE,
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete what is damaged: the next run makes it again.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Hash everything in the store again: exit code 1 where something is not as it was written."""
    from metier.cli.store import verify_store

    verify_store(store, remove=remove, as_json=json)


@app.command()
def gc(
    store: StoreFolder = STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also what stopped steps would go on from: their work is lost.")
    ] = False,
) -> None:
    """Delete what no recipe's last run reaches."""
    from metier.cli.gc import clear_store

    clear_store(store, dry_run=dry_run, unfinished=unfinished)


@app.command()
def version() -> None:
    """Print the version."""
    from metier import __version__

    typer.echo(__version__)
