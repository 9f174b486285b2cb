"""A teacher model: what it is asked, what of its replies stays, what it costs, and that a killed run goes on."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.engine.stand_in import StandIn, serving

import fakes
from metier.core.errors import DataError, EndpointError, InputError, Interrupted, RecipeError, StoreError
from metier.core.events import Events
from metier.core.fingerprint import file_digest, tree
from metier.core.stage import Context, Source
from metier.engine import remote
from metier.engine.scripted import ScriptedEngine
from metier.models.save import save_model
from metier.synthesize import asking, making
from metier.synthesize.chunks import sentences
from metier.synthesize.pair import TYPES
from metier.synthesize.synthesis import Synthesize
from metier.text.artifacts import about, read_conversations, read_jsonl, write_jsonl
from metier.text.nouns import Message

FACTS = {
    "crab": "The shore crab eats mussels. It sheds its shell several times a year. Gulls hunt it at low tide.",
    "kelp": "Giant kelp grows 60 centimetres a day. It is held by a holdfast. Sea urchins graze on it.",
    "eel": "The moray eel hides in crevices. It has a second pair of jaws. It hunts at night by smell.",
}
FAR = {"endpoint": "http://127.0.0.1:9/v1", "model": "tiny", "tries": 8, "timeout_seconds": 0.4, "concurrency": 2}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "LOOK", 0.02)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def marked(text: str, name: str) -> str:
    """What stands between the marks under a name in a prompt."""
    found = re.search(rf"The {name}:\n(<<\w+>>)\n(.*?)\n\1\n", text, re.DOTALL)
    assert found
    return found[2]


def honest(messages: Sequence[Message]) -> str:
    """A teacher that asks for the first words of each sentence, and finds all in order."""
    text = messages[1].content
    if "Write" not in text:
        return json.dumps({"answerable": True, "supported": True, "clear": True, "note": ""})
    said = sentences(marked(text, "passage"))
    kinds = re.findall(r"^\d+\. (\w+) \(.*?\), (\w+)", text, re.MULTILINE)
    pairs = [
        {
            "question": f"What is told, as case {number}, of {' '.join(one.split()[:3])}?",
            "answer": one,
            "evidence": [one],
            "type": kind,
            "difficulty": hardness,
        }
        for number, ((kind, hardness), one) in enumerate(zip(kinds, said, strict=False))
    ]
    return json.dumps({"pairs": pairs})


class Desk:
    """Documents, and a step over them."""

    def __init__(self, root: Path, texts: dict[str, str] = FACTS) -> None:
        self.root = root
        self.events: list[dict[str, Any]] = []
        self.sources: dict[str, Source] = {}
        folder = root / "texts"
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
        self.sources["texts"] = Source("texts", (folder,), "", "")

    def stage(self, **options: Any) -> Synthesize:
        return Synthesize.model_validate({"documents": "texts", "teacher": FAR} | options)

    def context(self, name: str, stop: Callable[[], bool] = lambda: False) -> Context:
        folders = [self.root / name / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return Context("pairs", *folders, Events("pairs", None, [self.events.append]), self.sources, stop)

    def teach(self, engine: Any, name: str = "one", stop: Callable[[], bool] = lambda: False, **options: Any) -> Path:
        """Run the step with an engine of ours."""
        stage, ctx = self.stage(**options), self.context(name, stop)
        making.finish(stage, ctx, asking.from_teacher(stage, ctx, engine))
        return ctx.out

    def run(self, server: StandIn, name: str = "one", **options: Any) -> Path:
        """Run the step as a recipe would, against the stand-in server."""
        stage, ctx = self.stage(**({"teacher": FAR | {"endpoint": server.url}} | options)), self.context(name)
        stage.check(self.sources)
        stage.run(ctx)
        return ctx.out


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {path: file_digest(file) for path, file in tree(folder).items()}


def reasons(folder: Path) -> list[str]:
    return [row["reason"] for row in read_jsonl(folder / "rejects.jsonl")]


def replying(change: Callable[[dict[str, Any]], Any]) -> ScriptedEngine:
    """The honest teacher, its first pair of each passage changed."""

    def say(messages: Sequence[Message]) -> str:
        reply = json.loads(honest(messages))
        if reply.get("pairs"):
            reply["pairs"][0] = change(reply["pairs"][0])
        return json.dumps(reply)

    return ScriptedEngine(say)


def test_pairs_of_every_passage_with_their_provenance(desk: Desk):
    engine = ScriptedEngine(honest)
    files = desk.teach(engine)
    made = read_conversations(files, "train")
    assert len(made) == 9
    one = made[0]
    assert one.messages[1].content == "The shore crab eats mussels."
    assert one.meta["evidence"] == "The shore crab eats mussels."
    assert (one.meta["document"], one.meta["passage"], one.meta["teacher"]) == ("crab", "crab#1", "tiny")
    assert one.group == one.meta["type"] == TYPES[0]
    facts = about(files)["synthesis"]
    assert list(facts["types"].values()) == [2, 1, 1, 1, 1, 1, 1, 1]
    assert facts["difficulties"] == {"easy": 4, "medium": 3, "hard": 2}
    assert facts["coverage"]["sentences"] == facts["coverage"]["quoted"] == 9
    assert len(engine.asked) == 3 + 9, "a question a passage, and a check a pair"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evidence": ["The crab eats whales now."]}, "evidence not in the source: 'The crab eats"),
        ({"evidence": []}, "no evidence"),
        ({"evidence": ["It"]}, "evidence too short"),
        ({"answer": "It eats 17 mussels."}, "number not in the evidence: 17"),
        ({"answer": "Photosynthesis drives the whole estuary economy."}, "answer not in the evidence: 0 of"),
        ({"question": "What does the passage say of crabs?"}, "does not stand by itself: the question speaks of 'the"),
        ({"question": "Why, according to the author?"}, "does not stand by itself"),
        ({"answer": ""}, "empty"),
        ({"answer": "mussels " * 200}, "too long: the answer has"),
        ({"answer": None}, "not in the form asked for: answer is no text"),
        ({"evidence": [3]}, "not in the form asked for: evidence"),
        ({"type": "poem"}, "of another kind than asked for: 'poem'"),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_kept_with_its_reason(desk: Desk, change: dict[str, Any], reason: str):
    files = desk.teach(replying(lambda pair: pair | change))
    found = [one for one in reasons(files) if one.startswith(reason)]
    assert len(found) >= 1
    assert len(read_conversations(files, "train")) + len(reasons(files)) == 9
    assert about(files)["rejected"] == len(reasons(files))


def test_quotation_marks_and_white_space_do_not_decide(tmp_path: Path):
    desk = Desk(tmp_path, {"a": "The “sea  mouse” is\na worm – not a mouse. It crawls slowly."})
    engine = replying(
        lambda p: p | {"evidence": ['the "sea mouse" is a worm - not a mouse.'], "answer": "The sea mouse is a worm."}
    )
    assert not reasons(desk.teach(engine))


def test_what_is_asked_twice_stays_once(desk: Desk):
    same = {"question": "What do people say about animals of the northern shore today?"}
    files = desk.teach(replying(lambda pair: pair | same))
    assert [r.split(":")[0] for r in reasons(files)] == ["asked before with another answer"] * 2


def test_the_teacher_denies_its_own_pairs(desk: Desk):
    def say(messages: Sequence[Message]) -> str:
        text = messages[1].content
        if "Write" in text:
            return honest(messages)
        answer = marked(text, "answer")
        if "jaws" in answer:
            return "I would rather not say."
        return json.dumps(
            {"answerable": True, "supported": "urchins" not in answer, "clear": True, "note": "no\nproof"}
        )

    files = desk.teach(ScriptedEngine(say))
    assert sorted(reasons(files)) == [
        "denied by the self-check: the passage does not bear out the answer (no proof)",
        "self-check unreadable: I would rather not say.",
    ]
    unchecked = desk.teach(ScriptedEngine(say), "two", ask={"self_check": False})
    assert not reasons(unchecked)


def test_a_reply_that_is_no_json_is_asked_for_again(desk: Desk):
    engine = ScriptedEngine()
    first: set[str] = set()

    def say(messages: Sequence[Message]) -> str:
        text = messages[1].content
        if "Write" in text and "crevices" in text:
            return "[1, 2"
        if "Write" in text and text not in first:
            first.add(text)
            return "Certainly! Here you are."
        return "Of course:\n```json\n" + honest(messages) + "\n```"

    engine._say = say
    files = desk.teach(engine)
    assert len(read_conversations(files, "train")) == 6
    assert reasons(files) == ["no JSON: 2 replies were not of the form asked for"]
    again = [m for m in engine.asked if len(m) == 4 and "kelp" in m[1].content]
    assert [m.role for m in again[0]] == ["system", "user", "assistant", "user"]
    assert again[0][2].content == "Certainly! Here you are."
    assert about(files)["synthesis"]["answered"] == 2


def test_a_killed_run_goes_on_and_writes_the_same_bytes(desk: Desk):
    whole = digests(desk.teach(ScriptedEngine(honest), "whole"))
    total = 12
    for killed_after in range(total):
        said: list[str] = []

        def say(messages: Sequence[Message], said: list[str] = said, after: int = killed_after) -> str:
            if len(said) == after:
                raise KeyboardInterrupt
            said.append(messages[1].content)
            return honest(messages)

        name = f"killed-{killed_after}"
        with pytest.raises(KeyboardInterrupt):
            desk.teach(ScriptedEngine(say), name)
        kept = desk.root / name / "scratch/replies.jsonl"
        if kept.is_file():  # cut short while a line was written
            with kept.open("ab") as file:
                file.write(b'{"key": "half')
        rest = ScriptedEngine(honest)
        assert digests(desk.teach(rest, name)) == whole
        assert len(said) + len(rest.asked) == total, "nothing is asked twice"


def test_a_stop_is_heard_and_what_came_is_kept(desk: Desk):
    engine = ScriptedEngine(honest)
    with pytest.raises(Interrupted):
        desk.teach(engine, stop=lambda: len(engine.asked) >= 2)
    rest = ScriptedEngine(honest)
    desk.teach(rest)
    assert len(engine.asked) + len(rest.asked) == 12
    assert any("kept from the run before" in e.get("text", "") for e in desk.events)


def test_damaged_replies_are_named(desk: Desk):
    kept = desk.context("one").scratch / "replies.jsonl"
    kept.write_text("[]\n")
    with pytest.raises(StoreError, match="kept replies cannot be read"):
        desk.teach(ScriptedEngine(honest))


def test_what_is_held_out_is_no_material_and_passages_can_be_fewer(desk: Desk):
    write_jsonl(desk.root / "texts/heldout.jsonl", [{"id": "secret", "text": "The heldout whale sings."}])
    engine = ScriptedEngine(honest)
    files = desk.teach(engine, ask={"max_passages": 2, "per_passage": 1, "self_check": False})
    assert not any("heldout whale" in m[1].content for m in engine.asked)
    assert {c.meta["document"] for c in read_conversations(files, "train")} == {"crab", "kelp"}


# --- a server


def test_a_server_that_fails_now_and_then_loses_nothing(desk: Desk):
    def answer(body: dict[str, Any]) -> str:
        return honest([Message(m["role"], m["content"]) for m in body["messages"]])

    with serving(StandIn()) as server:
        server.answer = answer
        whole = digests(desk.run(server, "whole"))
        asked = len(server.asked)
    with serving(StandIn(500, 200, 429, "torn", 200, "odd", 503, 200, "closed")) as server:
        server.answer = answer
        assert digests(desk.run(server, "faults")) == whole
        assert len(server.asked) == asked + 6
    formats = {body["response_format"]["type"] for body in server.asked}
    assert formats == {"json_schema"}
    took = json.loads((desk.root / "faults/measured/asking.json").read_text())["took"]
    assert took["requests"] == 12
    assert took["tokens_read"] == 7 * 12


def test_a_server_that_dies_is_asked_only_for_the_rest_later(desk: Desk):
    def answer(body: dict[str, Any]) -> str:
        return honest([Message(m["role"], m["content"]) for m in body["messages"]])

    with serving(StandIn(*[200] * 5, *[500] * 99)) as server:
        server.answer = answer
        with pytest.raises(EndpointError, match="the answers that came are kept"):
            desk.run(server)
        server.script.clear()
        done, server.asked = {json.dumps(b["messages"]) for b in server.asked[:5]}, []
        files = desk.run(server)
    assert not done & {json.dumps(b["messages"]) for b in server.asked}
    assert len(read_conversations(files, "train")) == 9


def test_cost_is_told_before_and_capped_before_the_first_question(desk: Desk):
    prices = {"read": 100, "written": 400}
    with serving(StandIn()) as server:
        far = FAR | {"endpoint": server.url, "prices": prices}
        with pytest.raises(
            RecipeError, match=r"teacher.budget: asking will cost about 1\.\d\d, and 0\.9\d are set aside"
        ):
            desk.run(server, teacher=far | {"budget": 2})
        with pytest.raises(RecipeError, match=r"ask.max_requests: the teacher may have to be asked 15 times"):
            desk.run(server, ask={"max_requests": 14})
        assert not server.asked
        server.answer = lambda body: honest([Message(m["role"], m["content"]) for m in body["messages"]])
        desk.run(server, teacher=far | {"budget": 50})
    (note,) = [e["text"] for e in desk.events if "requests" in e.get("text", "")]
    assert re.match(r"3 passages: about 12 requests, \d+ tokens read and \d+ written, 1\.\d\d in all \(at most", note)
    kept = json.loads((desk.root / "one/measured/asking.json").read_text())
    assert kept["took"]["cost"] == pytest.approx((100 * 84 + 400 * kept["took"]["tokens_written"]) / 1e6)
    assert kept["expected"]["requests"] == 12


def test_a_budget_holds_over_all_runs_of_a_step(desk: Desk):
    """The server bills far more than can be expected: the run stops, and another one spends only what is left."""
    prices = {"read": 0, "written": 1000}
    with serving(StandIn()) as server:
        far = FAR | {"endpoint": server.url, "prices": prices, "budget": 8, "concurrency": 1}
        padding = {"more": " so" * 700}
        server.answer = lambda body: json.dumps(
            json.loads(honest([Message(m["role"], m["content"]) for m in body["messages"]])) | padding
        )
        stage = desk.stage(teacher=far)
        stage.check(desk.sources)
        for name in ("one", "one"):
            with pytest.raises(EndpointError, match="the budget of"):
                stage.run(desk.context(name))
        billed = sum(len(server.answer(body).split()) for body in server.asked)
        assert 6 <= billed / 1000 <= 8
        stage = desk.stage(teacher=far | {"budget": 50})
        stage.run(desk.context("one"))
        asked = [json.dumps(body["messages"]) for body in server.asked]
        assert len(asked) == len(set(asked)) == 12


def test_bad_endpoints_are_refused_before_anything_is_asked(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    with serving(StandIn(key="right", models=("tiny-chat",))) as server:
        far = FAR | {"endpoint": server.url}
        with pytest.raises(InputError, match=r"teacher: .*does not let us in"):
            desk.run(server)
        monkeypatch.setenv("METIER_TEST_KEY", "right")
        with pytest.raises(InputError, match=r"teacher: .*no such model"):
            desk.run(server, teacher=far | {"model": "tiny-chta", "key_env": "METIER_TEST_KEY"})
        with pytest.raises(RecipeError, match=r"teacher: key_env: .* is not set"):
            desk.run(server, teacher=far | {"key_env": "METIER_NO_SUCH_KEY"})
        assert not server.asked


def test_an_empty_document_and_no_document_are_named(tmp_path: Path):
    for name, texts, said in (
        ("blank", {"a": "Words.", "b": " \n– "}, "texts: document b: the document is empty"),
        ("none", {}, "there is no document to ask about"),
    ):
        (tmp_path / name).mkdir()
        desk = Desk(tmp_path / name, texts)
        with pytest.raises(DataError, match=said):
            desk.stage().check(desk.sources)


def test_the_users_own_style_is_shown(desk: Desk):
    rows = "question,answer\n" + "".join(f"Seed question {i}?,Seed answer {i}.\n" for i in range(9))
    (desk.root / "mine.csv").write_text(rows)
    desk.sources["mine"] = Source("mine", (desk.root / "mine.csv",), "", "")
    engine = ScriptedEngine(honest)
    desk.teach(engine, ask={"seeds": "mine", "seeds_shown": 2, "self_check": False})
    shown = [tuple(re.findall(r"Seed question (\d)", m[1].content)) for m in engine.asked]
    assert [len(one) for one in shown] == [2, 2, 2]
    assert len(set(shown)) > 1, "others for another passage"
    (desk.root / "mine.csv").write_text("question,answer\nWhy?,\n")
    with pytest.raises(DataError, match=r"mine.csv:2: the example has no answer"):
        desk.stage(ask={"seeds": "mine"}).check(desk.sources)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher": None}, "give `documents` and a `teacher`"),
        ({"tables": [{"path": "a", "templates": "b"}]}, "`documents` has no effect beside `tables`"),
        ({"ask": {"batch_size": 4}}, "`ask.batch_size` is for a model that runs here"),
        ({"ask": {"types": ["list", "list"]}}, "each kind once"),
        ({"ask": {"types": []}}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(desk: Desk, options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        desk.stage(**options)


# --- a model that runs here


def test_a_prompt_that_a_model_cannot_read_is_named_before_anything_is_said(desk: Desk):
    desk.sources["base"] = Source("base", (fakes.save_tiny(desk.root / "model"),), "base", "")
    stage = desk.stage(teacher="base", ask={"max_new_tokens": 16})
    stage.check(desk.sources)
    with pytest.raises(DataError, match=r"fills? the 128 tokens that 'base' can read"):
        stage.run(desk.context("one"))


def test_a_model_here_is_asked_and_its_noise_is_kept_out(desk: Desk):
    folder = desk.root / "model"
    tokenizer = fakes.byte_tokenizer()
    tokenizer.model_max_length = 4096
    save_model(fakes.tiny_llama(max_position_embeddings=4096), tokenizer, folder)
    desk.sources["base"] = Source("base", (folder,), "base", "")
    stage = desk.stage(teacher="base", ask={"max_new_tokens": 16, "attempts": 1, "max_passages": 2})
    with pytest.raises(DataError, match=r"no pair is left for train\n.*no JSON \(2\)"):
        stage.run(desk.context("one"))
