"""Write the pages of docs/ that come from the program and from what was measured: `python -m tools.pages`.

One page a stage with all its settings (docs/stages/), the table of machines, memory and time in docs/hardware.md, that
of clusters in docs/scale.md, and the list of decisions in docs/design.md.
"""

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from metier.core.described import table
from metier.core.machine import Machine
from metier.core.stage import Stage
from metier.stages import CATALOGUE
from metier.train.cluster import fewest, layouts, parse, total_seconds
from metier.train.methods import Lora, LoraMethod
from metier.train.sizes import Job, Reading, Shape

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BEGIN, END = "<!-- made -->\n", "<!-- end of made -->\n"
TOPICS = ("main-job", "training")
UNITS = ("GB", "s")


def inside(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes with settings of their own that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from inside(part)


def nested(config: type[BaseModel]) -> dict[type[BaseModel], str]:
    """Class -> the setting under which it is first written, such as `method` or `sources.fields`, the outer first."""
    found: dict[type[BaseModel], str] = {}
    waiting = [(config, "")]
    while waiting:
        parent, path = waiting.pop(0)
        for name, field in parent.model_fields.items():
            for child in inside(field.annotation):
                if child not in found and child is not config:
                    found[child] = f"{path}{name}"
                    waiting.append((child, f"{path}{name}."))
    return found


def first_line(stage: type[BaseModel]) -> str:
    """What a class is for, in one sentence."""
    text = " ".join((stage.__doc__ or "").split("\n\n")[0].split())
    return text.replace("|", "\\|")


def stage_page(kind: str, stage: type[Stage]) -> str:
    """The page of one kind."""
    parts = [f"# {kind}\n", first_line(stage) + "\n", f"Makes: {stage.produces}.\n", table(stage)]
    for child, path in nested(stage).items():
        parts += [f"## Under `{path}`: {child.__name__}\n", first_line(child) + "\n", table(child)]
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Path below docs/ -> text, of all pages that are written whole."""
    kinds = "".join(f"| [{kind}]({kind}.md) | {first_line(CATALOGUE[kind])} |\n" for kind in CATALOGUE)
    head = "# Stages\n\nWhat a recipe's `kind` can be; a page each, with every setting.\n\n| kind | |\n|---|---|\n"
    return {
        "stages/index.md": head + kinds,
        **{f"stages/{kind}.md": stage_page(kind, CATALOGUE[kind]) for kind in CATALOGUE},
    }


def hardware() -> str:
    """docs/hardware.md with its table as `benchmarks/results/` has it."""
    lines = ["| what | measured | machine | date | command |", "|---|---|---|---|---|"]
    for topic in TOPICS:
        for row in json.loads((ROOT / "benchmarks" / "results" / f"{topic}.json").read_text(encoding="utf-8")):
            if row["unit"] in UNITS:
                measured = f"{row['measured']:.3g} {row['unit']}"
                cells = (row["case"], measured, row["hardware"], row["date"], f"`{row['command']}`")
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return filled("hardware.md", lines)


LLAMA = {"model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": False, "max_position_embeddings": 8192}
SHAPES: dict[str, dict[str, object]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    | {"num_key_value_heads": 4, "vocab_size": 32_000},
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128_256},
    "70B": {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8, "vocab_size": 128_256},
}
"""TinyLlama's, Llama 3.1 8B's and 70B's."""
CLUSTERS = ("1xRTX4090", "1xH100", "8xA100", "8xH100", "4x8xH100")
WAYS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "LoRA": {"method": LoraMethod(lora=Lora(r=16))},
    "LoRA, 4bit": {"method": LoraMethod(lora=Lora(r=16)), "quantize": "4bit"},
}
TOKENS, WINDOW, LENGTH = 1e9, 64, 4096


def clusters() -> str:
    """docs/scale.md with its table of what training 1B, 8B and 70B models takes, by `metier.train.cluster`."""
    lines = [
        "| model | method | on | layout | memory a device | tokens/s | hours for 10^9 tokens | bound by |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    machine = Machine(0.0, "cuda", "bf16")
    reading = Reading(TOKENS, TOKENS, 1, TOKENS / WINDOW / LENGTH, WINDOW * LENGTH, 1, LENGTH, True, TOKENS / LENGTH)
    for name, sizes in SHAPES.items():
        shape = Shape.of(LLAMA | sizes)
        assert shape is not None
        for way, settings in WAYS.items():
            for text in CLUSTERS:
                cluster = parse(text, machine, 1)
                job = Job(shape, precision="bf16", device="cuda", **settings)
                found = layouts(job, reading, cluster, machine)
                if found:
                    one = found[0]
                    told = f"{one.words} | {one.memory / 1e9:.0f} GB | {one.speed:,.0f} "
                    told += f"| {total_seconds(one, reading) / 3600:,.1f} | {one.bound}"
                else:
                    enough = fewest(job, reading, cluster, machine)
                    told = f"does not fit: {enough.count if enough else 'no number'} would | | | |"
                lines.append(f"| {name} | {way} | {text} | {told} |")
    return filled("scale.md", lines)


def decisions() -> str:
    """docs/design.md with the heading of each file in design/."""
    lines = []
    for path in sorted((ROOT / "design").glob("*.md")):
        heading = path.read_text(encoding="utf-8").splitlines()[0]
        lines.append(f"- `design/{path.name}`: " + re.sub(r"^# (?:\d+\.? )?", "", heading))
    return filled("design.md", lines)


def filled(page: str, lines: list[str]) -> str:
    """A page with these lines between its marks."""
    before, rest = (DOCS / page).read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + rest[rest.index(END) :]


def main() -> None:
    (DOCS / "stages").mkdir(exist_ok=True)
    for name, text in {**pages(), "hardware.md": hardware(), "scale.md": clusters(), "design.md": decisions()}.items():
        (DOCS / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
