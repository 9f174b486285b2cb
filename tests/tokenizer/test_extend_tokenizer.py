"""extend_tokenizer on the seedling and tiny models: merges, rows, padding, passing through, and what it refuses."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from extending import MARINE, about, context, documents, extend, only_joins, texts_of
from pydantic import ValidationError
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer

import fakes
from metier.core.errors import DataError, InputError, Interrupted, ModelError
from metier.core.fingerprint import tree
from metier.engine.local import generate
from metier.models.adapter import LoraSettings, add_lora, merge
from metier.models.builtin import BUILTIN
from metier.models.extension import Extension, read_extension
from metier.models.load import load
from metier.models.save import save_adapter, save_model
from metier.models.shape import input_embeddings, is_tied, output_head
from metier.tokenizer.initialise import Recipe, by_letters, evenly, new_rows, resize
from metier.tokenizer.kinds import Kind, kind_of
from metier.tokenizer.mining import mine
from metier.tokenizer.stage import ExtendTokenizer

SEEDLING = BUILTIN["seedling"]
GENERAL = MARINE.parent / "general" / "heldout.jsonl"
NEW = 300


@pytest.fixture(scope="module")
def marine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "marine"
    train = texts_of(MARINE / "corpus.jsonl")
    return documents(folder, train[:1500], heldout=texts_of(MARINE / "corpus_heldout.jsonl"))


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documents(tmp_path_factory.mktemp("texts") / "general", texts_of(GENERAL))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, marine: Path, general: Path) -> Path:
    out, _ = extend(tmp_path_factory.mktemp("extended"), SEEDLING, marine, general, max_new_tokens=NEW)
    return out


def test_it_pays_on_the_seedling_and_leaves_general_text_alone(extended: Path):
    record = about(extended)
    domain, left = record["fertility"]["domain"], record["fertility"]["general"]
    assert record["extended"]
    assert record["new_tokens"] == NEW
    assert domain["saving"] > 0.05
    assert domain["tokens_per_word"]["after"] < domain["tokens_per_word"]["before"]
    assert domain["tokens_per_byte"]["before"] == pytest.approx(domain["tokens"]["before"] / domain["bytes"], abs=1e-6)
    assert abs(left["saving"]) <= 0.01  # the budget is 0.004 of the other half, which is small
    rows = [json.loads(line) for line in (extended / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == NEW
    assert all(len(row["pieces"]) > 1 and "".join(row["pieces"]) == row["token"] for row in rows)


def test_old_rows_keep_their_bits_and_tied_stay_tied(extended: Path):
    before, after = load(SEEDLING, dtype=torch.bfloat16), load(extended, dtype=torch.bfloat16)
    old, new = input_embeddings(before.model).weight, input_embeddings(after.model).weight
    assert new.shape == (len(old) + NEW, old.shape[1])
    assert torch.equal(old, new[: len(old)])
    assert is_tied(after.model)
    assert read_extension(extended) == Extension(len(old), NEW, len(old) + NEW)
    for name, value in before.model.state_dict().items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(value, after.model.state_dict()[name]), name


def test_stock_transformers_read_what_is_written(extended: Path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(extended), AutoTokenizer.from_pretrained(extended)
    token = json.loads((extended / "tokens.jsonl").read_text(encoding="utf-8").splitlines()[0])["token"]
    ids = tokenizer.encode(f"See{token}.", add_special_tokens=False)
    assert any(number >= 2048 for number in ids)
    assert model(torch.tensor([ids])).logits.shape[-1] == len(tokenizer)


def test_new_pieces_are_made_in_running_text_and_only_join_old_ones(extended: Path, marine: Path):
    old, new = (load(folder).tokenizer.backend_tokenizer for folder in (SEEDLING, extended))
    lines = [line for text in texts_of(marine / "train.jsonl") for line in text.split(". ")]
    count, fresh = only_joins(old, new, lines, 2048)
    assert count > 5000
    assert fresh > count // 2


def test_two_runs_write_the_same_bytes(tmp_path: Path, marine: Path, general: Path, extended: Path):
    again, _ = extend(tmp_path, SEEDLING, marine, general, max_new_tokens=NEW)
    assert {name: path.read_bytes() for name, path in tree(again).items()} == {
        name: path.read_bytes() for name, path in tree(extended).items()
    }


def test_general_texts_of_two_kinds_in_turns_are_halved_fairly(tmp_path: Path, marine: Path):
    """Told apart by their place, one half would be all of one kind, and the budget would hold for that kind alone."""
    replay = texts_of(MARINE.parent / "general" / "replay.jsonl")
    out, _ = extend(tmp_path, SEEDLING, marine, documents(tmp_path / "replay", replay), max_new_tokens=NEW)
    assert abs(about(out)["fertility"]["general"]["saving"]) < 0.008


def test_auto_passes_the_model_through_where_it_does_not_pay(tmp_path: Path, marine: Path):
    out, seen = extend(tmp_path, SEEDLING, marine, max_new_tokens=NEW, min_saving=0.9)
    record = about(out)
    assert not record["extended"]
    assert record["new_tokens"] == 0
    assert "min_saving is 90.0%" in record["reason"]
    assert any(record["reason"] in event.get("text", "") for event in seen)
    assert (out / "tokenizer.json").read_bytes() == (SEEDLING / "tokenizer.json").read_bytes()
    before, after = load(SEEDLING).model.state_dict(), load(out).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert read_extension(out) == Extension(2048, 0, 2048)
    assert read_extension(SEEDLING) is None


def test_an_adapter_is_merged_first(tmp_path: Path, marine: Path):
    loaded = load(SEEDLING)
    torch.manual_seed(0)
    model = add_lora(loaded.model, LoraSettings(r=2, alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, loaded.tokenizer, tmp_path / "adapter", base="seedling")
    out, _ = extend(tmp_path / "run", tmp_path / "adapter", marine, max_new_tokens=20, extend="always")
    plain = merge(load(tmp_path / "adapter")).to(torch.bfloat16).state_dict()
    mine = load(out, dtype=torch.bfloat16).model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(plain[name], mine[name])


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_of_each_kind_are_what_they_say():
    old = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [1.0, 1.0]])
    made_of = (((0, 1), evenly(2)), ((1, 2), by_letters([" abc", "d"])))
    plain = new_rows(old, Recipe("mean", made_of, match_norms=False))
    assert torch.allclose(plain[0], torch.tensor([1.5, 0.5]))
    assert torch.allclose(plain[1], torch.tensor([-0.5, 0.75]))
    matched = new_rows(old, Recipe("mean", made_of))
    assert torch.allclose(matched.norm(dim=1), torch.tensor([2.0, 1.5]))
    assert torch.allclose(matched[0] / matched[0].norm(), plain[0] / plain[0].norm())
    drawn = new_rows(old, Recipe("random", made_of, seed=1))
    assert torch.allclose(drawn.norm(dim=1), old.norm(dim=1).mean().expand(2))
    assert torch.equal(drawn, new_rows(old, Recipe("random", made_of, seed=1)))
    assert not torch.equal(drawn, new_rows(old, Recipe("random", made_of, seed=2)))


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
def test_both_matrices_get_rows_and_ties_are_kept(kind: str):
    model = fakes.tiny(kind)
    old_in, old_out = input_embeddings(model).weight.clone(), output_head(model).weight.clone()
    first = len(old_in)
    ids = torch.tensor([[0, 70, 80]])
    before = model(ids).logits
    resize(model, Recipe("mean", (((10, 11), evenly(2)),), match_norms=False), first=first, rows=first + 3)
    for old, new in ((old_in, input_embeddings(model).weight), (old_out, output_head(model).weight)):
        assert torch.equal(new[:first], old)
        assert torch.allclose(new[first], (old[10] + old[11]) / 2)
        assert not new[first + 1 :].any()
    assert is_tied(model) == (kind != "llama-untied")
    assert model.config.vocab_size == first + 3
    assert torch.allclose(model(ids).logits[..., :first], before, atol=1e-6)


def test_weighted_and_described_rows_come_from_the_old_pieces(tmp_path: Path, marine: Path):
    told = tmp_path / "words.jsonl"
    told.write_text('{"word": "zooplankton", "text": "tiny animals"}\n{"word": "nowhere", "text": "not a new token"}\n')
    fields: dict[str, Any] = {"max_new_tokens": 40, "extend": "always", "words": ["zooplankton"], "match_norms": False}
    out, seen = extend(tmp_path / "d", SEEDLING, marine, initialise="description", descriptions=str(told), **fields)
    base, made = load(SEEDLING), load(out)
    ids = base.tokenizer.encode("tiny animals", add_special_tokens=False)
    number = made.tokenizer.encode(" zooplankton", add_special_tokens=False)
    assert len(number) == 1
    old = input_embeddings(base.model).weight
    expected = old[ids].mean(0).to(torch.bfloat16).float()
    assert torch.allclose(input_embeddings(made.model).weight[number[0]], expected, atol=1e-6)
    assert any("nowhere" in event.get("text", "") for event in seen if event["event"] == "warning")
    out, _ = extend(tmp_path / "w", SEEDLING, marine, initialise="weighted", **fields)
    parts = base.tokenizer.tokenize(" zooplankton")
    ids = base.tokenizer.convert_tokens_to_ids(parts)
    sizes = torch.tensor([max(1.0, len(part.replace("Ġ", ""))) for part in parts])
    expected = (old[ids] * (sizes / sizes.sum())[:, None]).sum(0).to(torch.bfloat16).float()
    assert torch.allclose(input_embeddings(load(out).model).weight[number[0]], expected, atol=1e-6)


def test_padded_rows_are_never_chosen(tmp_path: Path, marine: Path):
    out, _ = extend(tmp_path, SEEDLING, marine, max_new_tokens=10, extend="always", pad_to_multiple=64)
    loaded = load(out)
    rows = input_embeddings(loaded.model).weight
    assert len(rows) == 2112
    assert not rows[2058:].any()
    with torch.no_grad():
        rows[2058:] = 50 * rows[:2058].mean(0)  # what would win nearly everywhere
        rows[2059:] = -50 * rows[:2058].mean(0)
    prompts = [loaded.tokenizer.encode("The crab", add_special_tokens=False)]
    assert max(generate(loaded, prompts, max_new_tokens=8)[0].ids) < 2058
    stock = AutoModelForCausalLM.from_pretrained(out)
    stock.model.embed_tokens.weight.data[2058:] = 50 * stock.model.embed_tokens.weight.data[:2058].mean(0)
    assert int(stock.generate(torch.tensor(prompts), max_new_tokens=8, do_sample=False).max()) < 2058


# ---- words and styles ------------------------------------------------------------------------------------------------


def test_words_of_ones_own_come_first_and_odd_ones_are_added_whole(tmp_path: Path, marine: Path):
    words = ["hydroxychloroquine", "SARS-CoV-2"]
    out, _ = extend(tmp_path, SEEDLING, marine, max_new_tokens=30, extend="always", words=words)
    tokenizer = load(out).tokenizer
    text = "Give hydroxychloroquine against SARS-CoV-2, not SARS-CoV-22 or hydroxychloroquines."
    pieces = tokenizer.tokenize(text)
    assert "Ġhydroxychloroquine" in pieces
    assert pieces.count("SARS-CoV-2") == 1  # it stands alone once
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert about(out)["new_tokens"] == 30
    assert about(out)["added_tokens"] == 1


def test_the_added_style_keeps_spaces(tmp_path: Path, marine: Path):
    out, _ = extend(tmp_path, SEEDLING, marine, max_new_tokens=50, extend="always", style="added", words=["narwhal"])
    old, new = load(SEEDLING).tokenizer, load(out).tokenizer
    assert about(out)["added_tokens"] == 50
    for text in texts_of(marine / "heldout.jsonl"):
        ids = new.encode(text, add_special_tokens=False)
        assert new.decode(ids) == text
        assert len(ids) <= len(old.encode(text, add_special_tokens=False)) + 2 * text.count("narwhal")
    assert "narwhal" in new.tokenize("A narwhal swims.")
    assert "narwhal" not in new.tokenize("Two narwhals swim.")


def test_mining_goes_on_where_the_old_tokenizer_stopped():
    tokenizer = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(["Ġ", "a", "b", "c", "1", "ab"])}, merges=[("a", "b")])
    )
    kind = Kind("byte-level")
    domain, general = Counter({"Ġabc": 9, "abcabc": 3, "11": 50, "ca": 2}), Counter({"ca": 5, "zz": 0})
    found = mine(tokenizer, kind, domain, general, most=9, least_count=2, general_share=0.5)
    # abc: 9 + 2 * 3; then "Ġabc" and "abcabc"; "ca" would save half of the general text's ten tokens
    assert found.pieces == ("abc", "Ġabc", "abcabc", "ca")
    assert found.saved == (15, 9, 3, 2)
    assert mine(tokenizer, kind, domain, general, most=9, least_count=2, general_share=0.4).pieces[-1] == "abcabc"
    assert mine(tokenizer, kind, domain, general, most=9, least_count=9, general_share=1).pieces == ("abc", "Ġabc")
    assert mine(tokenizer, kind, domain, general, most=2, least_count=1, general_share=1).pieces == ("abc", "Ġabc")


def test_letters_that_a_sentencepiece_vocabulary_lacks_are_candidates():
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocabulary = {p: i for i, p in enumerate(["<unk>", *bytes_, "▁", "a", "▁a"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    found = mine(
        tokenizer,
        Kind("sentencepiece"),
        Counter({"▁aλ": 10, "▁≥": 30}),
        Counter(),
        most=5,
        least_count=2,
        general_share=1,
    )
    assert found.pieces == ("λ", "▁aλ")
    assert found.domain_tokens == 10 * 3 + 30 * 4


# ---- what is refused -------------------------------------------------------------------------------------------------


def fails(folder: Path, base: Path, texts: Path, **fields: Any) -> str:
    stage = ExtendTokenizer(**{"model": "base", "documents": "texts", **fields})
    ctx = context(
        folder, base=base, texts=texts, **{k: Path(v) for k, v in {fields.get("descriptions", ""): ""}.items()}
    )
    with pytest.raises(InputError) as caught:
        stage.check(ctx.sources)
    assert caught.value.cure
    assert not list(ctx.out.iterdir())
    return str(caught.value)


def test_a_corpus_too_small_is_refused(tmp_path: Path):
    texts = documents(tmp_path / "few", ["the crab digs"] * 20)
    assert "260 characters to learn words from" in fails(tmp_path, SEEDLING, texts)


def test_a_word_that_is_a_token_is_refused(tmp_path: Path, marine: Path):
    assert "'water'" in fails(tmp_path, SEEDLING, marine, words=["water"])


def with_tokenizer(folder: Path, content: dict[str, Any]) -> Path:
    shutil.copytree(SEEDLING, folder)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"type": "WordPiece", "vocab": {"a": 0}, "continuing_subword_prefix": "##"}, "WordPiece"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0, "byte_fallback": True}, "Unigram"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}, "dropout"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, "BPE of another kind"),
    ],
)
def test_other_kinds_of_tokenizers_are_refused(tmp_path: Path, marine: Path, model: dict[str, Any], named: str):
    base = with_tokenizer(
        tmp_path / "m", {"model": model, "added_tokens": [], "pre_tokenizer": None, "normalizer": None}
    )
    said = fails(tmp_path, base, marine)
    assert "cannot be extended" in said
    assert named in said


def test_the_older_way_to_write_sentencepiece_is_known():
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    content = {
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "normalizer": {"type": "Sequence", "normalizers": steps},
    }
    assert kind_of(content, where="x").name == "sentencepiece"


def test_a_quantised_base_is_refused(tmp_path: Path, marine: Path):
    base = tmp_path / "quantised"
    shutil.copytree(SEEDLING, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    said = fails(tmp_path, base, marine)
    assert "quantised" in said
    assert "gptq" in said


def test_spare_rows_are_refused_or_used(tmp_path: Path, marine: Path):
    loaded = load(SEEDLING)
    loaded.model.resize_token_embeddings(2048 + 16, mean_resizing=False)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "spare")
    assert "16 rows stand for no token" in fails(tmp_path, tmp_path / "spare", marine)
    fields: dict[str, Any] = {"max_new_tokens": 10, "extend": "always", "spare_rows": "use"}
    out, _ = extend(tmp_path / "run", tmp_path / "spare", marine, **fields)
    assert read_extension(out) == Extension(2048, 10, 2064)
    assert input_embeddings(load(out).model).weight[2048:2058].norm(dim=1).min() > 0


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ('{"word": "x"}', "`word` and `text`"),
        ('{"word": "", "text": "y"}', "not empty"),
        ('{"word": "x", "text": "y"}\n{"word": "x", "text": "z"}', "described twice"),
    ],
)
def test_bad_descriptions_are_refused_with_their_line(tmp_path: Path, marine: Path, line: str, named: str):
    path = tmp_path / "words.jsonl"
    path.write_text(line)
    stage = ExtendTokenizer(model="base", documents="texts", initialise="description", descriptions=str(path))
    ctx = context(tmp_path, base=SEEDLING, texts=marine, **{str(path): path})
    with pytest.raises(DataError, match=named) as caught:
        stage.check(ctx.sources)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"initialise": "description"}, "need one another"),
        ({"descriptions": "x.jsonl"}, "need one another"),
        ({"extend": "always", "min_saving": 0.1}, "min_saving has no effect"),
        ({"words": ["abc", "abc"]}, "twice"),
        ({"general": "d"}, "name another step"),
        ({"seed": 1}, "seed is of random rows"),
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"min_coutn": 3}, "Extra inputs"),
    ],
)
def test_settings_without_effect_are_refused(fields: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        ExtendTokenizer(**{"model": "m", "documents": "d", **fields})


def test_more_words_than_tokens_are_refused(tmp_path: Path, marine: Path):
    with pytest.raises(DataError, match="max_new_tokens allows 1"):
        extend(tmp_path / "a", SEEDLING, marine, words=["narwhal", "zooplankton"], max_new_tokens=1)
    with pytest.raises(DataError, match="the steps to them are"):
        extend(tmp_path / "b", SEEDLING, marine, words=["hydroxychloroquine"], max_new_tokens=2)


def test_nothing_to_add_passes_through_or_is_refused(tmp_path: Path, marine: Path):
    out, _ = extend(tmp_path / "auto", SEEDLING, marine, min_count=10**9)
    assert "no piece of the domain's words" in about(out)["reason"]
    with pytest.raises(DataError, match="lower min_count"):
        extend(tmp_path / "always", SEEDLING, marine, min_count=10**9, extend="always")


def test_it_stops_when_asked(tmp_path: Path, marine: Path):
    stage = ExtendTokenizer(model="base", documents="texts")
    ctx = context(tmp_path, stop=lambda: True, base=SEEDLING, texts=marine)
    with pytest.raises(Interrupted):
        stage.run(ctx)
    assert not list(ctx.out.iterdir())


def test_extension_json_that_says_nothing_is_refused(tmp_path: Path):
    (tmp_path / "extension.json").write_text('{"first": "x"}')
    with pytest.raises(ModelError, match="does not say which tokens are new"):
        read_extension(tmp_path)
