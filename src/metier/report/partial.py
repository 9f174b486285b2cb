"""`leaderboards_partial.json`: how the contenders stand while answers are still being made.

A listener on a run's events. It holds no state of its own that matters: every number is worked out from the answers on
disk, so a run that was killed at any item shows after its resume what it showed before, each item once. A line that is
not finished is left for the next look; an id that stands twice counts once, as it was first answered.

Contenders answer one after the other, so their means are over different questions until all are through. The order
is therefore by the questions that all who have begun have answered (`common`). No verdicts: looking again and again
at growing data would find differences by chance. Only metrics that need no package and no model are measured.

Costs milliseconds at most every two seconds. The file goes when `leaderboards_full.json` is written.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.core.errors import StoreError
from metier.core.events import Event
from metier.core.fingerprint import Json
from metier.report.writing import write_whole
from metier.text.artifacts import answer_of, answers_path, question_of, read_jsonl
from metier.text.nouns import Question

FILE = "leaderboards_partial.json"
FORMAT = 1
EVERY_SECONDS = 2.0
FALLBACK = ("token_f1", "exact_match")

Row = dict[str, Any]


@dataclass
class Follower:
    """One contender's growing file. values: question id -> metric -> number, in the order answered."""

    path: Path
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: int = 0
    _offset: int = 0
    _inode: int = 0

    def look(self, questions: Mapping[str, Question], names: Sequence[str]) -> None:
        """Take in the lines that were finished since the last look; a file that was begun again is read again."""
        from metier.measure.metrics import METRICS, Answered

        with self.path.open("rb") as file:
            inode = self.path.stat().st_ino
            if inode != self._inode or self.path.stat().st_size < self._offset:
                self.values, self._offset, self.skipped, self._inode = {}, 0, 0, inode
            file.seek(self._offset)
            finished = file.read().rpartition(b"\n")[0]
        if not finished:
            return
        self._offset += len(finished) + 1
        found: dict[str, Answered] = {}
        for line in finished.split(b"\n"):
            try:
                answer = answer_of(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self.skipped += 1
                continue
            if answer.id in questions and answer.id not in self.values:
                found.setdefault(answer.id, Answered(questions[answer.id], answer))
        self.values |= {identity: {} for identity in found}
        for name in names:
            applies = METRICS[name].applies
            about = {i: item for i, item in found.items() if applies is None or applies(item.question)}
            for identity, value in zip(about, METRICS[name].measure(list(about.values())), strict=True):
                self.values[identity][name] = float(value)


@dataclass
class _Step:
    questions: dict[str, Question]
    metrics: tuple[str, ...]
    contenders: dict[str, Follower]


class PartialBoard:
    """Hears a run's events. out: `runs/<recipe>`. steps: step name -> its stage as a dict with its `kind`."""

    def __init__(
        self,
        out: Path,
        recipe: str,
        steps: Mapping[str, Mapping[str, Json]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._recipe, self._stages, self._clock = out, recipe, steps, clock
        self._steps: dict[str, _Step] = {}
        self._last: float | None = None
        self._now = ""

    def hear(self, event: Event) -> None:
        """Look at the answers and write the board, where that is due."""
        if event["event"] != "answers_so_far":
            return
        name = str(event["step"])
        self._now = name
        step = self._steps.get(name) or self._begin(name, event)
        step.contenders[str(event["contender"])] = step.contenders.get(str(event["contender"])) or Follower(
            Path(str(event["path"]))
        )
        through = event.get("done") == event.get("total")
        now = self._clock()
        if through or self._last is None or now - self._last >= EVERY_SECONDS:
            self._last = now
            self.write()

    def _begin(self, name: str, event: Event) -> _Step:
        """Know a step by its first event: its questions, what to measure, and who has answered in an earlier run."""
        questions = {q.id: q for q in map(question_of, read_jsonl(Path(str(event["questions"]))))}
        step = _Step(questions, self._metrics(name, questions), {})
        models = self._stages.get(name, {}).get("models")
        folder = Path(str(event["path"])).parent.parent
        for model in models if isinstance(models, list) else ():
            path = answers_path(folder, model) if isinstance(model, str) else None
            if path is not None and path.is_file():
                step.contenders[str(model)] = Follower(path)
        self._steps[name] = step
        return step

    def _metrics(self, name: str, questions: Mapping[str, Question]) -> tuple[str, ...]:
        """What the recipe's score steps measure of these answers, as far as it is cheap."""
        from metier.measure.metrics import METRICS

        listed = [
            metric
            for stage in self._stages.values()
            if stage.get("kind") == "score" and stage.get("answers") == name
            for metric in (stage.get("metrics") or ())
            if isinstance(metric, str)
        ]
        whole = all(q.reference.strip() for q in questions.values())
        found = [
            metric
            for metric in dict.fromkeys([*listed, *FALLBACK])
            if metric in METRICS and METRICS[metric].needs is None and (whole or not METRICS[metric].reads_reference)
        ]
        return tuple(found) or ("stopped",)

    def write(self) -> None:
        """Write the board as it stands now. Raises StoreError where an answers file cannot be read."""
        content = {
            "format": FORMAT,
            "recipe": self._recipe,
            "state": "running",
            "note": "Answers are still being made. Order: by the questions that all who have begun have answered.",
            "steps": {name: self._board(step, going=name == self._now) for name, step in self._steps.items()},
        }
        self._out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
        write_whole(self._out / FILE, text)

    def _board(self, step: _Step, *, going: bool) -> Json:
        """A step as it stands. going: it is being answered; a finished one's files are where they grew no longer."""
        for name, follower in step.contenders.items() if going else ():
            try:
                follower.look(step.questions, step.metrics)
            except OSError as error:
                raise StoreError(
                    f"the answers of {name!r} cannot be read: {error.strerror}", where=str(follower.path)
                ) from error
        begun = {name: f for name, f in step.contenders.items() if f.values}
        common = [i for i in step.questions if begun and all(i in f.values for f in begun.values())]
        rows = [self._row(step, name, follower, common) for name, follower in step.contenders.items()]
        first = step.metrics[0]
        rows.sort(key=lambda row: -(row["common"].get(first) or 0.0))
        return {
            "questions": len(step.questions),
            "common": len(common),
            "ranked_by": {"metric": first, "group": "all"},
            "contenders": rows,
        }

    def _row(self, step: _Step, name: str, follower: Follower, common: Sequence[str]) -> Row:
        from metier.measure.metrics import METRICS
        from metier.measure.statistics import mean_interval

        scores = []
        for metric in step.metrics:
            values = [one[metric] for one in follower.values.values() if metric in one]
            if values:
                kind = METRICS[metric]
                found = mean_interval(values, bounded=kind.bounded, binary=kind.binary)
                scores.append(
                    {"metric": metric, "n": len(values), "mean": found.estimate, "low": found.low, "high": found.high}
                )
        shared = {}
        for metric in step.metrics if follower.values else ():
            values = [follower.values[i][metric] for i in common if metric in follower.values[i]]
            if values:
                shared[metric] = sum(values) / len(values)
        return {
            "name": name,
            "done": len(follower.values),
            "total": len(step.questions),
            "skipped_lines": follower.skipped,
            "common": shared,
            "scores": scores,
        }
