"""Prompt templates: how a conversation is written down for a model. Ours by name, the model's own, or a user's file.

One template serves training, evaluation, export and chat: it is put on the tokenizer before training, saved beside the
weights as chat_template.jinja, and every later step reads it there. Ours begin with the begin token and write nothing
behind the token that ends an answer, so stock `apply_chat_template` gives the ids that were trained on.

A file is rendered in Jinja's immutable sandbox, which has messages, the begin and end tokens and no way to Python.
Refuses, with file and line: what is no Jinja, what reaches out of the sandbox, what leaves out a message or writes
turns out of order, and what writes earlier turns differently when later ones follow. Imports neither torch nor
transformers.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from metier.core.errors import DataError, nearest

if TYPE_CHECKING:
    from jinja2 import Environment

    from metier.text.chat import Tokenizer

PromptName = Literal["auto", "model", "plain", "zephyr", "alpaca", "patient-scenario"]
TEMPLATES = ("plain", "zephyr", "alpaca", "patient-scenario")
"""Ours. `auto` and `model` mean the model's own."""
FALLBACK = "plain"
INPUT_MARK = "\n\n### Input:\n"
"""What parts an instruction from its input inside a user's message. It is plain text, so that whoever serves the model
can write it too; by it the template `alpaca` tells which of its two openings is right."""
LARGEST_FILE = 64_000
LARGEST_TEXT = 1_000_000
"""Characters that a template may make of a conversation of five short messages."""
_BEGIN, _END = "<begin>", "<end>"
_PROBE = (
    ("system", "Instructions of the probe"),
    ("user", "First question"),
    ("assistant", "First answer"),
    ("user", "Second question"),
    ("assistant", "Second answer"),
)


def template_text(name: str) -> str:
    """The Jinja source of one of our templates. Raises DataError for an unknown name."""
    if name not in TEMPLATES:
        raise DataError("no such prompt template", value=name, cure=nearest(name, ("auto", "model", *TEMPLATES)))
    return (files("metier.text") / "templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def read_template(path: Path) -> str:
    """The Jinja source in a user's file, tried on a conversation. Raises DataError with file and line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        _refuse(path, f"the template cannot be read: {error.strerror}", cure="check that it exists and may be read")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"the template is not UTF-8: byte 0x{error.object[error.start]:02x} at byte offset {error.start}"
        _refuse(path, what, line=line, cure="save it as UTF-8")
    if len(text) > LARGEST_FILE or not text.strip():
        what = "is empty" if not text.strip() else f"has {len(text):,} characters, more than {LARGEST_FILE:,}"
        _refuse(path, f"the template {what}", cure="a chat template is a screen of Jinja; see the ones in metier/text")
    _try(path, text)
    return text.rstrip("\n")


def use_template(tokenizer: "Tokenizer", name: str, text: str | None = None) -> str:
    """Give the tokenizer the template that is trained with and saved. Returns the name of what it has now.

    name: one of ours; `model`: its own, refused where it has none; `auto`: its own, else plain. text: the source of a
    file instead (`read_template`). Where a template leaves the begin token to the tokenizer, writing it is put before
    it: stock `apply_chat_template` adds none, and would give other ids than were trained on.
    """
    if text is not None:
        tokenizer.chat_template = text
    elif name in ("auto", "model") and tokenizer.chat_template:
        name = "model"
    elif name == "model":
        raise DataError(
            f"the model has no chat template of its own (tokenizer {tokenizer.name_or_path or 'without a name'})",
            value=name,
            cure="use one of " + ", ".join(TEMPLATES) + ", or a file: {file: my.jinja}",
        )
    else:
        name = FALLBACK if name == "auto" else name
        tokenizer.chat_template = template_text(name)
    if tokenizer.bos_token and not _writes_begin(tokenizer):
        tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    return name


def _writes_begin(tokenizer: "Tokenizer") -> bool:
    """Whether the template opens a conversation with the begin token; what it refuses is refused where it is used."""
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
        )
    except TemplateError:
        return True
    return str(text).startswith(str(tokenizer.bos_token))


@cache
def _environment() -> "Environment":
    """As transformers renders chat templates, so that what passes here works there; but without the clock."""
    import json

    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, by which some templates mark the assistant's tokens, changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012 - the name and type are the base class's

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    made.globals["raise_exception"] = refuse
    return made


def _try(path: Path, text: str) -> None:
    """Write the probe down in all its lengths; a template that refuses system messages is tried without."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    try:
        template = _environment().from_string(text)
    except TemplateSyntaxError as error:
        _refuse(path, f"not a Jinja template: {error.message}", line=error.lineno, cure="correct the Jinja there")
    try:
        try:
            written = _written(path, template, _PROBE)
        except TemplateError:
            written = _written(path, template, _PROBE[1:])
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        what = f"the template cannot write a conversation: {type(error).__name__}: {error}"
        _refuse(path, what, line=_line_of(error), cure="each of `messages` has a `role` and a `content`")
    for before, after in pairwise(written):
        if not after.startswith(before):
            what = "the template writes earlier turns differently when later ones follow"
            _refuse(path, what, value=after[:200], cure="write each message the same way, wherever it stands")


def _written(path: Path, template: Any, messages: Sequence[tuple[str, str]]) -> list[str]:
    """The probe up to each answer, asked and then answered. Raises TemplateError; checks that every word is there."""
    found = []
    for index, (role, _) in enumerate(messages):
        if role != "assistant":
            continue
        for upto, prompt in ((index, True), (index + 1, False)):
            text = _render(path, template, messages[:upto], prompt=prompt)
            _check_order(path, text, messages[:upto])
            found.append(text)
    return found


def _check_order(path: Path, text: str, messages: Sequence[tuple[str, str]]) -> None:
    at = 0
    for role, content in messages:
        place = text.find(content, at)
        if place < 0:
            what = f"the template leaves out a message or writes it out of order: {role} message {content!r}"
            _refuse(path, what, value=text[:200], cure="write {{ message.content }} of every message, in turn")
        at = place + len(content)


def _render(path: Path, template: Any, messages: Sequence[tuple[str, str]], *, prompt: bool) -> str:
    text = ""
    for piece in template.generate(
        messages=[{"role": role, "content": content} for role, content in messages],
        bos_token=_BEGIN,
        eos_token=_END,
        add_generation_prompt=prompt,
    ):
        text += piece
        if len(text) > LARGEST_TEXT:
            _refuse(path, f"the template writes more than {LARGEST_TEXT:,} characters for {len(messages)} messages")
    return text


def _line_of(error: BaseException) -> int | None:
    """The template's line that an error came from: Jinja puts it into the traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _refuse(
    path: Path, what: str, *, line: int | None = None, value: object = None, cure: str | None = None
) -> NoReturn:
    raise DataError(what, where=str(path) if line is None else f"{path}:{line}", value=value, cure=cure)
