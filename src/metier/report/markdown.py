"""The page's content as Markdown, for a model card: `report.md`.

Strings of others cannot become markup: names are escaped character by character, answers stand in fenced blocks whose
fence is longer than any run of its sign inside, and what hides is spelt out. Plots are left out; their numbers are in
the tables. A long text is cut as on the page.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from metier.report import sections, wording
from metier.report.collect import Run
from metier.report.exports import HEAD, MEANING, TRIED, exports, mixtures
from metier.report.judges import Facts, Section, columns, judged
from metier.report.knowing import Knowing, knowing
from metier.report.leaderboard import TIE_RULE, Board, final_model
from metier.report.outcome import Outcome, outcome
from metier.report.pruned import CONDITIONS, SIZES, Pruned, pruned
from metier.report.refusing import Refusing, Share, refusing
from metier.report.samples import Samples, choose
from metier.report.seen import Seen, contamination
from metier.report.synthesized import CATEGORIES, Known, Made, known, synthesized
from metier.report.vocabularies import ablation, vocabularies
from metier.report.wording import cut, number, visible

TEXT_LIMIT = 700
SAMPLES = 4
"""Questions shown of each part."""
_SIGNS = re.compile(r"[\\`*\[<>#|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_LINKS = re.compile(r"(?i)(?:https?|ftp|mailto|javascript|data):|www\.|\w@(?=\w)")


def plain(value: object) -> str:
    """A string of somebody's as Markdown that shows it and does nothing else, on one line.

    No link or picture can begin without its first bracket, so the others stay readable.
    """
    text = " ".join(visible(str(value)).split())
    text = _SIGNS.sub(lambda match: f"&#{ord(match[0])};", text)
    return _LINKS.sub(lambda match: f"{match[0][:-1]}&#{ord(match[0][-1])};", text)


def fenced(value: str) -> str:
    """A text of somebody's as a block that holds it as it is, but for what hides."""
    text = visible(cut(value, TEXT_LIMIT)) or "(empty)"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: int = 99) -> str:
    """A table; the columns from `right` on hold numbers."""
    lines = [
        "| " + " | ".join(plain(name) for name in head) + " |",
        "|" + "|".join("---" if i < right else "---:" for i in range(len(head))) + "|",
    ]
    lines += ["| " + " | ".join(plain(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def as_markdown(run: Run, board: Board) -> str:
    """The whole document."""
    parts = [f"# {plain(run.recipe)}: report", plain(run.description)]
    parts += [f"**{plain(run.notice)}**"] if run.notice else []
    found = outcome(run, board)
    parts += _outcome(found) if found else []
    sentences = sections.headline(run, board)
    parts.append("\n".join(f"- {plain(s.text)}" + (f" **{plain(s.verdict)}**" if s.verdict else "") for s in sentences))
    parts += _leaderboard(run, board)
    for title, of_text in (("Is it better?", False), ("What was forgotten?", True)):
        parts += _blocks(title, sections.blocks(run, board, of_text=of_text))
    parts += _refusing(refusing(run, board))
    parts += _knowing(knowing(run, board))
    parts += _samples(run, choose(run, board))
    parts += _judges(judged(run, board))
    parts += _seen(contamination(run, board))
    parts += _synthesized(synthesized(run), known(run))
    parts += _pruned(pruned(run))
    parts += _training(run)
    parts += _vocabularies(run, board)
    parts += _lineage(run)
    parts += _exports(run)
    parts.append("## Limits: what this does not show")
    parts.append("\n".join(f"- {plain(limit)}" for limit in sections.limits(run, board)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(found: Outcome) -> Iterator[str]:
    for tile in found.tiles:
        word = f"**{plain(tile.verdict)}.** " if tile.verdict else ""
        yield f"**{plain(tile.question)}** {word}{plain(tile.text)}"
    yield f"## Gain and damage: {plain(found.specialist)} against {plain(found.base)}"
    rows = [
        [title, e.what, e.measure, e.base, e.specialist, f"{e.change} {e.interval}", e.verdict or "not compared", e.n]
        for title, _, effects in found.effects
        for e in effects
    ]
    yield table(["", "What was asked", "Measure", found.base, found.specialist, "Change", "Verdict", "n"], rows, 3)


def _leaderboard(run: Run, board: Board) -> Iterator[str]:
    if not board.places:
        return
    yield "## Leaderboard"
    said = wording.metric(board.metric) if board.metric else None
    head = ["Rank", "Contender", "Role", said.title if said else "Score", "95 % interval", "Tied with", "Parameters"]
    head[4] = f"{100 * board.scores.confidence:.0f} % interval" if board.scores else "Interval"
    told = columns(run)
    head += [f"{column.title} ({column.mark})" if column.mark else column.title for column in told]
    head += ["Median answer", "95th percentile", "First token", "Tokens a second", "Peak memory"]
    rows = []
    for place in board.places:
        score, m, name = place.score, place.contender.measured, place.contender.name
        digits = said.digits if said else 2
        rows.append(
            [
                place.rank or wording.MISSING,
                run.label(place.contender.name),
                place.role if place.contender.kind == "model" else f"{place.role}, {place.contender.kind}",
                number(score.mean if score else None, digits),
                wording.interval(score.low, score.high, digits) if score else wording.MISSING,
                ", ".join(run.label(name) for name in place.tied_with),
                wording.short_count(place.contender.parameters),
                *(f"{c.text} {c.interval}" if c else wording.MISSING for c in (t.cells.get(name) for t in told)),
                wording.duration(m.get("p50_seconds")),
                wording.duration(m.get("p95_seconds")),
                wording.duration(m.get("first_token_p50_seconds")),
                wording.count(m.get("tokens_per_second")),
                wording.memory(m.get("peak_rss_bytes")),
            ]
        )
    yield table(head, rows, 3)
    yield from (plain(column.note) for column in told if column.note)
    if any(p.tied_with for p in board.places):
        yield plain(TIE_RULE[:1].upper() + TIE_RULE[1:] + ".")
    final = final_model(run)
    if final:
        yield f"The model handed over is **{plain(final.name)}**."


def _blocks(title: str, blocks: Sequence[sections.Block]) -> Iterator[str]:
    if blocks:
        yield f"## {title}"
    for block in blocks:
        yield f"### {plain(block.title[:1].upper() + block.title[1:])}"
        yield plain(block.meaning)
        rows = [[f.title, b.name, b.value, b.interval, b.n] for f in block.forests for b in f.bars]
        yield table(["Group", "Contender", block.title, "Interval", "n"], rows, 2)
        rows = [
            [f.title, d.name, d.against, d.verdict, f"{d.value} {d.interval}", wording.probability(d.p), d.detectable]
            for f in block.forests
            for d in f.differences
        ]
        if rows:
            yield table(["Group", "Contender", "Against", "Verdict", "Difference", "p (Holm)", "Detectable"], rows, 4)


def _exports(run: Run) -> Iterator[str]:
    made, mixed = exports(run), mixtures(run)
    if not made and not mixed:
        return
    yield "## Exports and mixtures"
    for one in mixed:
        yield f"**{plain(one.step)}**: {plain(one.sentence)}"
        if one.tries:
            yield table(TRIED, one.tries, 0)
    if made:
        yield plain(MEANING)
    for exported in made:
        yield f"### {plain(exported.step)}"
        yield table(HEAD, exported.forms, 3)
        yield plain(exported.note)
        yield table(("File", "Size"), exported.files, 1)


def _refusing(found: Sequence[Refusing]) -> Iterator[str]:
    if found:
        yield "## Refusals, both ways"
    for one in found:
        head = ["Contender", "Stage", "Unsafe answered", f"Against {one.base}", "Harmless declined"]
        rows = [
            [r.name, r.way, _said(r.unsafe), r.unsafe.verdict if r.unsafe else "", _said(r.harmless),
             r.harmless.verdict if r.harmless else ""]
            for r in one.rows
        ]  # fmt: skip
        yield table([*head, f"Against {one.base}"], rows)
        yield (
            f"Intervals: {one.confidence}, Wilson; “at most”: the rule of three. Whatever does not decline counts as "
            "answered, babble included."
        )


def _knowing(found: Sequence[Knowing]) -> Iterator[str]:
    if found:
        yield "## What it still knows"
    for one in found:
        for part in one.parts:
            yield f"### {plain(part.title)} (n = {part.n:,})"
            rows = [
                [r.name, *(wording.MISSING if c is None else f"{c.shown} {c.interval} {c.verdict}" for c in r.cells)]
                for r in part.rows
            ]
            yield table(["Contender", *(title for title, _ in part.heads)], rows)
            yield "\n".join(f"- {plain(title)}: {plain(meaning)}" for title, meaning in part.heads if meaning)
        yield f"Verdicts: paired, against {plain(one.base)}. Intervals: {one.confidence}."


def _said(share: Share | None) -> str:
    if share is None:
        return wording.MISSING
    bound = f", at most {share.bound}" if share.bound else ""
    return f"{share.count}: {share.shown} {share.interval}{bound}"


def _samples(run: Run, samples: Samples) -> Iterator[str]:
    if not samples.parts:
        return
    yield "## The answers that changed most"
    if samples.specialist and samples.base:
        yield (
            f"{plain(run.label(samples.specialist))} scores higher than {plain(run.label(samples.base))} on "
            f"{samples.gained:,} questions, lower on {samples.lost:,}, the same on {samples.same:,}."
        )
    for heading, _, shown in samples.parts:
        yield f"### {heading}"
        for sample in shown[:SAMPLES]:
            yield f"**Question** ({plain(sample.why)})"
            yield fenced(sample.question)
            if sample.reference:
                yield "Reference"
                yield fenced(sample.reference)
            for said in sample.said:
                score = "" if said.score is None else f", {number(said.score)}"
                yield f"{plain(run.label(said.contender))} ({said.role}{score})"
                yield fenced(said.text)


def _judges(found: Sequence[Section]) -> Iterator[str]:
    if found:
        yield "## What judges say, and whether to believe them"
    for one in found:
        beside = f", each answer beside that of {one.pairwise}" if one.pairwise else ""
        yield f"### {plain(one.title)} (step {plain(one.step)}, held against {plain(one.held)}{plain(beside)})"
        yield "\n".join(f"- **{plain(label)}**: {plain(meaning)}" for label, meaning in one.labels)
        nobody = "No person labelled any of these answers, so nothing says how far the judges are right."
        yield plain(one.people or nobody)
        for judge in one.judges:
            yield from _judge(one, judge)
        if one.agreement:
            yield "### Agreement between judges"
            yield table(["Judges", "n", "Same label", "Cohen's kappa", "Gwet's AC1"], one.agreement, 1)
        for example in one.examples[:SAMPLES]:
            yield f"**{plain(example.why[:1].upper() + example.why[1:])}** ({plain(example.contender)})"
            yield fenced(example.question)
            yield "Answer"
            yield fenced(example.answer)
            yield "\n".join(f"- {plain(who)}: **{plain(label)}** {plain(why)}" for who, label, why in example.said)


def _judge(section: Section, judge: Facts) -> Iterator[str]:
    yield f"### {plain(judge.name)}" + (f": **{judge.mark}**" if judge.mark else "")
    yield plain(judge.what[:1].upper() + judge.what[1:] + ".")
    if judge.warnings:
        yield "\n".join(f"- {plain(warning)}" for warning in judge.warnings)
    good = section.labels[0][0] if section.labels else ""
    head = ["Contender", *(label for label, _ in section.labels), "n", "Unscored", f"{good}, corrected"]
    yield table(
        head,
        [
            [row.contender, *(" ".join(cell).strip() for cell in row.cells), row.n, row.unscored, row.corrected]
            for row in judge.shares
        ],
        1,
    )
    yield "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in judge.facts)
    if judge.confusion:
        head = ["People say", *(f"{label}, it says" for label, _ in section.labels)]
        yield table(head, [[label, *(times for times, _ in cells)] for label, cells in judge.confusion], 1)


def _seen(seen: Sequence[Seen]) -> Iterator[str]:
    if seen:
        yield "## Was the test seen in training?"
    for found in seen:
        if not found.looked:
            yield f"Nobody looked for the questions of {plain(found.step)}."
            continue
        yield (
            f"{found.seen:,} of {found.tested:,} questions were found in what a contender was trained on; "
            f"{found.dropped:,} were not asked. Looked for: {plain(found.gate)}."
        )
        rows = [[name, count, unknown or "none"] for name, _, count, unknown in found.by]
        yield table(["Contender", "Questions seen", "Training that nobody can look into"], rows)
        if found.pairs:
            head = ["Contender", f"{found.measure}, all", "n", f"{found.measure}, clean", "n"]
            yield table(head, [[p.name, p.everything, p.n, p.clean, p.n_clean] for p in found.pairs], 1)


def _synthesized(made: Sequence[Made], known: Sequence[Known]) -> Iterator[str]:
    if made or known:
        yield "## Questions made from the material"
    for one in made:
        splits = ", ".join(f"{rows} in {name}" for name, rows in one.splits)
        yield f"**{plain(one.step)}**: {one.pairs:,} pairs by {plain(one.teacher)}: {splits}."
        yield table(["Kind of question", "Pairs"], [[title, f"{rows:,}"] for title, rows in one.kinds], 1)
        yield "Difficulty: " + ", ".join(f"{plain(title)} {rows:,}" for title, rows in one.difficulties) + "."
        rows = [[w, f"{part:,} of {all_:,}", f"{100 * part / max(1, all_):.0f} %"] for w, part, all_ in one.coverage]
        yield table(["Covered", "Of all", "Share"], rows, 1)
        if one.without:
            more = f" and {one.more_without:,} more" if one.more_without > 0 else ""
            yield f"No pair quotes: {plain(', '.join(one.without))}{more}."
        if one.rejects:
            yield table(["Left out, because", "Pairs"], [[title, f"{n:,}"] for title, n in one.rejects], 1)
        asked = ", ".join(f"{title} {value}" for title, value in one.cost)
        yield plain(f"Asking took: {asked}." if asked else "No model was asked, and it cost nothing.")
    for found in known:
        yield f"**What {plain(found.model)} knew already** ({plain(found.step)}): {plain(found.how)}."
        head = ["Split", *[title for title, _ in CATEGORIES.values()], "Pairs"]
        yield table(head, [[split, *counts, total] for split, counts, total in found.rows], 1)
        if found.left_out:
            yield f"{found.left_out:,} pairs were left out of training for it."


def _pruned(steps: Sequence[Pruned]) -> Iterator[str]:
    if steps:
        yield "## Made smaller"
    for found in steps:
        yield f"### {plain(found.step)}"
        yield plain(found.sentence)
        sizes = [found.score[:1].upper() + found.score[1:] if s == "Score" and found.score else s for s in SIZES]
        rows = [[m.title + (" (kept)" if m.kept else ""), m.verdict, *m.cells] for m in found.models]
        yield table(["Model", "", *sizes], rows, 2)
        if found.conditions:
            held = [[c.title, c.name, "yes" if c.holds else "no", *c.cells, c.why] for c in found.conditions]
            yield table(["Tried", "Condition", "Holds", *CONDITIONS, "Why not"], held, 3)


def _training(run: Run) -> Iterator[str]:
    curves = sections.training(run)
    if curves:
        yield "## Training"
        yield "\n".join(f"- {plain(curve.sentence)}" for curve in curves)


def _vocabularies(run: Run, board: Board) -> Iterator[str]:
    found = vocabularies(run)
    if found:
        yield "## Vocabulary"
    for one in found:
        yield f"{plain(one.step)}: {plain(one.sentence)}"
        if one.fresh:
            rows = [[f.text, f.words, f.per_word[0], f.per_byte[0]] for f in one.fertility]
            yield table(["Text", "Words", "Tokens a word", "Tokens a byte"], rows, 1)
        elif one.fertility:
            head = ["Text", "Words", "Tokens a word, before", "after", "Tokens a byte, before", "after", "Tokens saved"]
            yield table(head, [[f.text, f.words, *f.per_word, *f.per_byte, f.saved] for f in one.fertility], 1)
        if one.examples:
            rows = [[e.token, " + ".join(e.pieces), e.count] for e in one.examples]
            yield table(["New token", "Old pieces", "Times in the measured text"], rows, 2)
    told = ablation(run, {p.contender.name: str(p.role) for p in board.places})
    if told is None:
        return
    yield "### With and without the new tokens"
    head = ["Contender", "New rows began as"]
    head += [part for text in told.texts for part in (f"Bits per byte, {text}", "Verdict (against)")]
    head += ["Tokens trained on", "Training", "Tokens an answer", "An answer"]
    yield table(
        head,
        [
            [t.name, t.rows]
            + [part for bits, verdict in zip(t.bits, t.verdicts, strict=True) for part in (bits, verdict)]
            + [t.tokens, t.seconds, t.answer_tokens, t.answer_seconds]
            for t in told.twins
        ],
        2,
    )
    yield plain(told.note)


def _lineage(run: Run) -> Iterator[str]:
    if run.steps:
        yield "## Lineage"
        rows = [
            [
                s.name,
                s.kind,
                s.artifact.key,
                ", ".join(run.label(i.value) for i in s.inputs),
                s.record.get("started", ""),
            ]
            for s in run.steps
        ]
        yield table(["Step", "Kind", "Artifact", "Reads", "Made"], rows)
    warnings = [f"- {plain(s.name)}: {plain(cut(w, 500))}" for s in run.steps for w in s.warnings]
    if warnings:
        yield "## Warnings"
        yield "\n".join(warnings)
