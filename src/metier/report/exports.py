"""What was exported, whether it is still the model that was tested, and what was tried when weights were mixed."""

import json
from dataclasses import dataclass
from typing import Any

from metier.report.collect import Row, Run, Step
from metier.report.wording import MISSING

HEAD = ("Form", "Format", "Chat ids", "Logits differ by", "At most", "Same first choice", "Greedy answers", "Ends")
MEANING = (
    "Every form of an exported model answered the same fixed prompts as the model before. Shown are the largest "
    "difference of any logit and the largest that passes, the share of positions that rank the same token first, the "
    "share of the greedy answers' tokens that are the same from the start on, and how many answers end by themselves "
    "of those that did before. A form past its limits would have stopped the step, and nothing would be here."
)


@dataclass(frozen=True)
class Exported:
    """One step. forms: a row of `HEAD` for each form. files: name and size. note: what was not compared, or empty."""

    step: str
    forms: tuple[tuple[str, ...], ...]
    files: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True)
class Mixed:
    """A step that mixed weights. sentence: what it came to. tries: weight, bits per byte, rise, interval, verdict."""

    step: str
    sentence: str
    tries: tuple[tuple[str, ...], ...]


METHODS = {"linear": "The average", "task_arithmetic": "Task arithmetic", "ties": "TIES"}
TRIED = ("Weight", "Bits per byte", "Above the base", "Interval", "")


def exports(run: Run) -> list[Exported]:
    """The export steps, in the recipe's order."""
    return [_exported(step) for step in run.steps if step.kind == "export"]


def mixtures(run: Run) -> list[Mixed]:
    """The steps that made one model of several."""
    return [_mixed(step) for step in run.steps if step.kind in ("combine", "residual", "interpolate")]


def _exported(step: Step) -> Exported:
    about = _object(step, "files", "about.json")
    here = _object(step, "measured", "parity.json").get("forms") or ()
    forms = [_form(row) for row in (*(about.get("forms") or ()), *here)]
    files = tuple((str(name), _size(size)) for name, size in (about.get("files") or {}).items())
    unseen = not here and any(name.endswith(".gguf") for name, _ in files)
    note = "llama.cpp was not installed: its own computation was not compared." if unseen else ""
    return Exported(step.name, tuple(forms), files, note)


def _form(row: Row) -> tuple[str, ...]:
    chats = int(row["chats"])
    return (
        str(row["form"]),
        str(row["format"]),
        ("equal" if row["same_ids"] else "differ") if chats else MISSING,
        f"{row['difference']:.2g}",
        f"{row['tolerance']:.2g}",
        f"{100 * row['same_top']:.1f} % of {row['positions']}",
        f"{100 * row['greedy']:.0f} %" if chats else MISSING,
        f"{row['stops']} of {row['of_stops']}" if chats else MISSING,
    )


def _mixed(step: Step) -> Mixed:
    about = _object(step, "files", "about.json")
    if step.kind == "combine":
        shares = ", ".join(f"{name} ({weight:.3g})" for name, weight in (about.get("weights") or {}).items())
        method = str(about.get("method", "")).removeprefix("combine, ")
        return Mixed(step.name, f"{METHODS.get(method, method)} of {shares}.", ())
    if step.kind == "residual":
        return Mixed(step.name, f"The instruction residual, with a weight of {about.get('weight'):g}.", ())
    tries = tuple(_try(row) for row in about.get("tries") or ())
    sentence = (
        f"Interpolated with the base: the strongest weight within the limit of {about.get('max_rise'):g} bits per byte "
        f"on {about.get('documents')} general documents is {about.get('weight'):g}."
    )
    return Mixed(step.name, sentence, tries)


def _try(row: Row) -> tuple[str, ...]:
    between = MISSING if row.get("low") is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
    word = "kept: within the limit" if row["within"] else "past the limit"
    return f"{row['weight']:g}", f"{row['bits_per_byte']:.4f}", f"{row['rise']:+.4f}", between, word


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _object(step: Step, part: str, name: str) -> dict[str, Any]:
    """A JSON object of the artifact; empty where the step wrote none."""
    folder = step.artifact.files if part == "files" else step.artifact.measured
    path = folder / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
