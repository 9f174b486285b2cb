"""The answers that changed most between two sides that were asked the same, in either direction, for `metier compare`.

By the first metric that has a better side, item by item; marks are those of the report (`samples`), by words, not by
meaning. Equal changes come in the order of their ids, so that nobody picked them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metier.report.collect import Answers, Row
from metier.report.samples import LONGEST_ID, MOST_CHANGED, Said, Sample, mark
from metier.report.wording import cut, group, signed


@dataclass(frozen=True)
class Speaker:
    """One side: what it is called here and in its run, its answers, and its item rows by question id."""

    name: str
    role: str
    contender: str
    answers: Answers
    items: Mapping[str, Row]

    def said(self, identity: str, metric: str) -> Said:
        """Its answer to a question; of a choose step, the label it chose."""
        answer = self.answers.texts.get(self.contender, {}).get(identity, {})
        item = self.items[identity]
        value, exact = (None if item.get(m) is None else float(item[m]) for m in (metric, "exact_match"))
        text = str(answer.get("text", item.get("said", "")))
        return Said(self.name, self.role, text, value, mark(value, exact), bool(answer.get("stopped", True)))


@dataclass(frozen=True)
class Changed:
    """What changed. gained, lost, same: questions by whether A's answer is better than B's, by `metric`."""

    metric: str
    step: str
    gained: int
    lost: int
    same: int
    most_gained: tuple[Sample, ...]
    most_lost: tuple[Sample, ...]


def changed(a: Speaker, b: Speaker, shared: Sequence[str], metric: str, *, higher_is_better: bool) -> Changed:
    """The questions in which A gained most over B, and lost most. shared: ids of those that both answered."""
    sign = 1 if higher_is_better else -1
    gains = {one: sign * (float(a.items[one][metric]) - float(b.items[one][metric])) for one in shared}
    order = sorted(shared, key=lambda one: (-gains[one], one))
    questions = {str(question["id"]): question for question in a.answers.questions}

    def sample(identity: str) -> Sample:
        question = questions[identity]
        messages = list(question.get("messages") or [])
        name = str(question.get("group", ""))
        return Sample(
            id=cut(identity, LONGEST_ID),
            group=name,
            why=f"{signed(gains[identity], 2)} {group(name)[0]}",
            context=tuple(messages[:-1]),
            question=str(messages[-1]["content"]) if messages else "",
            reference=str(question.get("reference", "")),
            said=(a.said(identity, metric), b.said(identity, metric)),
        )

    gained = [one for one in order if gains[one] > 0]
    lost = sorted((one for one in order if gains[one] < 0), key=lambda one: (gains[one], one))
    return Changed(
        metric,
        a.answers.step,
        len(gained),
        len(lost),
        len(order) - len(gained) - len(lost),
        tuple(map(sample, gained[:MOST_CHANGED])),
        tuple(map(sample, lost[:MOST_CHANGED])),
    )
