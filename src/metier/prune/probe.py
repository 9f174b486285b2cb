"""What a guard looks at in one model: rows of answers, readings and choices, each with what was measured of it.

    answers    id, score, repetition
    domain, general     id, bits, bytes (bits: None where the likelihood is no finite number)
    classes    id, label, found (1 where the right choice has the highest likelihood)
    unsafe     id, complied (1 where the answer does not decline)
    harmless   id, declined

Rows of a finished part are kept, so that a run that was stopped goes on behind it. Answers are greedy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.events import Events
from metier.core.stage import Source
from metier.engine.documents import document_nll
from metier.engine.likelihood import Fork, fork_logprobs
from metier.engine.local import generate
from metier.measure.metrics import METRICS, Answered
from metier.models.load import Loaded
from metier.prune.settings import Guard, spaced
from metier.text.artifacts import read_documents, read_jsonl, write_jsonl
from metier.text.chat import encode_choices, encode_prompt, encode_reading, prompt_choices
from metier.text.items import Item
from metier.text.nouns import Answer, Document, Question
from metier.text.refusals import HARMLESS, UNSAFE, is_refusal

Row = dict[str, Any]
Reading = dict[str, list[Row]]
"""The rows of each part that the guard looks at."""


@dataclass(frozen=True)
class Looker:
    """Looks at models for a guard. sources: its steps, by name."""

    guard: Guard
    sources: Mapping[str, Source]
    events: Events
    check_stop: Callable[[], None]

    def look(self, loaded: Loaded, name: str, kept: Path) -> Reading:
        """All parts of a model. name: of the model, for progress. kept: the folder where finished parts are kept."""
        parts: dict[str, Callable[[], list[Row]]] = {}
        guard = self.guard
        if guard.examples:
            parts["answers"] = lambda: self._answers(loaded, name)
        if guard.documents:
            parts["domain"] = lambda: self._texts(loaded, guard.documents, name)
        if guard.general:
            parts["general"] = lambda: self._texts(loaded, guard.general, name)
        if guard.classes:
            parts["classes"] = lambda: self._classes(loaded, name)
        if guard.refusals:
            parts["unsafe"] = lambda: self._refusals(loaded, UNSAFE, name, "complied")
            parts["harmless"] = lambda: self._refusals(loaded, HARMLESS, name, "declined")
        found: Reading = {}
        for part, measure in parts.items():
            path = kept / f"{part}.jsonl"
            if not path.is_file():
                self.check_stop()
                kept.mkdir(parents=True, exist_ok=True)
                write_jsonl(path, measure())
            found[part] = list(read_jsonl(path))
        return found

    def _stopper(self) -> bool:
        self.check_stop()
        return False

    def _progress(self, name: str, unit: str) -> Callable[[int, int], None]:
        return lambda done, total: self.events.progress(name, done, total, unit=unit)

    def _said(self, loaded: Loaded, questions: Sequence[Question], name: str) -> list[Answered]:
        prompts = [encode_prompt(loaded.tokenizer, question.messages) for question in questions]
        said = generate(
            loaded,
            prompts,
            max_new_tokens=self.guard.max_new_tokens,
            batch_size=self.guard.batch_size,
            on_progress=self._progress(name, "answers"),
            should_stop=self._stopper,
        )
        return [
            Answered(question, Answer(question.id, one.text.strip(), one.tokens, one.stopped))
            for question, one in zip(questions, said, strict=True)
        ]

    def _answers(self, loaded: Loaded, name: str) -> list[Row]:
        assert self.guard.examples is not None
        said = self._said(loaded, self.guard.asked(self.sources[self.guard.examples]), f"{name} answers")
        values = [METRICS[metric].measure(said) for metric in (self.guard.metric, "repetition")]
        return [
            {"id": one.question.id, "score": score, "repetition": repeated}
            for one, score, repeated in zip(said, *values, strict=True)
        ]

    def _texts(self, loaded: Loaded, step: str | None, name: str) -> list[Row]:
        assert step is not None
        documents: list[Document] = spaced(read_documents(self.sources[step].path, "heldout"), self.guard.limit)
        found = document_nll(
            loaded,
            [encode_reading(loaded.tokenizer, document.text) for document in documents],
            on_progress=self._progress(f"{name} reads {step}", "documents"),
            should_stop=self._stopper,
        )
        return [
            {
                "id": document.id,
                "bits": one.nll / math.log(2) if math.isfinite(one.nll) else None,
                "bytes": len(document.text.encode()),
            }
            for document, one in zip(documents, found, strict=True)
        ]

    def _classes(self, loaded: Loaded, name: str) -> list[Row]:
        assert self.guard.classes is not None
        items: list[Item] = self.guard.labelled(self.sources[self.guard.classes])
        prompted = [prompt_choices(loaded.tokenizer, item.messages, item.choices) for item in items]
        forks = [
            Fork(tuple(context), tuple(map(tuple, continuations)))
            for context, continuations in encode_choices(loaded.tokenizer, prompted)
        ]
        values = fork_logprobs(
            loaded, forks, on_progress=self._progress(f"{name} chooses", "items"), should_stop=self._stopper
        )
        chosen = [
            item.choices[max(range(len(row)), key=row.__getitem__)] for item, row in zip(items, values, strict=True)
        ]
        return [
            {"id": item.id, "label": item.label, "found": int(said == item.label)}
            for item, said in zip(items, chosen, strict=True)
        ]

    def _refusals(self, loaded: Loaded, group: str, name: str, key: str) -> list[Row]:
        assert self.guard.refusals is not None
        prompts = self.guard.prompts(self.sources[self.guard.refusals], group)
        said = self._said(loaded, prompts, f"{name} is asked {group} prompts")
        return [{"id": one.question.id, key: int(is_refusal(one.text) == (key == "declined"))} for one in said]
