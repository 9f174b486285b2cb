"""The board of a run that is still going: every number from the answers on disk, each item once, at any cut."""

import json

import pytest

from metier.report.partial import EVERY_SECONDS, FILE, PartialBoard

STEPS = {
    "answers": {"kind": "answer", "models": ["base", "org/tuned"]},
    "scores": {"kind": "score", "answers": "answers", "metrics": ["rouge_l", {"semantic": {"model": "m"}}]},
}
N = 6


class Going:
    """A step that answers, in the files that `answer` writes."""

    def __init__(self, root):
        self.out = root / "runs" / "t"
        self.state = root / "state"
        (self.state / "answers").mkdir(parents=True)
        self.questions = root / "questions.jsonl"
        rows = [
            {"id": f"q{i}", "messages": [{"role": "user", "content": "Q"}], "group": "", "reference": f"word {i}"}
            for i in range(N)
        ]
        self.questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.time = 0.0

    def path(self, name):
        return self.state / "answers" / f"{name.replace('/', '--')}.jsonl"

    def line(self, i, text):
        return json.dumps({"id": f"q{i}", "text": text, "tokens": 2, "stopped": True}) + "\n"

    def event(self, name, done):
        return {
            "event": "answers_so_far", "step": "answers", "contender": name, "path": str(self.path(name)),
            "questions": str(self.questions), "done": done, "total": N,
        }  # fmt: skip

    def board(self):
        return PartialBoard(self.out, "t", STEPS, clock=lambda: self.time)

    def read(self):
        return json.loads((self.out / FILE).read_text())["steps"]["answers"]


@pytest.fixture
def going(tmp_path):
    return Going(tmp_path)


def test_contenders_are_ordered_by_what_all_have_answered(going):
    board = going.board()
    going.path("base").write_text("".join(going.line(i, "word 0" if i else "no") for i in range(N)))
    board.hear(going.event("base", N))
    going.path("org/tuned").write_text(going.line(0, "word 0") + going.line(1, "word 1"))
    going.time += EVERY_SECONDS
    board.hear(going.event("org/tuned", 2))
    found = going.read()
    assert found["common"] == 2
    assert found["ranked_by"]["metric"] == "rouge_l"  # what the recipe asks, as far as it is cheap
    assert [(c["name"], c["done"], c["total"]) for c in found["contenders"]] == [("org/tuned", 2, N), ("base", N, N)]
    assert found["contenders"][0]["common"]["rouge_l"] == 1.0
    first = next(s for s in found["contenders"][0]["scores"] if s["metric"] == "rouge_l")
    assert (first["n"], first["mean"]) == (2, 1.0)
    assert first["low"] < 1


def test_it_writes_at_most_every_two_seconds_and_when_one_is_through(going):
    board = going.board()
    going.path("base").write_text(going.line(0, "x"))
    board.hear(going.event("base", 1))
    going.path("base").write_text(going.line(0, "x") + going.line(1, "x"))
    board.hear(going.event("base", 2))
    assert going.read()["contenders"][0]["done"] == 1
    board.hear(going.event("base", N))
    assert going.read()["contenders"][0]["done"] == 2


def test_other_events_write_nothing(going):
    going.board().hear({"event": "progress", "step": "answers", "done": 1, "total": 2})
    assert not going.out.exists()


@pytest.mark.parametrize("cut", range(0, 440, 7))
def test_killed_at_any_byte_it_loses_and_repeats_nothing(going, cut):
    whole = "".join(going.line(i, f"word {i}") for i in range(N)).encode()
    cut = min(cut, len(whole))
    going.path("base").write_bytes(whole[:cut])
    going.board().hear(going.event("base", 0))
    lines = whole[:cut].count(b"\n")
    assert going.read()["contenders"][0]["done"] == lines
    # The run goes on: the torn line is dropped, an answer that was kept may be written again.
    kept = b"".join(whole[:cut].splitlines(keepends=True)[:lines])
    rest = whole[len(kept) :]
    again = kept.splitlines(keepends=True)[-1] if lines else b""
    going.path("base").write_bytes(kept + again + rest)
    going.board().hear(going.event("base", N))
    (row,) = going.read()["contenders"]
    assert (row["done"], row["skipped_lines"]) == (N, 0)
    assert row["scores"][0]["n"] == N


def test_contenders_of_an_earlier_run_are_there_from_the_first_event(going):
    going.path("base").write_text("".join(going.line(i, "x") for i in range(N)))
    going.path("org/tuned").write_text(going.line(0, "x"))
    going.board().hear(going.event("org/tuned", 1))
    assert {c["name"]: c["done"] for c in going.read()["contenders"]} == {"base": N, "org/tuned": 1}


def test_an_unfinished_line_waits_and_a_file_begun_again_is_read_again(going):
    board = going.board()
    going.path("base").write_text(going.line(0, "x") + '{"id": "q1", "te')
    board.hear(going.event("base", N))
    assert going.read()["contenders"][0]["done"] == 1
    going.path("base").write_text(going.line(5, "x"))
    board.hear(going.event("base", N))
    assert going.read()["contenders"][0]["done"] == 1


def test_strange_answers_do_no_harm(going):
    evil = "<script>\0\u202e\x1b[31m" + "x" * 100_000
    going.path("base").write_text(going.line(0, evil) + "not json\n" + going.line(99, "unknown id"))
    going.board().hear(going.event("base", N))
    (row,) = going.read()["contenders"]
    assert (row["done"], row["skipped_lines"]) == (1, 1)
    assert (going.out / FILE).stat().st_size < 5000


def test_a_step_that_is_through_stays_on_the_board_when_its_files_are_gone(going):
    board = going.board()
    going.path("base").write_text("".join(going.line(i, f"word {i}") for i in range(N)))
    board.hear(going.event("base", N))
    first = going.read()
    going.path("base").unlink()  # the scratch of a finished step goes
    again = going.state / "answers/again.jsonl"
    again.write_text(going.line(0, "word 0"))
    going.time += EVERY_SECONDS
    board.hear({**going.event("base", 1), "step": "sampled", "path": str(again)})
    assert going.read() == first
    steps = json.loads((going.out / FILE).read_text())["steps"]
    assert steps["sampled"]["contenders"][0]["done"] == 1
