"""Bars that a test proves rather than a clock: `python -m benchmarks.proofs` runs those tests and counts them.

A test stands for its whole bar (every metric within 1e-6 of its reference on 200 cases; a leaderboard cut at every
item), so what is counted are tests that passed, of all that were asked for; one that was skipped does not count.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.rows import Row, write

ROOT = Path(__file__).parents[1]
METRICS = (
    "test_squad_metrics_equal_their_reference",
    "test_rouge_equals_rouge_score",
    "test_bleu_and_chrf_equal_sacrebleu",
    "test_tfidf_equals_scikit_learns_parts",
    "test_diversity_and_repetition_equal_nltks_runs",
    "test_semantic_similarity_equals_a_mean_over_tokens",
    "test_bertscore_equals_bert_score_and_its_formula",
)
KILLED = (
    "test_a_run_killed_at_any_item_goes_on_to_the_same_bytes",
    "test_a_process_that_is_killed_loses_nothing_and_repeats_nothing",
)
PROOFS = {
    "tests of metrics against their reference libraries, 200 cases, 1e-6": ("tests/measure/test_metrics.py", METRICS),
    "tests of a leaderboard cut at every item, and by SIGKILL: the same bytes, none repeated": (
        "tests/evaluate/test_answering.py",
        KILLED,
    ),
}


def main() -> None:
    rows = []
    for case, (file, names) in PROOFS.items():
        passed, asked = count(file, names)
        rows.append(Row(f"{case}: passed", passed, asked, "tests", "higher", n=asked))
    write("evaluation", "python -m benchmarks.proofs", rows)


def count(file: str, names: tuple[str, ...]) -> tuple[int, int]:
    """How many of these tests (each parameter one) passed, and how many there are. SystemExit for a missing one."""
    with tempfile.TemporaryDirectory(prefix="metier-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
        found = [case for case in ElementTree.parse(report).iter("testcase") if _name(case) in names]
    if missing := set(names) - {_name(case) for case in found}:
        raise SystemExit(f"{file} has no test named {', '.join(sorted(missing))}")
    return sum(len(case) == 0 for case in found), len(found)


def _name(case: ElementTree.Element) -> str:
    return case.attrib["name"].split("[")[0]


if __name__ == "__main__":
    main()
