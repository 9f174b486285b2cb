"""Everything collected -> one self-contained HTML file.

The page asks for nothing: no font, no image, nothing from anywhere. Its content security policy names the one style
sheet and the one script (it sorts the leaderboard) by their sha256, so nothing else runs or is fetched, handlers and
style attributes included. jinja2 escapes every value, and every value passes `wording.visible` first, so a model's
text stays text.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from metier.core.fingerprint import Json
from metier.report import lineage, sections, wording
from metier.report.collect import Run, Step
from metier.report.exports import HEAD, MEANING, TRIED, exports, mixtures
from metier.report.gallery import LENGTH_BINS, gallery
from metier.report.judges import columns, judged
from metier.report.knowing import knowing
from metier.report.leaderboard import TIE_RULE, Board, final_model
from metier.report.outcome import outcome
from metier.report.plots import legend_marker
from metier.report.pruned import CONDITIONS, SIZES, pruned
from metier.report.refusing import refusing
from metier.report.samples import RIGHT, WRONG, choose
from metier.report.seen import contamination
from metier.report.standing import standing
from metier.report.synthesized import CATEGORIES, browse, known, synthesized
from metier.report.vocabularies import ablation, vocabularies

TEMPLATES = Path(__file__).parent / "templates"
TEXT_LIMIT = 700
"""Characters shown of a question, a reference or an answer."""


@dataclass(frozen=True)
class Done:
    """A step as a row of `what was done`."""

    step: Step
    settings: tuple[tuple[str, str], ...]
    trained: int | None
    total: int | None
    tokens: int | None
    seconds: float | None


def environment(label: Callable[[str], str]) -> jinja2.Environment:
    """The templates with their filters; every value is escaped, and spelt out where it hides. label: a model's name."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=wording.number,
        interval=wording.interval,
        count=wording.count,
        short=wording.short_count,
        duration=wording.duration,
        memory=wording.memory,
        p=wording.probability,
        capitalize_first=lambda text: text[:1].upper() + text[1:],
        verdict_mark=wording.verdict_mark,
        group_title=lambda name: wording.group(name)[0],
        clip=lambda text: wording.cut(text, TEXT_LIMIT),
        mark=legend_marker,
        signed=wording.signed,
        label=label,
    )
    made.globals.update(style=_own("style.css"), script=_own("sort.js"), policy=policy())
    return made


def _own(name: str) -> Markup:
    """A file of ours, as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704


def policy() -> str:
    """The page's content security policy: our style and our script, by their contents, and nothing else at all."""
    found = {}
    for name in ("style.css", "sort.js"):
        content = (TEMPLATES / name).read_text(encoding="utf-8")
        found[name] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{found['style.css']}'; script-src 'sha256-{found['sort.js']}'; "
        "base-uri 'none'; form-action 'none'"
    )


def render(run: Run, board: Board) -> str:
    """The page."""
    final = final_model(run)
    return (
        environment(run.label)
        .get_template("report.html.j2")
        .render(
            run=run,
            board=board,
            final=final,
            outcome=outcome(run, board),
            standing=standing(board),
            gallery=gallery(run, board),
            length_bins=LENGTH_BINS,
            confidence=board.scores.confidence if board.scores else 0.95,
            metric=wording.metric(board.metric) if board.metric else None,
            tie_rule=TIE_RULE,
            headline=sections.headline(run, board),
            picture=lineage.picture(_boxes(run, board, final)),
            done=[_done(step) for step in run.steps],
            better=sections.blocks(run, board, of_text=False),
            forgotten=sections.blocks(run, board, of_text=True),
            training=sections.training(run),
            samples=choose(run, board),
            seen=contamination(run, board),
            vocabularies=vocabularies(run),
            ablation=ablation(run, {p.contender.name: str(p.role) for p in board.places}),
            judged=columns(run),
            judges=judged(run, board),
            made=synthesized(run),
            known=known(run),
            categories=tuple(CATEGORIES.values()),
            pruned=pruned(run),
            pruned_sizes=SIZES,
            pruned_conditions=CONDITIONS,
            refusing=refusing(run, board),
            refusing_blocks=sections.blocks_of(run, board, [s for s in run.scores if s.of_refusing]),
            knowing=knowing(run, board),
            thresholds=(RIGHT, WRONG),
            data=[step for step in run.steps if step.data],
            labels=[step for step in run.steps if step.training and step.training.about.get("labels")],
            warnings=[step for step in run.steps if step.warnings],
            machines=_shared(run, "machine"),
            versions=_shared(run, "versions"),
            recipe=_recipe(run),
            limits=sections.limits(run, board),
            exports=exports(run),
            mixtures=mixtures(run),
            export_words={"head": HEAD, "meaning": MEANING, "tried": TRIED},
        )
    )


def render_pairs(run: Run, step: Step) -> str:
    """The page on which the pairs of a step can be browsed."""
    parts, rejects = browse(step)
    template = environment(run.label).get_template("pairs.html.j2")
    return template.render(run=run, step=step, parts=parts, rejects=rejects)


def _finalize(value: Any) -> Any:
    """Every `{{ value }}` of the templates passes here; Markup is our own drawing, made of escaped parts."""
    if value is None:
        return wording.MISSING
    return value if isinstance(value, Markup) else wording.visible(str(value))


def _boxes(run: Run, board: Board, final: Step | None) -> list[lineage.Box]:
    roles = {p.contender.model: str(p.role) for p in board.places}
    if final:
        roles[final.name] = "specialist"
    outside = dict.fromkeys(
        i.value for s in run.steps for i in s.inputs if i.step is None and i.field.split(".")[0] in ("model", "models")
    )
    boxes = [
        lineage.Box(name, "outside model", (), roles.get(name, ""), outside=True, shown=run.label(name))
        for name in outside
    ]
    for step in run.steps:
        parents = tuple(dict.fromkeys(i.step or i.value for i in step.inputs))
        boxes.append(lineage.Box(step.name, _caption(step), parents, roles.get(step.name, "")))
    return boxes


def _caption(step: Step) -> str:
    method = step.settings.get("method")
    if method is None:
        return step.kind
    name = method if isinstance(method, str) else next((k for k, v in method.items() if v is not None), "")
    trained = _parameters(step)[0]
    return f"{step.kind} · {name}" + (f" · {wording.short_count(trained)} trained" if trained else "")


def _parameters(step: Step) -> tuple[int | None, int | None]:
    counts = (step.training.about.get("parameters") or {}) if step.training else {}
    return counts.get("trained"), counts.get("total")


def _done(step: Step) -> Done:
    """What reads other steps is in the picture, what is at its default in the recipe below: neither is repeated."""
    changed = _changed(step)
    wiring = {i.field.split(".")[0] for i in step.inputs if i.step is not None or i.field in ("model", "models")}
    settings = tuple(
        (name, wording.cut(wording.setting(value), 160)) for name, value in changed.items() if name not in wiring
    )
    trained, total = _parameters(step)
    about = step.training.about if step.training else {}
    return Done(step, settings, trained, total, about.get("tokens_seen"), step.record.get("seconds"))


def _changed(step: Step) -> dict[str, Json]:
    """The settings that are not the default. Field by field: some stages refuse even a default that is spelt out."""
    from metier.stages import CATALOGUE

    kind = CATALOGUE.get(step.kind)  # an older version's step may have a kind that is gone
    fields = kind.model_fields if kind else {}
    changed: dict[str, Json] = {}
    for name, value in step.settings.items():
        field = fields.get(name)
        if field is None or name == "kind":
            continue
        if not field.is_required() and value == to_jsonable_python(field.get_default(call_default_factory=True)):
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, field.annotation))
        try:
            changed[name] = adapter.dump_python(adapter.validate_python(value), mode="json", exclude_defaults=True)
        except ValidationError:  # of another version
            changed[name] = value
    return changed


def _shared(run: Run, part: str) -> list[tuple[list[str], dict[str, str]]]:
    """The distinct machines or version sets of the records, each with the steps that ran there."""
    found: list[tuple[list[str], dict[str, str]]] = []
    for step in run.steps:
        value = dict(_fact(str(k), v) for k, v in (step.record.get(part) or {}).items() if v is not None)
        same = next((steps for steps, known in found if known == value), None)
        if same is not None:
            same.append(step.name)
        elif value:
            found.append(([step.name], value))
    return found


def _fact(name: str, value: Json) -> tuple[str, str]:
    if name.endswith("_bytes") and isinstance(value, int):
        return name.removesuffix("_bytes"), wording.memory(value)
    return name, wording.setting(value)


def _recipe(run: Run) -> str:
    """The resolved recipe, defaults included."""
    head = {"name": run.recipe, **({"description": run.description} if run.description else {})}
    steps = {step.name: dict(step.settings) for step in run.steps}
    return yaml.safe_dump({**head, "steps": steps}, sort_keys=False, allow_unicode=True, width=100)
