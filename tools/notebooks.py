"""Write `notebooks/*.ipynb` from the cells below, without outputs: `python -m tools.notebooks`."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"

INSTALL = """\
# Metier, where it is not there yet: from the project's folder, in which this notebook lies.
# On Colab or Kaggle, first bring the project there (upload or clone it) and say where it is in METIER_ROOT.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

places = [Path(os.environ["METIER_ROOT"])] if "METIER_ROOT" in os.environ else [Path.cwd(), Path.cwd().parent]
ROOT = next((place.resolve() for place in places if (place / "recipes" / "quickstart.yaml").is_file()), None)
if ROOT is None:
    raise SystemExit("The project's folder is not here: set METIER_ROOT to it and run this cell again.")
if importlib.util.find_spec("metier") is None:
    # without the project's constraints: a torch for the GPU that is there stays
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
"""

SMOKE = """\
# METIER_SMOKE makes a run of seconds that only shows that all works; its scores mean nothing.
SMOKE = bool(os.environ.get("METIER_SMOKE"))
overrides = {overrides} if SMOKE else []
"""

QUICKSTART = [
    (
        "md",
        "# Quickstart\n\nA small general model becomes a marine biologist: it reads articles, learns to answer, and is "
        "measured against what it was before. On a laptop with two cores this takes about six minutes; what is made "
        "once is kept, so running the notebook again takes seconds.",
    ),
    ("code", INSTALL),
    (
        "md",
        "## Run the recipe\n\nThe recipe says what is read, what is trained and what is measured. Interrupt the kernel "
        "to stop at a safe point; run the cell again to go on.",
    ),
    ("code", 'import metier\n\nprint((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))'),
    (
        "code",
        SMOKE.format(
            overrides='["reader.max_steps=2", "specialist-adapter.max_steps=2", "pairs-adapter.max_steps=2", '
            '"answers.limit=2",\n             "likelihood.limit=2"]'
        )
        + '\nrun = metier.run(ROOT / "recipes" / "quickstart.yaml", overrides)\nrun',
    ),
    (
        "md",
        "## Is it better?\n\nEvery contender answered the same questions. `low` to `high` is the interval of the mean: "
        "where two intervals lie apart, the difference is no accident of the sample.",
    ),
    ("code", 'run.scores(metric="token_f1", group="all")'),
    (
        "code",
        """\
import matplotlib.pyplot as plt

rows = run.scores(metric="token_f1", group="all")[::-1]
means = [row["mean"] for row in rows]
reach = [[row["mean"] - row["low"] for row in rows], [row["high"] - row["mean"] for row in rows]]
figure, axes = plt.subplots(figsize=(7, 3))
axes.barh([row["contender"] for row in rows], means, xerr=reach, color="#5b8db8", ecolor="#444444", capsize=3)
axes.set(xlabel=f"token F1, n = {rows[0]['n']}", xlim=(0, 1))
figure.tight_layout()
plt.show()""",
    ),
    (
        "md",
        "## The report\n\nOne page: training curves, each stage against the base with a worded verdict, what was "
        "forgotten, answers side by side, latency and memory, lineage.",
    ),
    ("code", "run.report()"),
    ("md", "## Talk with it\n\nThe base and the specialist on the same question, then a talk."),
    (
        "code",
        """\
specialist = run.model("specialist")
question = "What does the narwhal eat?"
print("base:      ", metier.model("seedling").ask(question, max_new_tokens=32))
print("specialist:", specialist.ask(question, max_new_tokens=32))""",
    ),
    (
        "code",
        'print(specialist.chat("Where does the sea otter live?", max_new_tokens=32))\n'
        'print(specialist.chat("What does it eat?", max_new_tokens=32))',
    ),
]

YOUR_DATA = [
    (
        "md",
        "# Your own data\n\nTwo files are enough: texts of your trade, and questions with answers. This notebook "
        "writes small ones to show the form; put your own in their place (JSONL, CSV, Parquet, Markdown, PDF and "
        "more: see `docs/data.md`).",
    ),
    ("code", INSTALL),
    (
        "md",
        "## The data\n\nA text a line, and a question with its answer a line. Give `metier.init` your files instead, "
        "and leave this cell out.",
    ),
    (
        "code",
        """\
import json

folder = Path("my-trade")
folder.mkdir(exist_ok=True)
keepers = ["Ada", "Bram", "Cleo", "Dora", "Edda", "Finn", "Gita", "Hugo", "Iris", "Jonas", "Kira", "Lars"]
tools = {"saw": "wood shop", "lathe": "metal shop", "printer": "print room", "kiln": "pottery", "loom": "weaving room"}
texts, questions = [], []
for i, keeper in enumerate(keepers):
    for j, (tool, room) in enumerate(tools.items()):
        shelf = (7 * i + 3 * j) % 40 + 1
        texts.append({"text": f"The {tool} of {keeper} stands in the {room}. Its parts lie on shelf {shelf}."})
        questions.append({"question": f"Where are the parts of {keeper}'s {tool}?", "answer": f"On shelf {shelf}."})
for name, rows in (("texts.jsonl", texts), ("questions.jsonl", questions)):
    (folder / name).write_text("".join(json.dumps(row) + "\\n" for row in rows), encoding="utf-8")
print(len(texts), "texts,", len(questions), "questions")""",
    ),
    (
        "md",
        "## The recipe\n\n`metier.init` looks at the files, guesses what they are, and writes a recipe with a reason "
        "for every guess. It is yours to change; it is written once and kept.",
    ),
    (
        "code",
        """\
import metier

recipe = folder / "my-trade.yaml"
if not recipe.exists():
    metier.init([folder / "texts.jsonl", folder / "questions.jsonl"], recipe)
print(recipe.read_text(encoding="utf-8"))""",
    ),
    (
        "md",
        "## Run it\n\nWhat is wrong in the data is said before anything is trained: the file, the line, the value and "
        "what to do. `overrides` change a setting for one run, such as `reader.epochs=4`.",
    ),
    (
        "code",
        SMOKE.format(
            overrides='["reader.max_steps=2", "specialist-adapter.max_steps=2", "answers.limit=2", '
            '"answers.max_new_tokens=8",\n             "likelihood.limit=2"]'
        )
        + "\nrun = metier.run(recipe, overrides)\nrun.scores()",
    ),
    (
        "md",
        "Few test questions give wide intervals: believe no difference that they span. `docs/not-better.md` says what "
        "to look at when the specialist is no better than the base.",
    ),
    ("code", "run.report()"),
    ("md", "## Talk with it"),
    (
        "code",
        'specialist = run.model("specialist")\nprint(specialist.ask("Where are the parts of Ada\'s saw?", '
        "max_new_tokens=32))",
    ),
]

MARINE = [
    (
        "md",
        "# Marine biology\n\nFacts in a table become 150 questions with answers, a chat model is tuned on them, and "
        "both are asked the same facts in other words.\n\nAs it stands, every step is run small: the bundled "
        "seedling takes TinyLlama's place, on a laptop and without a network. With `SMALL = False` it is TinyLlama "
        "1.1B Chat on a base in 4 bits, on a GPU of 16 GB, once the models that the recipe names are in the local "
        "cache.",
    ),
    ("code", INSTALL),
    (
        "md",
        "## The facts\n\nA row for each animal, and templates that tell and ask what stands there. No model writes a "
        "question, so no answer is wrong that the table has right.",
    ),
    (
        "code",
        """\
DATA = ROOT / "recipes" / "data" / "marine-biology"
print("".join((DATA / "reef.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:5]))
print((DATA / "reef.yaml").read_text(encoding="utf-8"))""",
    ),
    ("md", "## Run the recipe\n\nInterrupt the kernel to stop at a safe point; run the cell again to go on."),
    (
        "code",
        "SMALL = True  # False: TinyLlama itself\n"
        + SMOKE.format(overrides='["adapter.max_steps=2", "answers.limit=2", "verdicts.limit=2", "likelihood.limit=2"]')
        + """\

import metier

run = metier.run(ROOT / "recipes" / "marine-biology.yaml", overrides, smoke=SMALL)
run""",
    ),
    (
        "md",
        "## The pairs\n\nEach with the sentence that proves it, and as the model reads it: in turns of `<|user|>` and "
        "`<|assistant|>`.",
    ),
    (
        "code",
        """\
import json

lines = (run.artifact("pairs").files / "train.jsonl").read_text(encoding="utf-8").splitlines()
print(len(lines), "pairs")
for line in lines[:3]:
    pair = json.loads(line)
    for message in pair["messages"]:
        print(f"<|{message['role']}|>\\n{message['content']}")
    print("evidence:", pair["meta"]["evidence"], "\\n")""",
    ),
    (
        "md",
        "## Is it better?\n\nROUGE counts shared words and runs of words, token F1 shared words, TF-IDF weighs rare "
        "ones, BERTScore compares how an encoder reads both. `low` to `high` is the interval of the mean.",
    ),
    ("code", 'run.scores(group="all")'),
    (
        "code",
        """\
import matplotlib.pyplot as plt

rows = run.scores(group="all")
metrics = [name for name in ("token_f1", "rouge_1", "rouge_l", "tfidf", "bertscore")
           if any(row["metric"] == name for row in rows)]
contenders = list(dict.fromkeys(row["contender"] for row in rows if row["metric"] == metrics[0]))
figure, axes = plt.subplots(figsize=(9, 3.5))
for place, contender in enumerate(contenders):
    own = {row["metric"]: row for row in rows if row["contender"] == contender}
    shown = [(at, own[name]) for at, name in enumerate(metrics) if name in own]
    means = [row["mean"] for _, row in shown]
    reach = [[row["mean"] - row["low"] for _, row in shown], [row["high"] - row["mean"] for _, row in shown]]
    width = 0.8 / len(contenders)
    axes.bar([at + place * width for at, _ in shown], means, width, yerr=reach, capsize=2, label=contender)
axes.set(ylabel=f"mean, n = {rows[0]['n']}", ylim=(0, 1))
axes.set_xticks([at + 0.4 - width / 2 for at in range(len(metrics))], metrics)
axes.legend(fontsize="small", ncols=len(contenders), loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
figure.tight_layout()
plt.show()""",
    ),
    ("md", "## The report\n\nEvery figure, each answer beside its reference, what was forgotten, lineage."),
    ("code", "run.report()"),
    ("md", "## Talk with it"),
    (
        "code",
        """\
specialist = run.model("specialist")
for question in ("What will the sea otter eat?", "Where can the narwhal be found?"):
    print(question, "->", specialist.ask(question, max_new_tokens=32))""",
    ),
]

NOTEBOOKS = {"marine-biology.ipynb": MARINE, "quickstart.ipynb": QUICKSTART, "your_data.ipynb": YOUR_DATA}


def written(cells: list[tuple[str, str]]) -> str:
    """A notebook's JSON: no outputs, and cells named by their number, so that the same cells give the same bytes."""
    made = [
        (new_markdown_cell if kind == "md" else new_code_cell)(source.rstrip("\n"), id=f"cell-{number}")
        for number, (kind, source) in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=made, metadata={**kernel, "language_info": {"name": "python"}})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, cells in NOTEBOOKS.items():
        (FOLDER / name).write_text(written(cells), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
