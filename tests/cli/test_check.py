"""`metier check`: what it counts, what it claims, what it shows; on the tiny model with every token visible."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fakes
from metier.cli import main
from metier.cli import proof as proofs
from metier.cli.proof import BEGIN, END, LABEL, PREFIX, Proof, Shown, Token, _show
from metier.cli.tokens import coloured_text, marked_text
from metier.text.chat import encode_conversation
from metier.text.nouns import Conversation, Message

RECIPE = """\
name: sea
steps:
  articles: {kind: documents, sources: [{path: texts.jsonl}], heldout: [{path: held.jsonl}]}
  questions: {kind: examples, sources: [{path: train.jsonl}], test: [{path: test.jsonl}]}
  reader: {kind: pretrain, model: base, documents: articles, block_size: 64}
  taught: {kind: tune, model: reader, examples: questions, prompt: plain}
  answers: {kind: answer, models: [base, taught], questions: questions}
"""
Metier = Callable[..., tuple[int, str, str]]


def pair(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def metier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Metier:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METIER_STORE", raising=False)
    fakes.save_tiny(tmp_path / "base")
    write(Path("texts.jsonl"), [{"text": f"The crab number {i} digs in the sand."} for i in range(8)])
    write(Path("held.jsonl"), [{"text": "A ray glides over the reef at dusk."}])
    rows = [pair(f"What does crab {i} do?", f"It digs hole {i}.") for i in range(12)]
    write(Path("train.jsonl"), [*rows, rows[0], pair("Who?", "")])
    write(Path("test.jsonl"), [pair("Where do rays sleep?", "On the sand."), rows[3]])
    Path("recipe.yaml").write_text(RECIPE.replace("taught: {", "taught: {max_masked: 0.5, "))
    Path("recipe.yaml").write_text(
        Path("recipe.yaml")
        .read_text()
        .replace("questions: {kind: examples,", "questions: {kind: examples, max_rejected: 0.2,")
    )

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metier", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, out, err

    return call


def test_what_it_prints(metier: Metier, monkeypatch: pytest.MonkeyPatch):
    import metier.models.load as load

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(load, "_load_weights", refuse)
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = metier("check", "recipe.yaml")
    assert (code, err) == (0, "")
    assert "16 rows read: 2 test, 11 train" in out
    assert "left out: 1 unusable, 1 repeated, 1 also in another split" in out
    assert "1 x blank answer (first: train.jsonl:14)" in out
    assert "private data: none found" in out
    assert "none of 2 items was seen" in out
    assert "taught (tune on questions through plain)" in out
    assert re.search(r"tokens in 11 rows: median \d+, 90 % at most \d+, longest \d+; \d+% are trained on", out)
    for claim in (BEGIN, END, LABEL, PREFIX):
        assert f"yes  {claim} (11 rows)" in out
    assert "<|begin|>Question: What does crab 0 do?" in out
    assert "Answer:« It digs hole 0.<|end|>»" in out
    assert "<|begin|>«The crab number 0 digs in the sand.<|end|>»" in out
    assert "recipe.yaml: 5 steps, nothing wrong." in out
    assert sorted(Path.cwd().rglob("*")) == before


def test_the_page(metier: Metier):
    code, out, _ = metier("check", "recipe.yaml", "--html", "pages/check.html")
    assert code == 0
    assert "Page: pages/check.html" in out
    page = Path("pages/check.html").read_text()
    assert "Nothing wrong was found." in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=", page)
    learned = "".join(re.findall(r'<span class="t[^>]*>([^<]*)</span>', page))
    assert "It digs hole 0." in learned
    assert "What does crab" not in learned
    assert "&lt;|end|&gt;" in learned


def test_hostile_text_stays_text(metier: Metier):
    write(Path("train.jsonl"), [pair(f"Crab {i} <script>alert(1)</script>\x1b[2J?", "No \x07 bell.") for i in range(3)])
    code, out, _ = metier("check", "recipe.yaml", "--html", "check.html")
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "<script" not in Path("check.html").read_text()


def test_examples_that_would_be_cut_end_with_2(metier: Metier):
    text = Path("recipe.yaml").read_text().replace("max_masked: 0.5, ", "max_length: 20, ")
    Path("recipe.yaml").write_text(text)
    code, out, err = metier("check", "recipe.yaml")
    assert code == 2
    assert "would keep no token to train on" in out
    assert "recipe.yaml:6: taught: max_length: " in err
    assert "raise max_length" in err
    assert "nothing wrong" not in out


def test_a_claim_that_fails_is_told(metier: Metier):
    Path("mine.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ bos_token }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    Path("recipe.yaml").write_text(
        Path("recipe.yaml").read_text().replace("prompt: plain", "prompt: {file: mine.jinja}")
    )
    code, out, err = metier("check", "recipe.yaml")
    assert code == 2
    assert f"NO   {BEGIN} (11 rows) (not in " in out
    assert f"this does not hold of every row: {BEGIN}" in err
    assert "use another `prompt`" in err


def test_a_bad_template_is_told_with_its_line(metier: Metier):
    Path("mine.jinja").write_text("\n{% for m in messages %}")
    Path("recipe.yaml").write_text(
        Path("recipe.yaml").read_text().replace("prompt: plain", "prompt: {file: mine.jinja}")
    )
    code, _, err = metier("check", "recipe.yaml")
    assert code == 2
    assert "mine.jinja:2: not a Jinja template" in err


def test_what_is_tested_and_trained_on_across_steps(metier: Metier):
    text = "a long sentence that says in more than thirteen words what the narrow reef looks like at dawn today"
    write(Path("texts.jsonl"), [{"text": f"Look: {text}. Number {i}."} for i in range(4)])
    write(Path("test.jsonl"), [pair("What does it look like?", text)])
    code, out, _ = metier("check", "recipe.yaml", "--html", "check.html")
    assert code == 0
    assert "questions/test in what articles trains on" in out
    assert "1 of 1 items were seen (100.0%): 1 13-gram" in out
    assert f"tested:  '{text[:40]}" in out
    assert "1 of 1 items were seen" in Path("check.html").read_text()


def test_private_data_is_counted(metier: Metier):
    write(Path("texts.jsonl"), [{"text": f"Write to crab{i}@example.org today."} for i in range(3)])
    assert "private data: 3 email; in 3 of 4 rows" in metier("check", "recipe.yaml")[1]


def test_keep_going_gathers_the_faults_of_all_files(metier: Metier):
    Path("more").mkdir()
    Path("more/a.jsonl").write_text('{"question": 1, "answer": "x"}\n{"question": "q"}\n')
    Path("more/b.jsonl").write_text("not json\n")
    Path("more/c.jsonl").write_text("")
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("path: train.jsonl", "path: more"))
    code, _, err = metier("check", "recipe.yaml")
    assert code == 2
    assert "a.jsonl" in err
    assert "b.jsonl" not in err
    for command in ("check", "run"):
        code, _, err = metier(command, "recipe.yaml", "--keep-going")
        assert code == 2
        for name in ("a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "c.jsonl"):
            assert name in err, (command, name)
        assert not Path(".metier/objects").exists()


def test_a_folder_for_the_page_that_cannot_be_made(metier: Metier):
    Path("file").write_text("")
    code, _, err = metier("check", "recipe.yaml", "--html", "file/page.html")
    assert code == 2
    assert "--html: the page cannot be written" in err


def shown(text: str) -> Shown:
    """An answer as `check` shows it."""
    tokenizer = fakes.byte_tokenizer()
    talk = Conversation("c", (Message("user", "Hi"), Message("assistant", text)))
    encoded = encode_conversation(tokenizer, talk, max_length=999)
    return _show(tokenizer, "c", encoded.ids, encoded.trained)


def test_every_token_is_shown_once_and_characters_stay_whole():
    found = shown("Ein Krebs gräbt 海 the end")
    assert (
        "".join(token.text for token in found.tokens)
        == "<|begin|><|user|>Hi<|end|><|assistant|>Ein Krebs gräbt 海 the end<|end|>"
    )
    assert [token.text for token in found.tokens if len(token.ids) > 1] == ["ä", "海"]
    assert [token.text for token in found.tokens if token.special] == [
        "<|begin|>",
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
        "<|end|>",
    ]
    assert "".join(token.text for token in found.tokens if token.trained) == "Ein Krebs gräbt 海 the end<|end|>"


def test_long_examples_show_where_the_answer_begins():
    whole = [Token("a", (1,), False, False)] * 700 + [Token("b", (2,), True, False)] * 600
    chosen = proofs._worth_showing(whole)
    assert all([chosen[0], chosen[699], chosen[700], chosen[-1]])
    assert not any([chosen[400], chosen[1000]])
    assert sum(chosen) <= proofs.MOST_TOKENS


def test_long_examples_show_their_ends():
    found = shown("x" * 900)
    assert found.left_out == found.length - proofs.MOST_TOKENS
    assert f"{found.left_out:,} tokens" in marked_text(found)


def test_colours_tell_what_is_trained():
    tokens = (Token("ask\n", (1,), False, False), Token("say", (2,), True, False), Token("<end>", (3,), True, True))
    text = coloured_text(Shown("c", tokens, 3, 0))
    trained = re.findall(r"\x1b\[30m\x1b\[(?:42|102)m(?:\x1b\[1m)?([^\x1b]*)", text)
    assert trained == ["say", "<end>"]
    assert "ask↵" in text


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tinyllama", "gpt2", "llama3"])
def test_real_tokenizers_show_the_text_as_it_is(shared: Path, name: str):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name, local_files_only=True)
    from metier.text.prompts import use_template

    use_template(tokenizer, "zephyr")
    talk = Conversation(
        "c", (Message("user", "Wie gräbt die 蟹, please?"), Message("assistant", "With  claws\n\tdeep 🦀."))
    )
    encoded = encode_conversation(tokenizer, talk, max_length=999)
    found = _show(tokenizer, "c", encoded.ids, encoded.trained)
    end = tokenizer.eos_token
    written = (
        f"{tokenizer.bos_token}<|user|>\nWie gräbt die 蟹, please?{end}\n<|assistant|>\nWith  claws\n\tdeep 🦀.{end}"
    )
    assert "".join(token.text for token in found.tokens) == written
    learned = "".join(token.text for token in found.tokens if token.trained)
    assert learned == f"With  claws\n\tdeep 🦀.{end}"


def test_histogram_and_quantiles():
    lengths = tuple(sorted([10] * 90 + [100] * 10))
    made = Proof("s", "tune", "d", "plain", 50, 100, lengths, 10, 0, 500, 0.05, (), ())
    assert sum(rows for _, rows in made.histogram) == 100
    assert (made.quantile(0.5), made.quantile(0.9), made.quantile(1.0)) == (10, 100, 100)
    (problem,) = made.problems()
    assert "10 of 100 examples are longer than 50 tokens" in str(problem)


def test_notes_of_readers_and_progress_are_shown(metier: Metier, monkeypatch: pytest.MonkeyPatch):
    from metier.cli import console

    Path("texts.jsonl").write_bytes(b"\xef\xbb\xbf" + Path("texts.jsonl").read_bytes())
    monkeypatch.setattr(console, "EVERY_SECONDS", 0.0)
    code, out, err = metier("check", "recipe.yaml", "--html", "check.html")
    assert code == 0
    assert "  note: texts.jsonl: a UTF-8 byte order mark was dropped" in out
    assert "[articles] read " in err
    assert "[taught] count tokens 11/11 rows" in err
    assert "[taught]" not in out
    assert "Note: texts.jsonl: a UTF-8 byte order mark was dropped" in Path("check.html").read_text()


def test_keep_going_shows_the_notes_and_the_faults_of_all_files(metier: Metier):
    Path("texts.jsonl").write_bytes(b'\xef\xbb\xbf{"text": 7}\n')
    Path("held.jsonl").write_text("")
    Path("test.jsonl").write_text("[1]\n")
    code, _, err = metier("check", "recipe.yaml", "--keep-going")
    assert code == 2
    assert "articles: note: texts.jsonl: a UTF-8 byte order mark was dropped" in err
    for fault in (
        "texts.jsonl:1: the field 'text' holds a number",
        "held.jsonl: the file is empty",
        "test.jsonl:1:1: ",
    ):
        assert fault in err
