"""The parity gate: is what is published still the model that was tested?

Fixed prompts go through the source and through each form that is made of it (merged, written and loaded again, GGUF
read back by transformers, GGUF in llama.cpp, int8, NF4). Compared are the ids of rendered chats, every logit, greedy
answers and whether these end by themselves. A form past its tolerance raises, and nothing is published. Costs a forward
pass of about 400 tokens and a few short answers for each form.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metier.core.errors import DataError, MetierError
from metier.core.stage import STOP, stop_if_asked
from metier.engine.local import generate
from metier.models.load import Loaded
from metier.text.artifacts import message_rows
from metier.text.chat import encode_prompt
from metier.text.nouns import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPTS = (
    "The water was cold and clear, and the small fish swam close to the stones.",
    "Question: What does it eat, and where does it live?\nAnswer:",
    "In 1998, 3.5 % of them (about 120) were found at depths of 40-60 m; why?",
)
CHATS = (
    (Message("user", "How do you make tea?"),),
    (Message("system", "Answer in one sentence."), Message("user", "Which day comes after Monday?")),
    (
        Message("user", "I can't sleep: it's 3 a.m.\n\n- noise?\n- light?"),
        Message("assistant", "Try a darker room."),
        Message("user", "Naïve question … 37.5 °C, 日本 and 😀: what then?"),
    ),
)
"""Conversations that every runtime has to give the same ids for."""
RANDOM_PROMPTS, RANDOM_LENGTH = 2, 64
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Tolerance:
    """How far a form may be from its source.

    difference: the largest of any logit, as a share of the largest logit's magnitude (at least 1). same_top: the share
    of positions that rank the same token first, at least. greedy: the share of answers' tokens that are the same from
    the start on, at least: one near tie parts two answers for good, so it is asked of the finer formats alone. About
    twice what the seedling and stories260K measure (benchmarks/results/export.json).
    """

    difference: float
    same_top: float
    greedy: float


EXACT = Tolerance(1e-4, 0.99, 0.9)
TOLERANCES = {
    "merged": EXACT,
    "float32": EXACT,
    "float16": Tolerance(4e-3, 0.95, 0.5),
    "bfloat16": Tolerance(3e-2, 0.9, 0.3),
    "F32": Tolerance(1e-3, 0.99, 0.9),
    "F16": Tolerance(4e-3, 0.95, 0.5),
    "BF16": Tolerance(3e-2, 0.9, 0.3),
    "Q8_0": Tolerance(8e-2, 0.85, 0.1),
    "int8": Tolerance(0.1, 0.85, 0.1),
    "Q6_K": Tolerance(0.1, 0.85, 0.1),
    "Q5_K_M": Tolerance(0.3, 0.75, 0.0),
    "Q4_K_M": Tolerance(0.4, 0.6, 0.0),
    "Q4_0": Tolerance(0.4, 0.6, 0.0),
    "nf4": Tolerance(0.4, 0.6, 0.0),
    "Q3_K_M": Tolerance(0.6, 0.5, 0.0),
}
"""By format."""


@dataclass(frozen=True)
class Probe:
    """What every form is asked. ids: prompts to compare logits on. chats: conversations; asked: their ids, as trained.

    rendered: the conversations as text with the exported template.
    """

    ids: tuple[tuple[int, ...], ...]
    chats: tuple[tuple[Message, ...], ...]
    asked: tuple[tuple[int, ...], ...]
    rendered: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What a form did. logits: a tensor (tokens, vocabulary) for each of the probe's prompts. chats: its own ids of the
    rendered chats. answers: greedy ids to each, and whether it stopped by itself.
    """

    logits: tuple[Tensor, ...]
    chats: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[tuple[int, ...], bool], ...]


@dataclass(frozen=True)
class Row:
    """One form beside the source, as it stands in parity.json and on the model card.

    difference: the largest of any logit; largest: the source's largest logit; positions: compared. same_top: share of
    positions with the same first choice. greedy: share of the answers' tokens that are the same from the start on.
    stops: answers that ended by themselves, of_stops: those of the source that did. same_ids: every rendered chat has
    the ids that were trained on. problems: what is past the tolerance, empty where nothing is.
    """

    form: str
    format: str
    same_ids: bool
    difference: float
    largest: float
    tolerance: float
    positions: int
    same_top: float
    greedy: float
    stops: int
    of_stops: int
    chats: int
    problems: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As it is written down; a difference that is no number becomes null."""
        numbers = {k: None if isinstance(v, float) and v != v else v for k, v in asdict(self).items()}
        return numbers | {"problems": list(self.problems)}


def make_probe(loaded: Loaded) -> Probe:
    """The fixed prompts in the tokens of one model: sentences, chats, and seeded random ids of the whole vocabulary."""
    tokenizer, context = loaded.tokenizer, loaded.context
    generator = torch.Generator().manual_seed(0)
    prompts = [tokenizer.encode(text, add_special_tokens=True)[:context] for text in PROMPTS]
    for _ in range(RANDOM_PROMPTS):
        length = min(context, RANDOM_LENGTH)
        prompts.append(torch.randint(0, len(tokenizer), (length,), generator=generator).tolist())
    chats, asked = [], []
    for chat in CHATS:
        try:
            ids = encode_prompt(tokenizer, chat)
        except DataError:  # the template refuses it (a system message, say): so nobody will ask it
            continue
        if len(ids) < context:
            chats.append(chat)
            asked.append(tuple(ids))
            prompts.append(ids)
    return Probe(
        ids=tuple(tuple(ids) for ids in prompts if ids),
        chats=tuple(chats),
        asked=tuple(asked),
        rendered=tuple(render(tokenizer, chat) for chat in chats),
    )


def render(tokenizer: "PreTrainedTokenizerFast", chat: Sequence[Message]) -> str:
    """A conversation as text, as whoever serves the model renders it."""
    rows = message_rows(chat)
    return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True))


def see(loaded: Loaded, probe: Probe) -> Seen:
    """What a model of transformers does with the probe. Its chats' ids are those of stock `apply_chat_template`."""
    chats = []
    for chat in probe.chats:
        ids = loaded.tokenizer.apply_chat_template(message_rows(chat), add_generation_prompt=True, return_dict=False)
        chats.append(tuple(int(i) for i in ids))
    stop = STOP.get()
    answers = generate(loaded, probe.asked, max_new_tokens=ANSWER_TOKENS, batch_size=1, should_stop=stop)
    return Seen(logits_of(loaded.model, probe), tuple(chats), tuple((a.ids, a.stopped) for a in answers))


@torch.no_grad()
def logits_of(model: "PreTrainedModel", probe: Probe) -> tuple[Tensor, ...]:
    """Each prompt's logits, (tokens, vocabulary), one prompt at a time: padding would change the last digits."""
    found = []
    for ids in probe.ids:
        stop_if_asked()
        found.append(model(torch.tensor([ids]), use_cache=False).logits[0].float())
    return tuple(found)


def compare(form: str, kind: str, source: Seen, made: Seen, probe: Probe) -> Row:
    """One form beside the source. kind: its format, one of `TOLERANCES`."""
    allowed = TOLERANCES[kind]
    columns = min(source.logits[0].shape[-1], made.logits[0].shape[-1])
    pairs = [(a[:, :columns], b[:, :columns]) for a, b in zip(source.logits, made.logits, strict=True)]
    positions = sum(len(a) for a, _ in pairs)
    differences = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    difference = float("nan") if bool(differences.isnan().any()) else float(differences.max())
    largest = max(float(a.abs().max()) for a, _ in pairs)
    same_top = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs) / positions
    greedy = _agreement(source.answers, made.answers)
    stops, of_stops = sum(done for _, done in made.answers), sum(done for _, done in source.answers)
    same_ids = made.chats == probe.asked
    limit = allowed.difference * max(1.0, largest)
    problems = []
    if not same_ids:
        problems.append("a rendered chat has other token ids than were trained on")
    if not difference <= limit:  # also NaN
        problems.append(f"logits differ by {difference:.2g}, more than {limit:.2g}")
    if same_top < allowed.same_top:
        problems.append(f"the first choice is the same at {same_top:.0%} of positions, not {allowed.same_top:.0%}")
    if greedy < allowed.greedy:
        problems.append(f"greedy answers agree in {greedy:.0%} of their tokens, not {allowed.greedy:.0%}")
    if 2 * stops < of_stops and of_stops - stops > 1:  # one of few may be a near tie
        problems.append(f"{stops} answers end by themselves, where {of_stops} of the source's do")
    return Row(
        form, kind, same_ids, difference, largest, limit, positions, same_top, greedy, stops, of_stops,
        len(probe.chats), tuple(problems),
    )  # fmt: skip


def _agreement(left: Sequence[tuple[tuple[int, ...], bool]], right: Sequence[tuple[tuple[int, ...], bool]]) -> float:
    """The share of the answers' tokens, ends included, up to where two answers part; 1 where nothing was asked."""
    total = same = 0
    for (a, a_done), (b, b_done) in zip(left, right, strict=True):
        ours, theirs = [*a, *([-1] if a_done else [])], [*b, *([-1] if b_done else [])]
        total += max(len(ours), len(theirs))
        same += next(
            (i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), min(len(ours), len(theirs))
        )
    return same / total if total else 1.0


def gate(rows: Sequence[Row], where: str) -> None:
    """Raise MetierError where any form is past its tolerance."""
    failed = [f"{row.form}: {'; '.join(row.problems)}" for row in rows if row.problems]
    if not failed:
        return
    raise MetierError(
        "not published: " + ". ".join(failed),
        where=where,
        cure="leave that format out, or train the model again where even the merged weights differ",
    )
