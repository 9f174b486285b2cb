"""`metier label`: the sample, the terminal, and a form that only its user can reach."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.judge.desk import Desk, judge

from metier.cli.label import converse
from metier.cli.label_page import HOST, Form, open_server
from metier.core.errors import InputError
from metier.judge.labelling import Desk as LabelDesk
from metier.judge.labelling import open_desk, sample
from metier.judge.labels import read_labels
from metier.judge.rubric import shipped

HOSTILE = '<script>alert(1)</script>\x1b[2J\u202egpj.exe & "quotes"'
TOKEN = "a-token-of-the-test"


def label_desk(root: Path, count: int = 4, **options: Any) -> LabelDesk:
    questions = [(f"q{i}", f"Question {i}?", f"Reference {i}.") for i in range(20)]
    said = {name: [f"{name} says {i} {HOSTILE}" for i in range(20)] for name in ("base", "tuned")}
    made = Desk(root)
    folder = made.answers(questions, said)
    return open_desk(judge(**options), folder, shipped("consistency"), root / "labels.jsonl", who="ann", count=count)


def test_a_sample_is_drawn_evenly_and_is_the_same_again(tmp_path: Path):
    desk = label_desk(tmp_path, 10)
    assert Counter(item.key[1] for item in desk.items) == {"base": 5, "tuned": 5}
    cases = [item.case for item in desk.items]
    assert sample(cases, 4, 0) == sample(cases, 4, 0)
    assert sample(cases, 4, 0) != sample(cases, 4, 1)
    assert len(sample(cases, 99, 0)) == 10
    shown = [title for title, _ in desk.items[0].texts]
    assert shown == ["Question", "Reference", "Answer"]


def test_the_terminal_takes_labels_puts_off_and_takes_back(tmp_path: Path):
    desk = label_desk(tmp_path)
    first, second = desk.items[:2]
    said: list[str] = []
    answers = iter(["1", "what", "s", "hallucinated", "u", "3", "2", "2", "q"])
    converse(desk, ask=lambda _prompt: next(answers), say=said.append)
    assert len(desk.done) == 4
    assert desk.done[first.key] == "consistent"
    assert desk.done[second.key] == "hallucinated"  # put off, so it came last
    text = "\n".join(said)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "Give a number from 1 to 3" in text
    assert "base" not in text.replace("base says", "")  # nobody is named
    again = label_desk(tmp_path / "again")
    again.path.write_bytes(desk.path.read_bytes())
    lines = [json.loads(line) for line in desk.path.read_text().splitlines()]
    assert [line["label"] for line in lines].count(None) == 1
    assert {(one.id, one.contender, one.answer): one.label for one in read_labels([desk.path])} == desk.done


def test_a_sitting_goes_on_where_it_was_even_behind_a_torn_line(tmp_path: Path):
    desk = label_desk(tmp_path)
    desk.give(desk.items[0], "unknown")
    with desk.path.open("rb+") as file:
        file.seek(0, 2)
        file.truncate(file.tell() - 1)
    (tmp_path / "answers" / "files").rename(tmp_path / "moved")
    again = label_desk(tmp_path)
    assert list(again.done.values()) == ["unknown"]
    assert again.next() is again.items[1]
    again.give(again.items[1], "consistent")
    assert len(read_labels([again.path])) == 2
    with pytest.raises(InputError, match="no such label"):
        again.give(again.items[2], "fine")


def test_comparisons_change_places_and_labels_are_turned_back(tmp_path: Path):
    desk = label_desk(tmp_path, 20, pairwise={"against": "base"})
    assert {item.key[1] for item in desk.items} == {"tuned"}
    turned = [item for item in desk.items if item.turned]
    straight = [item for item in desk.items if not item.turned]
    assert turned
    assert straight
    desk.give(straight[0], "first")
    desk.give(turned[0], "first")
    assert desk.done[straight[0].key] == "better"
    assert desk.done[turned[0].key] == "worse"
    assert turned[0].texts[1][0] == "Reference"
    assert turned[0].texts[2][1].startswith("base says")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[httpx.Client, Form]]:
    server, form = open_server(label_desk(tmp_path), 0, TOKEN)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    with httpx.Client(base_url=f"http://{HOST}:{server.server_address[1]}", trust_env=False) as client:
        yield client, form
    server.shutdown()
    server.server_close()


def test_the_form_shows_an_answer_and_takes_its_label(page: tuple[httpx.Client, Form]):
    client, form = page
    shown = client.get("/", params={"token": TOKEN})
    assert shown.status_code == 200
    assert "<script>alert" not in shown.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown.text
    assert "\u202e" not in shown.text
    assert "‹U+202E›" in shown.text
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert shown.headers["referrer-policy"] == "no-referrer"
    given = client.post("/", data={"token": TOKEN, "item": "0", "do": "label hallucinated"})
    assert (given.status_code, given.headers["location"]) == (303, f"/?token={TOKEN}")
    assert list(form.desk.done.values()) == ["hallucinated"]
    for number in range(1, 4):
        client.post("/", data={"token": TOKEN, "item": str(number), "do": "label unknown"})
    assert "All are labelled" in client.get("/", params={"token": TOKEN}).text
    client.post("/", data={"token": TOKEN, "do": "undo"})
    assert len(form.desk.done) == 3


def test_nobody_else_gets_in(page: tuple[httpx.Client, Form]):
    client, form = page
    for params in ({}, {"token": "wrong"}, {"token": TOKEN + "x"}):
        assert client.get("/", params=params).status_code == 403
        assert client.post("/", data=params | {"item": "0", "do": "label unknown"}).status_code == 403
    elsewhere = client.get("/", params={"token": TOKEN}, headers={"Host": "evil.example"})
    assert elsewhere.status_code == 403
    assert form.desk.done == {}
    assert TOKEN not in elsewhere.text


@pytest.mark.parametrize(
    "fields",
    [
        {"item": "99", "do": "label unknown"},
        {"item": "-1", "do": "label unknown"},
        {"item": "9" * 30, "do": "skip"},
        {"item": "0", "do": "label fine"},
        {"item": "0", "do": "delete"},
        {"do": "skip"},
    ],
)
def test_what_the_form_does_not_offer_is_refused(page: tuple[httpx.Client, Form], fields: dict[str, str]):
    client, form = page
    assert client.post("/", data=fields | {"token": TOKEN}).status_code == 400
    assert form.desk.done == {}


def test_large_bodies_and_other_paths_are_refused(page: tuple[httpx.Client, Form]):
    client, _ = page
    assert client.post("/", data={"token": TOKEN, "item": "x" * 9000}).status_code == 413
    assert client.get("/etc/passwd", params={"token": TOKEN}).status_code == 404


def test_it_listens_on_this_machine_alone(tmp_path: Path):
    server, _ = open_server(label_desk(tmp_path), 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(InputError, match="the port cannot be used"):
            open_server(label_desk(tmp_path / "b"), server.server_address[1])
    finally:
        server.server_close()
