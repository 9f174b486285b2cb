"""Answers on disk and a place to judge them, as the pipeline would."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.core.events import Events
from metier.core.stage import Context, Source, Stage
from metier.judge.stage import Judge
from metier.text.artifacts import answers_path, write_json, write_jsonl

Row = dict[str, Any]


class Desk:
    """questions: (id, question, reference, meta). said: contender -> answers, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources: dict[str, Source] = {}
        self.events: list[Row] = []

    def add(self, name: str, path: Path, digest: str = "") -> Path:
        self.sources[name] = Source(name, (path,), name, digest or name)
        return path

    def answers(
        self,
        questions: Sequence[tuple[str, str, str]],
        said: Mapping[str, Sequence[str]],
        *,
        meta: Mapping[str, str] | None = None,
        kinds: Mapping[str, str] | None = None,
        name: str = "answers",
    ) -> Path:
        folder = self.add(name, self.root / name / "files")
        (folder / "answers").mkdir(parents=True)
        rows = [
            {
                "id": i,
                "group": "",
                "messages": [{"role": "user", "content": q}],
                "reference": r,
                **({"meta": dict(meta)} if meta else {}),
            }
            for i, q, r in questions
        ]
        write_jsonl(folder / "questions.jsonl", rows)
        known = [{"name": n, "model": n, "kind": (kinds or {}).get(n, "model")} for n in said]
        write_json(folder / "contenders.json", known)
        for contender, texts in said.items():
            rows = [
                {"id": i, "text": t, "tokens": 3, "stopped": True}
                for (i, _, _), t in zip(questions, texts, strict=True)
            ]
            write_jsonl(answers_path(folder, contender), rows)
        return folder

    def run(
        self, stage: Stage, step: str = "verdicts", stop: Callable[[], bool] = lambda: False, cache: Path | None = None
    ) -> tuple[Path, dict[str, float]]:
        stage.check(self.sources)
        folders = [self.root / step / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        events = Events(step, None, [self.events.append])
        metrics = dict(stage.run(Context(step, *folders, events, self.sources, stop, cache)))
        self.add(step, folders[0])
        return folders[0], metrics

    def said(self, event: str) -> list[str]:
        return [e["text"] for e in self.events if e["event"] == event]


def judge(**changed: Any) -> Judge:
    return Judge.model_validate({"answers": "answers", "judges": ["evidence"]} | changed)


def rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def value(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def same_files(one: Path, other: Path) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
