"""`metier init`: look at the user's files, guess what they are, and write a commented recipe that runs.

Every guess stands in the recipe with its reason, to be corrected there. Two things are tried on the data: how much is
held out (enough that no split is empty), and how long examples may be (as the model allows). Refuses to write over a
recipe, and files of which nothing can be made.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from metier.cli.guess import Guess, guess_all
from metier.cli.looking import make
from metier.cli.proof import filling_questions, prove, tokenizer_for, too_long
from metier.core.errors import DataError, InputError
from metier.core.store import Store
from metier.models.builtin import plain_config, resolve
from metier.pipeline import Planned, check, plan
from metier.recipe import Recipe, load_recipe, match_files
from metier.train.known import context_of
from metier.train.stage import LONGEST_BY_DEFAULT, Tune

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
"""How much of a step's data is held out: the smallest share that leaves no split empty."""
Shares = dict[str, float]
ARTICLES, QUESTIONS, ADAPTER = "articles", "questions", "specialist-adapter"
RANK = 32
MOST_LISTED = 12
"""Files of one form that are listed one by one where a folder holds several forms."""


def write_recipe(data: Sequence[str], out: Path, model: str) -> None:
    """Write the recipe and say what was guessed. Raises InputError; nothing is written then."""
    if out.exists():
        raise InputError("there is a file already", where=str(out), cure="give another with --out, or move it away")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError("a recipe's name ends in .yaml", where="--out", value=str(out), cure="name it recipe.yaml")
    root = out.absolute().parent
    resolve(model, root, file_digest_of=lambda _path: "")
    given = [match_files(str(Path(pattern).expanduser().absolute()), Path.cwd()) for pattern in data]
    guesses, left = guess_all(dict.fromkeys(path for paths in given for path in paths))
    if not any(guess.role != "ids" for guess in guesses):
        names = ", ".join(sorted(path.name for path in left)[:5]) or "only lists of ids"
        raise DataError("nothing to learn from was found", value=names, cure="name files with texts or examples")
    for line in _told(guesses, left):
        typer.echo(line)
    problem = _write(guesses, data, out, model)
    typer.echo(f"Recipe: {out}")
    if problem is not None:
        typer.echo(f"The data is not sound yet: {problem}", err=True)
    typer.echo(f"Next: metier check {out}")


def _told(guesses: Sequence[Guess], left: Sequence[Path]) -> Iterator[str]:
    """What was found, a line a form."""
    counted = Counter((guess.wanted, guess.form + _rows(guess), guess.role) for guess in guesses)
    use = {"sources": "to learn from", "dev": "to choose by", "test": "to test with", "ids": "as a fixed list"}
    for (wanted, form, role), count in counted.items():
        what = form if wanted == "ids" else f"{wanted}: {form}"
        yield f"{count} file{'s' * (count != 1)}: {what}; {use[role]}"
    if left:
        names = ", ".join(path.name for path in left[:5]) + (" ..." if len(left) > 5 else "")
        yield f"left alone, as they hold neither text nor rows: {names}"


def _rows(guess: Guess) -> str:
    """Which rows of the file are meant, where not all are."""
    return f", where {guess.only[0]!r} is {' or '.join(map(repr, guess.only[1]))}" if guess.only else ""


def _write(guesses: Sequence[Guess], data: Sequence[str], out: Path, model: str) -> InputError | None:
    """Write the recipe with the smallest share held out that leaves no split empty. Returns what else is wrong."""
    shares: Shares = dict.fromkeys((ARTICLES, QUESTIONS), SHARES[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    fit = Fit(_rank(model, out.absolute().parent))
    while True:
        out.write_text(_recipe(guesses, data, out, model, shares, fit), encoding="utf-8", newline="\n")
        try:
            recipe = load_recipe(out)
            steps = {step.name: step for step in plan(recipe, Store(out.absolute().parent / ".metier"))}
            check(recipe, list(steps.values()))
            fitted, problem = _fitted(recipe, steps, fit)
        except DataError as error:
            if not _raise_shares(shares, error):
                return error
        except InputError:
            out.unlink()
            raise
        else:
            if fitted == fit:
                return problem
            fit = fitted


@dataclass(frozen=True)
class Fit:
    """What has to be said for the examples to fit the model. longest: of them, in tokens. rank: of its LoRA.
    max_question_chars: of the data step, where some questions fill the model's context.
    """

    rank: int = RANK
    max_length: int | None = None
    max_masked: float | None = None
    longest: int = 0
    max_question_chars: int | None = None


def _rank(model: str, root: Path) -> int:
    """The usual LoRA rank, or what a very narrow model has room for."""
    config = plain_config(resolve(model, root, file_digest_of=lambda _path: "").path)
    width = int(config.get("hidden_size") or config.get("n_embd") or RANK)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    side = width // heads * int(config.get("num_key_value_heads") or heads)
    return max(1, min(RANK, side // 2))


def _fitted(recipe: Recipe, steps: Mapping[str, Planned], fit: Fit) -> tuple[Fit, InputError | None]:
    """The settings by which the examples fit the model, and what is wrong still. fit: those that the recipe has now."""
    if QUESTIONS not in steps:
        return Fit(fit.rank), None
    with TemporaryDirectory(prefix="metier-init-") as aside:
        folder = make(recipe, steps[QUESTIONS], {}, Path(aside))
        assert folder is not None
        asked = _longest_question(recipe, steps, folder)
        if asked is not None:
            return replace(fit, max_question_chars=asked), None
        stage = steps[ADAPTER].stage
        assert isinstance(stage, Tune)
        proof = prove(recipe, steps, ADAPTER, folder, shown=0)
        _, base = tokenizer_for(recipe, steps, stage.model, steps[ADAPTER].sources)
        assert proof is not None
        assert base is not None
        wrong = next(iter(too_long(recipe, steps, "answers", folder)), None)
    fitted = Fit(fit.rank, max_question_chars=fit.max_question_chars)
    default = Tune.model_fields["max_masked"].default
    context = context_of(plain_config(base))
    if proof.beyond(min(context, LONGEST_BY_DEFAULT)) <= default:
        return fitted, wrong
    length = min(context, -(-proof.quantile(1 - default) // 64) * 64)
    over = proof.beyond(length)
    masked = None if over <= default else math.ceil(over * 100) / 100
    return replace(fitted, max_length=length, max_masked=masked, longest=proof.lengths[-1]), wrong


def _longest_question(recipe: Recipe, steps: Mapping[str, Planned], folder: Path) -> int | None:
    """Characters below those of every test question that fills a contender's context.

    None where none does, or where so many do that leaving them out would leave no test.
    """
    found = list(filling_questions(recipe, steps, "answers", folder))
    filling = [row for *_, rows in found for row in rows]
    if not filling or any(2 * len(rows) > count for _, _, count, rows in found):
        return None
    shortest = min(sum(len(message.content) for message in row.messages[:-1]) for row in filling)
    return max(1, (shortest - 1) // 100 * 100 or shortest - 1)


def _raise_shares(shares: Shares, error: InputError) -> bool:
    """Hold out more in the steps that have an empty split, or nothing of so few texts. False: that is no cure."""
    raised = False
    for one in (error, *error.others):
        step = next((name for name in shares if f": {name}" in str(one.where)), None)
        if step is None or "nothing is left in" not in one.what or not shares[step]:
            continue
        more = [share for share in SHARES if share > shares[step]]
        if more or step == ARTICLES:
            shares[step] = more[0] if more else 0.0
            raised = True
    return raised


def _recipe(guesses: Sequence[Guess], data: Sequence[str], out: Path, model: str, shares: Shares, fit: Fit) -> str:
    """The recipe's text."""
    root = out.absolute().parent
    texts = [guess for guess in guesses if guess.wanted == "texts"]
    examples = [guess for guess in guesses if guess.wanted == "examples"]
    ids = [guess for guess in guesses if guess.wanted == "ids"]
    if texts and not any(guess.role == "sources" for guess in texts):
        texts = [_as(guess, "sources") for guess in texts]
    if examples and not any(guess.role == "sources" for guess in examples):
        examples = [_as(guess, "sources") for guess in examples]
    parts = [_head(data, out)]
    if texts:
        parts.append(_documents(texts, root, shares[ARTICLES]))
    if examples:
        parts.append(_examples(examples, ids, root, shares[QUESTIONS], fit))
    small = model == "seedling"
    if texts:
        parts.append(_pretrain(model, small))
    if examples:
        parts.append(_tune("reader" if texts else model, small, fit))
    held = bool(shares[ARTICLES]) or any(guess.role != "sources" for guess in texts)
    parts.append(_measure(model, texts=bool(texts), examples=bool(examples), held=held))
    return "\n".join(parts)


def _as(guess: Guess, role: str) -> Guess:
    return replace(guess, role=role)  # type: ignore[arg-type]


def _head(data: Sequence[str], out: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.stem).strip("-._") or "recipe"
    return f"""\
# Written by `metier init {" ".join(data)}`. Everything in it is yours to change; `metier schema` lists every key.
#
#   metier check {out.name}    reads all data, says what is wrong in it and shows which tokens train
#   metier plan {out.name}     what would run, and how long it takes
#   metier run {out.name}      runs it, and ends with a report
name: {name}
steps:"""


def _documents(texts: Sequence[Guess], root: Path, share: float) -> str:
    held = [guess for guess in texts if guess.role != "sources"]
    lines = [f"  # What to read: {_forms(texts)}.", "  articles:", "    kind: documents"]
    lines += _sources("sources", [guess for guess in texts if guess.role == "sources"], root)
    if held:
        lines += ["    # By their names, these are to measure with; what stands there is never trained on."]
        lines += _sources("heldout", held, root)
    elif not share:
        lines.append("    # Too few texts to hold any out: add `heldout` with texts to measure with.")
    else:
        lines += [
            "    # Held out to measure with: whole texts, chosen by their content, so that adding some moves none.",
            f"    heldout_fraction: {share}",
        ]
    lines += [
        "    # duplicates: {near: true}      # drop near-duplicates too; exact ones always go",
        "    # privacy: {action: redact}     # e-mail addresses, numbers and the like are only reported otherwise",
        "    # replay: {sources: [{path: general.jsonl}], ratio: 0.1}   # general text, against forgetting",
    ]
    return "\n".join(lines) + "\n"


def _examples(examples: Sequence[Guess], ids: Sequence[Guess], root: Path, share: float, fit: Fit) -> str:
    roles = {guess.role for guess in examples}
    lines = [f"  # What to answer: {_forms(examples)}.", "  questions:", "    kind: examples"]
    for role in ("sources", "dev", "test"):
        chosen = [guess for guess in examples if guess.role == role]
        lines += _sources(role, chosen, root) if chosen else []
    fractions = [name for name in ("dev", "test") if name not in roles and not (name == "test" and ids)]
    if fractions:
        lines.append("    # Held out by the question, so that no question stands on two sides.")
        lines += [f"    {name}_fraction: {share}" for name in fractions]
    lines.append("    # Questions with the same answer stay on one side too. `overlap` instead of `answer` also keeps")
    lines.append("    # together what only shares long stretches; it takes longer.")
    lines.append("    split:")
    lines.append("      by: [answer]")
    if ids:
        lines.append("      # A list of ids: these rows are the test, and training on one is refused.")
        lines += [f"      ids: {{test: {_path(ids[0].path, root)}}}"]
    group = next((guess.group for guess in examples if guess.group), "")
    if group and group != "group":
        lines.append(
            f"    # Rows may belong together by {group!r}: map it with `fields: {{group: {group}}}`, add `group` above."
        )
    if fit.max_question_chars is not None:
        lines += [
            "    # Longer questions fill all that the model can read, and leave no room for an answer: they are left",
            "    # out of every split, and listed. Scores are then of the others, not of the whole test.",
            f"    max_question_chars: {fit.max_question_chars}",
        ]
    lines += [
        "    # What is tested and also trained on is left out of training and listed; `stop` refuses to go on instead.",
        "    contamination: {action: drop}",
        "    # privacy: {action: redact}",
    ]
    return "\n".join(lines) + "\n"


def _pretrain(model: str, small: bool) -> str:
    rate = "    optimizer: muon\n    learning_rate: 2.0e-3" if small else "    learning_rate: 2.0e-5"
    return f"""\
  # Read: every token is learned. `seedling` comes with Metier; any Llama- or GPT-2-like model in a local folder or in
  # the local Hugging Face cache can stand here instead, with a lower learning rate.
  reader:
    kind: pretrain
    model: {json.dumps(model)}
    documents: articles
{rate}
    epochs: 2
    batch_size: 4
"""


def _tune(model: str, small: bool, fit: Fit) -> str:
    length = ""
    if fit.max_length is not None:
        length = f"    # The longest example has {fit.longest:,} tokens; what is longer than max_length is cut.\n"
        length += f"    max_length: {fit.max_length}\n"
    if fit.max_masked is not None:
        length += (
            "    # More than a twentieth are cut, as the model reads no more: another model would serve them better.\n"
        )
        length += f"    max_masked: {fit.max_masked}\n"
    lora = f"r: {fit.rank}, alpha: {2 * fit.rank}" + ("" if small else ", dropout: 0.05")
    rate = "2.0e-3" if small else "2.0e-4"
    return f"""\
  # Answer: only the answers' tokens are learned. `prompt` is how a conversation is written down: auto takes the model's
  # own chat template; plain, zephyr, alpaca, patient-scenario or {{file: my.jinja}} are others.
  {ADAPTER}:
    kind: tune
    model: {json.dumps(model)}
    examples: questions
    prompt: auto
    method: {{lora: {{{lora}}}}}
    learning_rate: {rate}
    epochs: 2
    batch_size: 16
{length}  specialist:
    kind: merge
    model: {ADAPTER}
"""


def _measure(model: str, *, texts: bool, examples: bool, held: bool) -> str:
    models = [json.dumps(model), *(["reader"] if texts else []), *(["specialist"] if examples else [])]
    named = ", ".join(models)
    parts = []
    if examples:
        parts.append(f"""\
  # Is it better? All answer the same questions; differences come with intervals and a paired test.
  answers:
    kind: answer
    models: [{named}]
    questions: questions
    max_new_tokens: 128
    limit: 200
  scores:
    kind: score
    answers: answers
""")
    if texts and held:
        parts.append(f"""\
  likelihood:
    kind: perplexity
    models: [{named}]
    documents: [articles]
""")
    return "\n".join(parts)


def _forms(guesses: Sequence[Guess]) -> str:
    counted = Counter(form for _, form in dict.fromkeys((guess.path, guess.form) for guess in guesses))
    return "; ".join(f"{count} file{'s' * (count != 1)} with {form}" for form, count in counted.items())


def _sources(name: str, guesses: Sequence[Guess], root: Path) -> list[str]:
    """A list of sources: one for each file, or for a whole folder where all its files are alike."""
    lines = [f"    {name}:"]
    for path, guess in _entries(guesses):
        more = ""
        if guess.fields:
            more = ", fields: {" + ", ".join(f"{ours}: {_word(own)}" for ours, own in guess.fields) + "}"
        elif guess.wanted == "texts" and guess.field != "text":
            more = f", field: {_word(guess.field)}"
        if guess.only:
            column, values = guess.only
            listed = _word(values[0]) if len(values) == 1 else "[" + ", ".join(map(_word, values)) + "]"
            more += f", only: {{{_word(column)}: {listed}}}"
        lines.append(f"      - {{path: {_path(path, root)}{more}}}")
    return lines


def _entries(guesses: Sequence[Guess]) -> Iterator[tuple[Path, Guess]]:
    """Files as they are, or as the pattern of their folder and suffix where there are many of one setting."""
    alike: dict[tuple[object, ...], list[Guess]] = {}
    for guess in guesses:
        alike.setdefault((guess.path.parent, guess.path.suffix, *guess.setting), []).append(guess)
    for files in alike.values():
        folder, suffix = files[0].path.parent, files[0].path.suffix
        same = [path for path in folder.iterdir() if path.suffix == suffix and path.is_file()]
        if len(files) > MOST_LISTED and len(same) == len(files):
            yield folder / f"*{suffix}", files[0]
        else:
            yield from ((guess.path, guess) for guess in files)


def _path(path: Path, root: Path) -> str:
    """A path as the recipe writes it: relative to the recipe, quoted."""
    return json.dumps(Path(os.path.relpath(path, root)).as_posix(), ensure_ascii=False)


def _word(text: str) -> str:
    """A field's name, quoted where YAML would read it as something else."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) and text.lower() not in ("null", "true", "false")
    return text if plain else json.dumps(text, ensure_ascii=False)
