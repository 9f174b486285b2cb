"""Contenders that are not plain tiny models: an adapter on its base, and a real trained model."""

from pathlib import Path

import pytest
from tests.fakes import byte_tokenizer, save_tiny

from metier.engine.documents import document_nll
from metier.engine.local import generate
from metier.evaluate.reading import LOG2
from metier.models.adapter import LoraSettings, add_lora, merge
from metier.models.load import Loaded, load
from metier.models.save import save_adapter
from metier.text.chat import encode_reading


def test_an_adapter_answers_and_reads_like_its_merged_model(tmp_path: Path):
    import torch

    base = save_tiny(tmp_path / "base")
    adapted = add_lora(load(base).model, LoraSettings(r=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    save_adapter(adapted, byte_tokenizer(), tmp_path / "adapter", base=str(base))
    contender = load(tmp_path / "adapter")
    prompts = [[0, 60, 61, 62], [0, 90], [0] + [75] * 20]
    said = generate(contender, prompts, max_new_tokens=12)
    read = document_nll(contender, prompts)
    whole = Loaded(merge(load(tmp_path / "adapter")), contender.tokenizer, base)
    assert [g.ids for g in said] == [g.ids for g in generate(whole, prompts, max_new_tokens=12)]
    assert [n.nll for n in read] == pytest.approx([n.nll for n in document_nll(whole, prompts)], rel=1e-4)
    assert [g.ids for g in said] != [g.ids for g in generate(load(base), prompts, max_new_tokens=12)]


@pytest.mark.shared
def test_a_trained_model_finds_its_own_kind_of_text_cheap(shared: Path):
    model = load(shared / "models" / "stories260K")
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    strange = "Park the in outside play to loved she. Lily named girl little a was there, time a upon once."
    cost = [
        n.nll / LOG2 / len(story)
        for n in document_nll(model, [encode_reading(model.tokenizer, t) for t in (story, strange)])
    ]
    assert cost[0] < 1.2 < 1.7 < cost[1]
    (told,) = generate(model, [encode_reading(model.tokenizer, "Once upon a time")], max_new_tokens=20)
    assert told.text.strip().startswith(", there was a")
