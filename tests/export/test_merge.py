"""The merge stage: a standalone model that answers as the adapter did, or nothing."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import byte_tokenizer, save_tiny, tiny
from metier.core.errors import Interrupted, MetierError, ModelError
from metier.core.events import Event, Events
from metier.core.fingerprint import FileDigests
from metier.core.stage import Context, references
from metier.export import merge as merging
from metier.export.merge import merge_model
from metier.export.stage import Merge
from metier.models.adapter import LoraSettings, add_lora
from metier.models.builtin import resolve
from metier.models.load import load, stored_dtype
from metier.models.save import save_adapter, save_model

IDS = torch.tensor([[0, 70, 80, 90, 100]])


def make_adapter(root: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    """Two neighbours as the store keeps them: base-1 and tune-2, an adapter with random weights on it."""
    save_model(tiny(kind).to(dtype), byte_tokenizer(), root / "base-1" / "files")
    loaded = load(root / "base-1" / "files")
    torch.manual_seed(1)
    model = add_lora(loaded.model, LoraSettings(r=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, loaded.tokenizer, root / "tune-2" / "files", base="../../base-1/files")
    return root / "tune-2" / "files"


def run(stage: Merge, root: Path, out: str, stop: bool = False) -> tuple[dict[str, float], list[Event]]:
    source = resolve(stage.model, root)
    seen: list[Event] = []
    for name in ("files", "measured", "scratch"):
        (root / out / name).mkdir(parents=True)
    context = Context(
        step="merged",
        out=root / out / "files",
        measured=root / out / "measured",
        scratch=root / out / "scratch",
        events=Events("merged", listeners=[seen.append]),
        sources={stage.model: source},
        stop=lambda: stop,
    )
    stage.check(context.sources)
    return dict(stage.run(context)), seen


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@torch.no_grad()
def test_the_merged_model_stands_alone_and_answers_as_the_adapter(tmp_path: Path, kind: str) -> None:
    with torch.enable_grad():
        adapter = make_adapter(tmp_path, kind)
    metrics, events = run(Merge(model="tune-2/files"), tmp_path, "merge-3")
    expected = load(adapter).model(IDS).logits
    for gone in ("base-1", "tune-2"):
        (tmp_path / gone).rename(tmp_path / f"moved-{gone}")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merge-3" / "files")
    assert (stock(IDS).logits - expected).abs().max() < 1e-5
    assert stock.generation_config.eos_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "merge-3" / "files").chat_template == byte_tokenizer().chat_template
    about = json.loads((tmp_path / "merge-3" / "files" / "about.json").read_text())
    total = sum(p.numel() for p in tiny(kind).parameters())
    assert about["parameters"] == {"trained": 0, "total": total}
    assert metrics["parameters"] == total
    assert about["adapter_parameters"] > 0
    assert about["base"] == "../../base-1/files"
    assert 0 <= about["parity"]["merged"] <= about["parity"]["written"] + 1e-6 < 1e-4
    assert about["parity"]["same_top"] == 1.0
    assert about["bytes"] == metrics["bytes"] > 4 * total
    assert any("merged in float32" in event.get("text", "") for event in events)


def test_the_written_format(tmp_path: Path) -> None:
    make_adapter(tmp_path / "half", dtype=torch.bfloat16)
    make_adapter(tmp_path / "full")
    for where, asked, written in [
        ("half", "base", torch.bfloat16),
        ("half", "float32", torch.float32),
        ("full", "base", torch.float32),
        ("full", "bfloat16", torch.bfloat16),
    ]:
        run(Merge(model="tune-2/files", dtype=asked), tmp_path / where, f"merge-{asked}")
        folder = tmp_path / where / f"merge-{asked}" / "files"
        assert stored_dtype(folder) == written
        parity = json.loads((folder / "about.json").read_text())["parity"]
        assert parity["merged"] < 1e-4
        assert (parity["written"] > 1e-3) is (written == torch.bfloat16)


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path)
    for name in ("a", "b"):
        merge_model(adapter, tmp_path / name)
    digests = FileDigests(tmp_path / "none.json")
    assert digests.folder(tmp_path / "a") == digests.folder(tmp_path / "b")


def test_a_whole_model_is_passed_through_and_said_so(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    (tmp_path / "tiny" / "about.json").write_text('{"method": "full"}')
    (tmp_path / "tiny" / "train.jsonl").write_text("{}")
    metrics, events = run(Merge(model="tiny"), tmp_path, "merge-1")
    out = tmp_path / "merge-1" / "files"
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "tiny" / "model.safetensors").read_bytes()
    assert not (out / "train.jsonl").exists()
    about = json.loads((out / "about.json").read_text())
    assert (about["method"], about["parity"], about["base"]) == ("merge", None, None)
    assert set(metrics) == {"parameters", "bytes"}
    assert any("nothing to merge" in event.get("text", "") for event in events)
    run(Merge(model="tiny", dtype="bfloat16"), tmp_path, "merge-2")
    assert stored_dtype(tmp_path / "merge-2" / "files") == torch.bfloat16


def test_what_does_not_agree_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(tmp_path)
    monkeypatch.setattr(merging, "TOLERANCE", 0.0)
    with pytest.raises(MetierError, match="not published") as caught:
        merge_model(adapter, tmp_path / "out")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out" / "about.json").exists()


def test_it_can_be_stopped(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    with pytest.raises(Interrupted):
        run(Merge(model="tune-2/files"), tmp_path, "merge-3", stop=True)


def test_a_base_that_is_gone_is_found_before_anything_runs(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    source = resolve("tune-2/files", tmp_path)
    (tmp_path / "base-1").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="no such model"):
        Merge(model="tune-2/files").check({"tune-2/files": source})


def test_the_recipe_s_keys(tmp_path: Path) -> None:
    assert [r.value for r in references(Merge(model="tuned"))] == ["tuned"]
    for wrong in ({"model": "x", "dtype": "float64"}, {"model": "x", "quantise": True}, {}):
        with pytest.raises(ValidationError):
            Merge.model_validate(wrong)
