"""One template source: a conversation has the same token ids in training, evaluation, export and `metier chat`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fakes
from metier.cli.chat import Conversation as Talk
from metier.cli.chat import Settings
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.engine import here
from metier.evaluate.stage import Answer
from metier.export.merge import merge_model
from metier.models.load import load
from metier.models.save import save_model
from metier.text.artifacts import conversation_row, message_rows, write_json, write_jsonl
from metier.text.chat import encode_conversation, encode_prompt
from metier.text.nouns import Conversation, Message
from metier.text.prompts import INPUT_MARK, TEMPLATES, use_template
from metier.train.stage import Tune

CONTEXT = 640
SYSTEM = Message("system", "Speak of the sea.")
TALK = Conversation(
    "t",
    (
        SYSTEM,
        Message("user", "What does the crab do </s> there?"),
        Message("assistant", "It digs.\nThen it waits."),
        Message("user", "Why?"),
        Message("assistant", "It hides: the ray hunts."),
    ),
)
WITH_INPUT = Conversation(
    "i",
    (
        Message("user", f"Where does it dig?{INPUT_MARK}The crab, in the sand."),
        Message("assistant", "In the sand."),
        Message("user", f"And then?{INPUT_MARK}It waits."),
        Message("assistant", "It waits."),
    ),
)
"""As rows of Alpaca with an `input` become it: the template has another opening for these."""
FILE = (
    "{% for m in messages %}{{ '\\n' if not loop.first }}{{ m.role | upper }}: {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{% endfor %}{{ '\\nASSISTANT:' if add_generation_prompt }}"
)
CHOICES = ["auto", "model", *TEMPLATES, "file"]


class House:
    """One model taught with one template: tuned, merged, asked, talked with."""

    def __init__(self, root: Path, choice: str, talk: Conversation = TALK) -> None:
        self.root = root
        self.talk = talk
        base = root / "base"
        tokenizer = fakes.byte_tokenizer()
        save_model(fakes.tiny_llama(max_position_embeddings=CONTEXT), tokenizer, base)
        data = root / "data"
        data.mkdir()
        for split in ("train", "dev", "test"):
            write_jsonl(data / f"{split}.jsonl", [conversation_row(talk)])
        write_jsonl(data / "replay.jsonl", [])
        write_json(data / "about.json", {"replay_ratio": 0.0, "counts": {"train": 1, "dev": 1, "test": 1}})
        (root / "mine.jinja").write_text(FILE)
        self.sources = {"base": base, "data": data, "mine.jinja": root / "mine.jinja"}
        prompt: Any = {"file": "mine.jinja"} if choice == "file" else choice
        self.stage = Tune(
            model="base", examples="data", prompt=prompt, max_steps=1, method={"lora": {"r": 2}}, max_length=CONTEXT
        )
        tuned = self.context("tuned")
        self.stage.check(tuned.sources)
        self.stage.run(tuned)
        self.merged = root / "merged"
        self.merged.mkdir()
        write_json(tuned.out / "base.json", {"base": str(base)})
        merge_model(tuned.out, self.merged)
        self.sources["merged"] = self.merged

    def context(self, step: str) -> Context:
        folders = [self.root / step / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True)
        known = {name: Source(name, (path,), str(path), name) for name, path in self.sources.items()}
        return Context(step, *folders, Events(step), known)

    def trained(self) -> list[int]:
        """What training reads of the conversation."""
        material = self.stage.material(load(self.sources["base"]).tokenizer, CONTEXT, self.context("material"))
        return list(map(int, material.pieces[0].ids))

    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """What the engine is given for the conversation's last question."""
        seen: list[list[int]] = []

        def speak(loaded: Any, prompts: list[list[int]], **options: Any) -> Any:
            seen.extend(prompts)
            return real(loaded, prompts, **options)

        real = here.speak
        monkeypatch.setattr(here, "speak", speak)
        Answer(models=["merged"], questions="data", max_new_tokens=2).run(self.context("answers"))
        return seen[0]

    def exported(self) -> list[int]:
        """What stock transformers makes of the published folder's template."""
        from transformers import AutoTokenizer

        stock = AutoTokenizer.from_pretrained(self.merged)
        rows = message_rows(self.talk.messages[:-1])
        return list(stock.apply_chat_template(rows, add_generation_prompt=True, tokenize=True)["input_ids"])

    def talked(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """What `metier chat` gives the model at the second question, after the first answer came with a space."""
        seen: list[list[int]] = []
        system = next((m.content for m in self.talk.messages if m.role == "system"), None)
        questions = [m.content for m in self.talk.messages if m.role == "user"]
        said = next(m.content for m in self.talk.messages if m.role == "assistant")
        answers = iter([f" {said}", " No."])

        def stream(_loaded: Any, prompt: list[int], **_options: Any) -> Iterator[str]:
            seen.append(prompt)
            yield next(answers)

        monkeypatch.setattr("metier.engine.local.stream", stream)
        talk = Talk(load(self.merged), Settings(system, 0.0, 64))
        for question in questions:
            list(talk.answer(question))
        return seen[-1]


@pytest.mark.parametrize(("choice", "talk"), [*((choice, TALK) for choice in CHOICES), ("alpaca", WITH_INPUT)])
def test_ids_agree_from_training_to_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, talk: Conversation
):
    house = House(tmp_path, choice, talk)
    trained = house.trained()
    asked = house.asked(monkeypatch)
    assert trained[: len(asked)] == asked, "training and evaluation"
    assert house.talked(monkeypatch) == asked, "evaluation and chat"
    begin = load(house.merged).tokenizer.bos_token_id
    assert asked.count(begin) == 1
    assert asked[0] == begin
    assert house.exported() == asked, "evaluation and the saved chat template"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tinyllama", "gpt2", "llama3"])
@pytest.mark.parametrize("choice", ["auto", *TEMPLATES, "file"])
def test_real_tokenizers_agree_with_stock_rendering(shared: Path, name: str, choice: str):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name, local_files_only=True)
    use_template(tokenizer, "auto" if choice == "file" else choice, FILE if choice == "file" else None)
    talk = WITH_INPUT if choice == "alpaca" else TALK
    plain = [Message(m.role, m.content.replace("</s> ", "")) for m in talk.messages]
    whole = encode_conversation(tokenizer, Conversation("t", tuple(plain)), max_length=9999)
    for asked in (i for i, m in enumerate(plain) if m.role == "assistant"):
        prompt = encode_prompt(tokenizer, plain[:asked])
        rows = message_rows(plain[:asked])
        stock = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert list(stock) == prompt
        assert whole.ids[: len(prompt)] == prompt
