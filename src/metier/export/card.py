"""The model card: README.md of an exported folder. Says what is known, and what is not.

Everything in `card` is a function of the model and its inputs; what depends on this machine (seconds, energy, what
llama.cpp computed) is a part of its own, `measured_part`, which is added where the folder is handed over. Strings of
others cannot become markup: their signs are escaped.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.export.history import Ancestor, History
from metier.export.parity import Row

CARD = "README.md"
_SIGNS = re.compile(r"[\\`*\[\]<>#|~$]")
_SPACES = re.compile(r"\s+")
MISSING = "–"


@dataclass(frozen=True)
class Facts:
    """What the card tells beside the measurements. licence: an identifier such as apache-2.0, or empty.

    scores: (step, contents of its scores.json). contender: the model's name in them.
    """

    title: str
    description: str = ""
    licence: str = ""
    limits: Sequence[str] = ()
    contender: str = ""
    scores: Sequence[tuple[str, Mapping[str, Any]]] = ()


@dataclass(frozen=True)
class Shape:
    """What was written. files: name -> (what it is, bytes). refused: what was left out, and why."""

    kind: str
    parameters: int
    dtype: str
    context: int
    chat: str
    files: Mapping[str, tuple[str, int]]
    refused: Sequence[str] = field(default_factory=tuple)


def plain(value: object) -> str:
    """A string of somebody's as Markdown that shows it and does nothing else, on one line."""
    text = _SPACES.sub(" ", str(value)).strip()
    return _SIGNS.sub(lambda match: f"&#{ord(match[0])};", text)


def card(facts: Facts, shape: Shape, known: History, rows: Sequence[Row]) -> str:
    """The card's text."""
    parts = [_front(facts), f"# {plain(facts.title)}", plain(facts.description), *_what(shape, known)]
    parts += [*_use(shape), *_data(known), *_training(known), *_scores(facts)]
    parts += ["## Is it still the model that was tested?", parity_table(rows), _MEANING]
    parts += _limits(facts, shape, known)
    parts += ["## Licence", _licence(facts, known)]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured_part(rows: Sequence[Row], known: History, watts: float | None) -> str:
    """What one machine measured, to stand at the end of the card. watts: what it draws under load, where known."""
    parts = ["## Time and energy", *_energy(known, watts)]
    if rows:
        parts += ["## In llama.cpp", parity_table(rows)]
    else:
        parts += ["llama.cpp was not installed where this was made: its own computation was not compared."]
    return "\n\n".join(parts) + "\n"


def _front(facts: Facts) -> str:
    licence = f"license: {facts.licence}\n" if re.fullmatch(r"[\w.+-]+", facts.licence) else ""
    return f"---\n{licence}library_name: transformers\npipeline_tag: text-generation\n---"


def _what(shape: Shape, known: History) -> Iterator[str]:
    made = " and ".join(dict.fromkeys(plain(name) for name in known.outside)) or "a model of unknown origin"
    yield (
        f"A {plain(shape.kind)} language model of {shape.parameters:,} parameters ({shape.dtype}), made from {made}. "
        f"It reads at most {shape.context:,} tokens."
    )
    yield "## Files"
    yield table(["File", "What it is", "Bytes"], ((n, what, f"{size:,}") for n, (what, size) in shape.files.items()), 2)
    for why in shape.refused:
        yield plain(why)


def _use(shape: Shape) -> Iterator[str]:
    yield "## How to use it"
    yield (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'chat = [{"role": "user", "content": "..."}]\n'
        'ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))\n```"
    )
    if any(name.endswith("Modelfile") for name in shape.files):
        yield "With Ollama, in the folder `gguf`: `ollama create NAME -f Modelfile`, then `ollama run NAME`."
    yield f"A chat is written so, and its answer follows:\n\n{_fenced(shape.chat)}"


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _data(known: History) -> Iterator[str]:
    yield "## Data"
    steps = [step for step in known.steps if step.produces in ("documents", "examples")]
    if not steps:
        yield "No record says what the model has read."
        return
    rows = [[s.step, s.kind, ", ".join(_sources(s.config)) or MISSING, _counts(s)] for s in steps]
    yield table(["Step", "Kind", "From", "Kept"], rows)


def _sources(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of files and data sets that a step read, without the folders of this machine."""
    for part in ("sources", "dev", "test", "heldout"):
        for one in config.get(part) or ():
            if isinstance(one, Mapping):
                name = next((str(one[key]) for key in ("path", "hub", "file") if one.get(key)), "")
                yield name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) or "." in name else name


def _counts(step: Ancestor) -> str:
    counts = step.about.get("counts") or {}
    return ", ".join(f"{name} {number:,}" for name, number in counts.items() if isinstance(number, int)) or MISSING


def _training(known: History) -> Iterator[str]:
    yield "## Training"
    steps = [step for step in known.steps if step.produces == "model"]
    if not steps:
        yield "No record says how the model was trained."
        return
    rows = []
    for step in steps:
        loss = step.about.get("dev_loss") or {}
        rows.append(
            [
                step.step,
                f"{step.kind}, {step.about.get('method', MISSING)}",
                _number(step.about.get("learning_rate")),
                _count(step.about.get("steps")),
                _count(step.about.get("tokens_seen")),
                f"{loss['before']:.3f} to {loss['best']:.3f}" if loss.get("best") is not None else MISSING,
            ]
        )
    yield table(["Step", "Method", "Peak learning rate", "Steps", "Tokens seen", "Dev loss"], rows, 2)


def _scores(facts: Facts) -> Iterator[str]:
    yield "## Scores"
    rows = []
    confidence = 0.95
    for step, scores in facts.scores:
        confidence = float(scores.get("confidence", confidence))
        for row in scores.get("rows") or ():
            if row["contender"] == facts.contender and row["group"] in ("all", "clean"):
                rows.append(
                    [step, row["metric"], row["group"], row["n"], _score(row["mean"]), _interval(row), _versus(row)]
                )
    if not rows:
        yield "Nothing was scored: this card holds no evidence that the model is good at anything."
        return
    head = ["Scored by", "Metric", "Questions", "n", "Mean", f"{confidence:.0%} interval", "Against"]
    yield table(head, rows, 3)


def _interval(row: Mapping[str, Any]) -> str:
    return MISSING if row.get("low") is None else f"{_score(row['low'])} to {_score(row['high'])}"


def _versus(row: Mapping[str, Any]) -> str:
    said = [f"{v['against']}: {v['difference']:+.3f} ({_interval(v)}), {v['verdict']}" for v in row.get("versus") or ()]
    return "; ".join(said) or MISSING


_MEANING = (
    "Each form was asked the same prompts as the model before export; GGUF files and folders in fewer bits are held "
    "against the written safetensors, from which they are made. Logits: the largest difference of any, at every "
    "position, beside the largest that passes. First choice: positions that rank the same token first. Greedy: tokens "
    "of the greedy answers that are the same from the start on. Ends: answers that end by themselves, of those that "
    "did before. Ids: every rendered chat has the token ids that the model was trained to answer after."
)


def parity_table(rows: Sequence[Row]) -> str:
    """The gate's numbers."""
    head = ["Form", "Format", "Ids", "Logits", "May differ by", "Largest logit", "First choice", "Greedy", "Ends"]
    return table(
        head,
        (
            [
                row.form,
                row.format,
                "equal" if row.same_ids else "differ",
                f"{row.difference:.2g}",
                f"{row.tolerance:.2g}",
                f"{row.largest:.3g}",
                f"{row.same_top:.1%} of {row.positions}",
                f"{row.greedy:.0%}" if row.chats else MISSING,
                f"{row.stops} of {row.of_stops}" if row.chats else MISSING,
            ]
            for row in rows
        ),
        3,
    )


def _limits(facts: Facts, shape: Shape, known: History) -> Iterator[str]:
    found = [*facts.limits]
    if not facts.scores:
        found.append("Nothing was scored.")
    found.append(
        "A small model writes fluent sentences that are wrong. Do not act on an answer that nobody has checked."
    )
    if known.outside:
        found.append("What the model it was made from has read is not known here.")
    if any(name.startswith("gguf/") for name in shape.files):
        found.append(
            "Programs that read GGUF take special tokens in a user's message for what they are; Metier reads them as "
            "text."
        )
    yield "## Limits"
    yield "\n".join(f"- {plain(limit)}" for limit in found)


def _licence(facts: Facts, known: History) -> str:
    if facts.licence:
        return plain(facts.licence)
    of = f" Those of {', '.join(plain(name) for name in known.outside)} hold for it too." if known.outside else ""
    return f"Not stated by whoever exported it.{of}"


def _energy(known: History, watts: float | None) -> Iterator[str]:
    steps = [step for step in known.steps if step.produces == "model" and step.seconds]
    if not steps:
        yield "No record says how long training took, so its energy is not known."
        return
    total = sum(step.seconds for step in steps)
    rows = [[s.step, s.kind, _machine(s), f"{s.seconds:,.1f}"] for s in steps]
    yield table(["Step", "Kind", "Machine", "Seconds"], rows, 3)
    if watts is None:
        yield f"{total:,.1f} s in all. Energy was not measured: nothing here reads a meter, and no power was stated."
    else:
        yield (
            f"{total:,.1f} s in all; at the {watts:g} W that whoever exported it states for the machine under load, "
            f"that is {total * watts / 3600:,.3g} Wh. An estimate: no meter was read."
        )


def _machine(step: Ancestor) -> str:
    known = step.record.get("machine") or {}
    return f"{known.get('processor', MISSING)}, {known.get('cores', MISSING)} cores"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: int = 99) -> str:
    """A table; the columns from `right` on hold numbers."""
    lines = ["| " + " | ".join(plain(name) for name in head) + " |"]
    lines.append("|" + "|".join("---" if i < right else "---:" for i in range(len(head))) + "|")
    lines += ["| " + " | ".join(plain(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else MISSING


def _score(value: float) -> str:
    return f"{value:.3f}"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else MISSING


def sizes(folder: Path, names: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Each file of `names` that is there (or all below it, for a folder), what it is, and its bytes."""
    found = {}
    for name, what in names.items():
        path = folder / name
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
        if files:
            found[name] = (what, sum(p.stat().st_size for p in files))
    return found
