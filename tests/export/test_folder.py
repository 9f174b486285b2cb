"""Exported folders: the same model in every form, a card that says so, or nothing at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fakes import byte_tokenizer, save_tiny, tiny_gpt2, tiny_llama
from metier.core.errors import Interrupted, MetierError, MissingExtra, ModelError, RecipeError
from metier.core.events import Events
from metier.core.fingerprint import FileDigests
from metier.core.machine import Machine
from metier.core.stage import Context, Source, references
from metier.export import parity
from metier.export.card import CARD, Facts, Shape, card, measured_part
from metier.export.chat_template import parts_of, publish_template
from metier.export.folder import Exported, Wanted, check_export, export_model
from metier.export.gguf import layout, llamacpp
from metier.export.history import Ancestor, History, history
from metier.export.parity import CHATS, TOLERANCES, Tolerance, compare, gate, make_probe, see
from metier.export.stage import Export
from metier.models.adapter import LoraSettings, add_lora
from metier.models.builtin import BUILTIN
from metier.models.load import load
from metier.models.save import save_adapter, save_model
from metier.text.chat import encode_prompt
from metier.text.nouns import Message
from metier.text.prompts import TEMPLATES, template_text

IDS = torch.tensor([[0, 70, 80, 90, 100]])


def export(source: Path, out: Path, facts: Facts | None = None, **wanted: Any) -> Exported:
    facts = facts or Facts("Sea", licence="apache-2.0")
    return export_model(source, out, Wanted(**wanted), facts, history(source, "sea"), scratch=out.parent / "scratch")


def gentle(kind: str) -> PreTrainedModel:
    """A tiny model whose logits are those of a trained one rather than of noise."""
    if kind == "gpt2":
        return tiny_gpt2(initializer_range=0.08)
    return tiny_llama(tied=kind == "llama", initializer_range=0.08)


def make_adapter(root: Path, kind: str = "llama") -> Path:
    """Two neighbours as the store keeps them: base-1 and tune-2, an adapter with random weights on it."""
    save_model(gentle(kind), byte_tokenizer(), root / "base-1" / "files")
    loaded = load(root / "base-1" / "files")
    torch.manual_seed(1)
    model = add_lora(loaded.model, LoraSettings(r=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, loaded.tokenizer, root / "tune-2" / "files", base="../../base-1/files")
    return root / "tune-2" / "files"


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@torch.no_grad()
def test_an_adapter_becomes_a_folder_in_every_form(tmp_path: Path, kind: str) -> None:
    with torch.enable_grad():
        adapter = make_adapter(tmp_path, kind)
    made = export(adapter, tmp_path / "out", gguf=("F16", "Q8_0"), bits=("int8",))
    rows = {row.form: row for row in made.rows}
    assert list(rows) == ["merged", "reloaded", "gguf/model-F16.gguf", "gguf/model-Q8_0.gguf", "int8"]
    assert rows["merged"].difference < 1e-5
    assert rows["gguf/model-F16.gguf"].difference < 2e-3 * rows["merged"].largest
    assert all(row.same_ids and row.chats == len(CHATS) for row in made.rows)
    expected = load(adapter).model(IDS).logits
    for gone in ("base-1", "tune-2"):
        (tmp_path / gone).rename(tmp_path / f"moved-{gone}")
    out = tmp_path / "out"
    assert (AutoModelForCausalLM.from_pretrained(out)(IDS).logits - expected).abs().max() < 1e-5
    assert AutoModelForCausalLM.from_pretrained(out / "int8").config.quantization_config.load_in_8bit
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == encode_prompt(byte_tokenizer(), [Message("user", "a")])
    text = (out / CARD).read_text()
    assert "license: apache-2.0" in text
    assert "| gguf/model-Q8_0.gguf | Q8_0 | equal |" in text
    assert "| gguf/model-F16.gguf | F16 | equal |" in text
    assert "for Ollama" in text
    assert json.loads((out / "parity.json").read_text())["forms"][0]["form"] == "merged"
    assert (
        (out / "gguf" / "Modelfile")
        .read_text()
        .startswith("# ollama create NAME -f Modelfile\nFROM ./model-F16.gguf\n")
    )
    assert json.loads((out / "about.json").read_text())["parameters"]["total"] == made.parameters


def test_four_bits_of_the_seedling(tmp_path: Path) -> None:
    made = export(BUILTIN["seedling"], tmp_path / "out", gguf=("Q4_0",), bits=("nf4",))
    rows = {row.form: row for row in made.rows}
    assert rows["reloaded"].difference == 0.0
    for form in ("gguf/model-Q4_0.gguf", "nf4"):
        assert 0 < rows[form].difference <= rows[form].tolerance
        assert (rows[form].stops, rows[form].of_stops) == (3, 3)
    assert json.loads((tmp_path / "out" / "nf4" / "config.json").read_text())["quantization_config"]["load_in_4bit"]
    whole = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert (tmp_path / "out" / "nf4" / "model.safetensors").stat().st_size < 0.4 * whole


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model")
    for name in "ab":
        export(source, tmp_path / name, gguf=("Q8_0",), dtype="bfloat16")
    digests = FileDigests(tmp_path / "none.json")
    assert digests.folder(tmp_path / "a") == digests.folder(tmp_path / "b")


def test_a_form_past_its_tolerance_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's halves left as transformers has them: the file is sound, and the model another one."""
    monkeypatch.setattr(layout, "interleaved", lambda rows, heads: rows)
    with pytest.raises(MetierError, match=r"not published: gguf/model-F32\.gguf: logits differ by") as caught:
        export(save_tiny(tmp_path / "model"), tmp_path / "out", gguf=("F32",))
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out" / CARD).exists()


def test_a_wrong_merge_stops_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, "merged", Tolerance(0.0, 1.0, 1.0))
    with pytest.raises(MetierError, match="not published: merged"):
        export(make_adapter(tmp_path), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_the_gate_sees_ids_answers_ends_and_what_is_no_number(tmp_path: Path) -> None:
    loaded = load(save_tiny(tmp_path / "model"))
    probe = make_probe(loaded)
    seen = see(loaded, probe)
    assert compare("same", "F32", seen, seen, probe).problems == ()
    stopping = tuple((ids, True) for ids, _ in seen.answers)
    cases = {
        "other token ids": (seen, parity.Seen(seen.logits, ((1, 2),), seen.answers)),
        "greedy answers agree in 0%": (
            seen,
            parity.Seen(seen.logits, seen.chats, tuple(((), False) for _ in seen.answers)),
        ),
        "1 answers end by themselves, where 3": (
            parity.Seen(seen.logits, seen.chats, stopping),
            parity.Seen(seen.logits, seen.chats, seen.answers),
        ),
        "logits differ by nan": (
            seen,
            parity.Seen(tuple(a * float("nan") for a in seen.logits), seen.chats, seen.answers),
        ),
        "the first choice is the same at": (
            seen,
            parity.Seen(tuple(-a for a in seen.logits), seen.chats, seen.answers),
        ),
    }
    for message, (source, made) in cases.items():
        row = compare("form", "F32", source, made, probe)
        with pytest.raises(MetierError, match=f"not published: form: .*{message}"):
            gate([row], "model")
        json.dumps(row.json(), allow_nan=False)


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiny(tmp_path / "model")
    with pytest.raises(ModelError, match="nf4 needs layers of 64 x n inputs"):
        check_export(source, Wanted(bits=("nf4",)))
    monkeypatch.setattr("metier.export.gguf.llamacpp.is_installed", lambda: False)
    with pytest.raises(MissingExtra, match=r"K-quants needs the package 'llama-cpp-python'"):
        check_export(source, Wanted(gguf=("Q4_K_M",)))
    adapter = make_adapter(tmp_path)
    save_model(tiny_llama(hidden_size=64), byte_tokenizer(), tmp_path / "other")
    (adapter / "base.json").write_text(json.dumps({"base": str(tmp_path / "other")}))
    with pytest.raises(ModelError, match="the adapter does not fit its base"):
        export(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_it_will_take_is_told_from_headers(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path)
    parameters = sum(p.numel() for p in gentle("llama").parameters())
    machine = Machine(1e10, "cpu", "fp32", {"fp32": 1e11})
    stage = Export(model="a", gguf=["F16"], bits=["int8"])
    for source in (Source("a", (adapter,), "a", "0"), Source("a", (), "a", "0", (Source("b", (adapter,), "b", "0"),))):
        found = stage.estimate({"a": source}, machine)
        assert found is not None
        assert found.memory["the model and a copy"] == 8 * parameters
        assert found.disk == {
            "the model": 4 * parameters,
            "F16": 2 * parameters,
            "int8": pytest.approx(1.15 * parameters),
        }
        assert found.seconds is not None
        assert found.about is not bool(source.paths)
    assert stage.estimate({"a": Source("a", (), "a", "0")}, machine) is None
    (tmp_path / "base-1" / "files" / "model.safetensors").write_bytes(b"cut")
    assert stage.estimate({"a": Source("a", (adapter,), "a", "0")}, machine) is None


def test_it_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    source = save_tiny(tmp_path / "model")
    with pytest.raises(Interrupted):
        export_model(source, tmp_path / "out", Wanted(), Facts("x"), History(), scratch=tmp_path / "s", check_stop=stop)


# --- chat templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_templates_can_be_told_in_parts(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template_text(name)
    parts = parts_of(tokenizer)
    assert parts is not None
    asked = [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C")]
    rows = [{"role": role, "content": content} for role, content in asked]
    expected = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    assert "<|begin|>" + parts.render(asked) == expected
    text = parts.go()
    assert text.count("{{") == text.count("}}")
    assert text.count("{{ if") + text.count("{{ range") == text.count("{{ end }}")


def test_a_template_that_looks_at_more_than_roles_has_no_parts() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}"
    assert parts_of(tokenizer) is None


def test_the_published_template_writes_the_beginning_itself() -> None:
    tokenizer = byte_tokenizer()
    trained = [encode_prompt(tokenizer, chat) for chat in CHATS]
    tokenizer.chat_template = str(tokenizer.chat_template).removeprefix("{{ bos_token }}")
    publish_template(tokenizer, CHATS)
    assert str(tokenizer.chat_template).startswith("{{ bos_token }}")
    assert [encode_prompt(tokenizer, chat) for chat in CHATS] == trained
    tokenizer.chat_template = None  # what a base without a template is answered with is published
    publish_template(tokenizer, CHATS)
    assert "Question: " in str(tokenizer.chat_template)


@pytest.mark.shared
def test_tinyllama_s_template_keeps_the_space_before_its_first_word(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "tinyllama")
    trained = encode_prompt(tokenizer, CHATS[0])
    publish_template(tokenizer, CHATS)
    assert encode_prompt(tokenizer, CHATS[0]) == trained
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text.startswith("<s> <|user|>")


# --- the card ---------------------------------------------------------------------------------------------------------

SCORES = {
    "confidence": 0.95,
    "rows": [
        {
            "contender": "sea",
            "metric": "token_f1",
            "group": "all",
            "n": 80,
            "mean": 0.5,
            "low": 0.41,
            "high": 0.59,
            "versus": [{"against": "base", "difference": 0.3, "low": 0.2, "high": 0.4, "verdict": "better"}],
        },
        {"contender": "base", "metric": "token_f1", "group": "all", "n": 80, "mean": 0.2, "low": 0.1, "high": 0.3},
    ],
}


def test_the_card_tells_data_training_scores_energy_and_limits() -> None:
    config = {"sources": [{"path": "/home/somebody/corpus.jsonl"}]}
    record = {"seconds": 7200.0, "machine": {"processor": "a processor", "cores": 2}}
    about = {
        "method": "lora",
        "learning_rate": 2e-4,
        "steps": 10,
        "tokens_seen": 12345,
        "dev_loss": {"before": 3.0, "best": 2.0},
    }
    known = History(
        [
            Ancestor("articles", "documents", "documents", config, {}, {"counts": {"train": 1800}}, {}),
            Ancestor("tuned", "tune", "model", {}, record, about, {}),
        ],
        ["seedling"],
    )
    facts = Facts("Sea", "Knows the *sea*.", "", ("Not for divers.",), "sea", [("scored", SCORES)])
    text = card(facts, Shape("llama", 5, "float32", 128, "a```b", {"gguf/a.gguf": ("one file", 3)}), known, [])
    for wanted in (
        "Knows the &#42;sea&#42;.",
        "| articles | documents | corpus.jsonl | train 1,800 |",
        "| tuned | tune, lora | 0.0002 | 10 | 12,345 | 3.000 to 2.000 |",
        "| scored | token_f1 | all | 80 | 0.500 | 0.410 to 0.590 | base: +0.300 (0.200 to 0.400), better |",
        "- Not for divers.",
        "Not stated by whoever exported it. Those of seedling hold for it too.",
        "````text\na```b\n````",
    ):
        assert wanted in text, wanted
    assert "somebody" not in text
    assert "| base |" not in text
    measured = measured_part([], known, 50.0)
    assert "at the 50 W that" in measured
    assert "that is 100 Wh" in measured
    assert "| tuned | tune | a processor, 2 cores | 7,200.0 |" in measured
    assert "llama.cpp was not installed" in measured
    assert "Energy was not measured" in measured_part([], known, None)


def test_the_card_of_what_nobody_measured() -> None:
    text = card(Facts("x"), Shape("llama", 5, "float32", 128, "", {}), History(), [])
    assert "no evidence that the model is good at anything" in text
    assert "No record says what the model has read." in text
    assert "its energy is not known" in measured_part([], History(), None)


# --- the stage --------------------------------------------------------------------------------------------------------


def context(root: Path, **sources: Path) -> Context:
    for name in ("files", "measured", "scratch"):
        (root / name).mkdir(parents=True)
    known = {name: Source(name, (path,), str(path), "0") for name, path in sources.items()}
    return Context("shipped", root / "files", root / "measured", root / "scratch", Events("shipped"), known)


def test_the_stage_writes_the_folder_and_apart_what_this_machine_measured(tmp_path: Path) -> None:
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "scores.json").write_text(json.dumps(SCORES))
    stage = Export(model="sea", gguf=["F16"], scores=["scored"], watts=20)
    ctx = context(tmp_path / "export-1", sea=save_tiny(tmp_path / "sea"), scored=tmp_path / "scored")
    stage.check(ctx.sources)
    metrics = stage.run(ctx)
    assert metrics["parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    assert metrics["gguf/model-F16.gguf difference"] > 0
    assert "0.410 to 0.590" in (ctx.out / CARD).read_text()
    assert "Time and energy" not in (ctx.out / CARD).read_text()
    assert "Time and energy" in (ctx.measured / "card.md").read_text()
    assert load(ctx.out).model.config.model_type == "llama"
    assert {r.value for r in references(stage)} == {"sea", "scored"}
    with pytest.raises(RecipeError, match="has no scores of the model 'land'"):
        Export(model="land", scores=["scored"]).check({"land": ctx.sources["sea"], "scored": ctx.sources["scored"]})
    with pytest.raises(ValueError, match="each may be named once"):
        Export(model="sea", gguf=["F16", "F16"])


@pytest.mark.skipif(not llamacpp.is_installed(), reason="needs llama-cpp-python")
def test_in_llama_cpp(tmp_path: Path) -> None:
    save_model(gentle("llama"), byte_tokenizer(), tmp_path / "model")
    made = export(tmp_path / "model", tmp_path / "out", gguf=("F16", "Q6_K"))
    assert [row.form for row in made.in_llamacpp] == [
        "gguf/model-F16.gguf in llama.cpp",
        "gguf/model-Q6_K.gguf in llama.cpp",
    ]
    assert made.in_llamacpp[0].difference < 2e-3 * made.in_llamacpp[0].largest


def tolerance_rows() -> list[str]:
    return [
        f"| {name} | {100 * one.difference:g} % | {100 * one.same_top:g} % | "
        + (f"{100 * one.greedy:g} % |" if one.greedy else "not asked |")
        for name, one in TOLERANCES.items()
    ]


def test_the_page_on_export_has_the_tolerances_as_they_are() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "export.md"
    text = page.read_text(encoding="utf-8")
    assert [row for row in tolerance_rows() if row not in text] == []
