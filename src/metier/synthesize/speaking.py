"""What a model says when nothing in particular is asked of it, as documents and as examples.

A document starts from the begin token (or, where a tokenizer has none, from the end token), as every document did in
training. A made-up question is what the model writes where the chat template opens a user's turn, up to its first line
break or the end of the turn; its answer is then asked for as anybody would. Texts that are short, that were said before
or that were cut before a sentence ended are rejects or shortened. Costs the model's memory in float32.

What is said is kept in the step's scratch as it comes: a run that was stopped or killed goes on with the texts that are
still to come, to the same bytes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from metier.core.appended import append, appended
from metier.core.errors import DataError, ModelError
from metier.core.fingerprint import digest
from metier.core.stage import Context
from metier.engine.local import answers
from metier.models.load import Loaded, load
from metier.models.placed import place
from metier.text.artifacts import (
    conversation_row,
    document_row,
    read_conversations,
    write_json,
    write_jsonl,
)
from metier.text.chat import encode_prompt
from metier.text.nouns import Conversation, Document, Message
from metier.text.prompts import use_template

if TYPE_CHECKING:
    from metier.synthesize.stage import Recall, Rehearse, Speaking

EVERY_SECONDS = 0.5
"""How often what was said is seen on the disk, which takes milliseconds each time."""
MADE_UP = 500
"""Questions made up where no number is given."""
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")
_MARK = "\ufdd1"  # a code point that no text has
Row = dict[str, Any]


def recall(stage: "Recall", ctx: Context) -> dict[str, float]:
    """Write the documents of a `recall` step. Returns how many there are and how many were left out."""
    loaded = place(load(ctx.source(stage.model).path), ctx.events.warning)
    said = _say(stage, ctx, loaded, [_opening(loaded)] * stage.count, "texts")
    rows: list[Row] = []
    rejects: list[Row] = []
    seen: set[str] = set()
    for number, generation in enumerate(said, 1):
        text = generation.text.strip() if generation.stopped else whole_sentences(generation.text)
        reason = _reason(text, stage.min_chars, seen)
        if reason:
            rejects.append({"where": f"{stage.model}:{number}", "reason": reason, "row": {"text": generation.text}})
        else:
            rows.append(document_row(Document(digest(text)[:16], text)))
    return _write(ctx, rows, rejects, ("heldout", "train", "replay"), sum(len(row["text"]) for row in rows))


def rehearse(stage: "Rehearse", ctx: Context) -> dict[str, float]:
    """Write the examples of a `rehearse` step. Returns how many there are and how many were left out."""
    loaded = place(load(ctx.source(stage.model).path), ctx.events.warning)
    use_template(loaded.tokenizer, stage.prompt)
    asked = _asked(stage, ctx, loaded)
    said = _say(stage, ctx, loaded, [encode_prompt(loaded.tokenizer, messages) for messages in asked], "answers")
    rows: list[Row] = []
    rejects: list[Row] = []
    seen: set[str] = set()
    for number, (messages, generation) in enumerate(zip(asked, said, strict=True), 1):
        answer = generation.text.strip() if generation.stopped else whole_sentences(generation.text)
        told = (*messages, Message("assistant", answer))
        row = conversation_row(Conversation(digest([m.content for m in told])[:16], told))
        reason = "" if len(answer) >= stage.min_chars else f"shorter than {stage.min_chars} characters"
        reason = reason or ("said before" if row["id"] in seen else "")
        seen.add(row["id"])
        if reason:
            rejects.append({"where": f"{stage.model}:{number}", "reason": reason, "row": row})
        else:
            rows.append(row)
    size = sum(len(message["content"]) for row in rows for message in row["messages"])
    return _write(ctx, rows, rejects, ("test", "dev", "train", "replay"), size)


def whole_sentences(text: str) -> str:
    """A text that was cut, up to the end of its last whole sentence; all of it where it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return (text[: ends[-1]] if ends else text).strip()


def _reason(text: str, min_chars: int, seen: set[str]) -> str:
    if len(text) < min_chars:
        return f"shorter than {min_chars} characters"
    if text in seen:
        return "said before"
    seen.add(text)
    return ""


def _asked(stage: "Rehearse", ctx: Context, loaded: Loaded) -> list[tuple[Message, ...]]:
    """The questions: another step's, less their answers, or made up, each once."""
    if stage.questions is not None:
        known = read_conversations(ctx.source(stage.questions).path, "train")[: stage.count]
        return [conversation.messages[:-1] for conversation in known]
    opening = user_opening(loaded)
    said = _say(stage, ctx, loaded, [opening] * (stage.count or MADE_UP), "questions")
    texts = dict.fromkeys(generation.text.strip().split("\n")[0].strip() for generation in said)
    questions: list[tuple[Message, ...]] = [(Message("user", text),) for text in texts if text]
    if not questions:
        raise ModelError("the model made up no question", cure="give it some: `questions` names a step that has them")
    return questions


def user_opening(loaded: Loaded) -> list[int]:
    """The ids that a chat template writes before a user's first words. Raises DataError where it writes none."""
    tokenizer = loaded.tokenizer
    messages = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": "x"}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    before = text.partition(_MARK)[0]
    ids = [int(i) for i in tokenizer.encode(before.rstrip(" "), add_special_tokens=False)]
    begin = tokenizer.bos_token_id
    if begin is not None and ids[:1] != [begin]:
        ids = [int(begin), *ids]
    if not ids:
        raise DataError(
            "the prompt template writes nothing before a question, so none can be made up",
            cure="name a step with `questions`, or another `prompt`",
        )
    return ids


def _opening(loaded: Loaded) -> list[int]:
    tokenizer = loaded.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ModelError("the tokenizer has neither a begin nor an end token, so no document can start", value="model")
    return [int(first)]


@dataclass(frozen=True)
class _Said:
    """A text, and whether the model ended it itself."""

    text: str
    stopped: bool


def _say(stage: "Speaking", ctx: Context, loaded: Loaded, prompts: Sequence[Sequence[int]], what: str) -> list[_Said]:
    """What the model says to each prompt, what an earlier run got included. what: what they are, their file too."""
    path = ctx.scratch / f"{what}.jsonl"
    said = {row["at"]: _Said(row["text"], row["stopped"]) for row in appended(path, f"kept {what}")}
    if said:
        ctx.events.note(f"{len(said)} of {len(prompts)} {what} kept from the run before")
    waiting: dict[int, _Said] = {}

    def keep() -> None:
        append(path, ({"at": at, "text": one.text, "stopped": one.stopped} for at, one in waiting.items()))
        said.update(waiting)
        waiting.clear()
        ctx.events.progress(what, len(said), len(prompts), unit=what)

    def stopped() -> bool:
        ctx.check_stop()
        return False

    last = monotonic()
    try:
        for finished in answers(
            loaded,
            prompts,
            max_new_tokens=stage.max_new_tokens,
            temperature=stage.temperature,
            top_p=stage.top_p,
            seed=stage.seed,
            batch_size=stage.batch_size,
            done=set(said),
            should_stop=stopped,
        ):
            waiting |= {at: _Said(one.text, one.stopped) for at, one in finished if at not in said}
            if monotonic() - last >= EVERY_SECONDS:
                keep()
                last = monotonic()
    finally:
        keep()
    ctx.check_stop()  # asked for while the last texts were kept
    return [said[at] for at in range(len(prompts))]


def _write(
    ctx: Context, rows: Sequence[Row], rejects: Sequence[Row], splits: Sequence[str], size: int
) -> dict[str, float]:
    if not rows:
        raise ModelError("nothing that the model said can be used", cure="lower min_chars, or raise max_new_tokens")
    counts = {name: len(rows) if name == "train" else 0 for name in splits}
    for name in splits:
        write_jsonl(ctx.out / f"{name}.jsonl", rows if name == "train" else _none())
    write_jsonl(ctx.out / "rejects.jsonl", rejects)
    write_json(
        ctx.out / "about.json",
        {
            "replay_ratio": 0.0,
            "counts": counts,
            "rows_read": len(rows) + len(rejects),
            "rejected": len(rejects),
            "characters": {"train": size},
        },
    )
    return {"train": len(rows), "rejected": len(rejects)}


def _none() -> Iterator[Row]:
    yield from ()
