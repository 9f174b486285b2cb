"""Distillation: the loss and its gradients are those of the plain definition, through the one loop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactly import FP32, pieces_of, taken_gradients, without_dropout
from pydantic import ValidationError
from torch import Tensor

import fakes
from metier.core.errors import ModelError
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.models.adapter import LoraSettings, add_lora
from metier.models.load import load
from metier.text.artifacts import conversation_of, write_jsonl
from metier.text.chat import encode_conversation
from metier.train import head
from metier.train.batches import Piece, shared_prefix
from metier.train.fast import ops
from metier.train.forward import Forward
from metier.train.head import HeadLoss, Taught
from metier.train.stage import Tune

T, C, V = 37, 16, 53


def mixed(scores: Tensor, wanted: Tensor, targets: Tensor, share: float, smoothing: float = 0.0) -> Tensor:
    """The definition, a number for each target."""
    own = F.cross_entropy(scores, targets, reduction="none", label_smoothing=smoothing)
    p = wanted.softmax(-1)
    away = (p * (wanted.log_softmax(-1) - scores.log_softmax(-1))).sum(-1)
    return (1 - share) * own + share * away


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_heads_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, weighted: bool, smoothing: float, share: float):
    monkeypatch.setattr(head, "CHUNK_TRAINED", 5)
    monkeypatch.setattr(ops, "ELEMENTS", 3 * V)
    torch.manual_seed(0)
    hidden, weight = torch.randn(T, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    bias = torch.randn(V, requires_grad=True)
    targets, weights = torch.randint(V, (T,)), torch.rand(T) if weighted else torch.ones(T)
    taught = Taught(torch.randn(T, 8), torch.randn(V, 8), torch.randn(V), share)
    plain = mixed(
        F.linear(hidden, weight, bias), F.linear(taught.hidden, taught.weight, taught.bias), targets, share, smoothing
    )
    wanted = (plain * weights).sum()
    loss = HeadLoss.apply(
        hidden, weight, bias, targets, weights if weighted else None, smoothing, torch.float32, None, 0, taught
    )
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    wants = [hidden, weight, bias]
    for found, expected in zip(torch.autograd.grad(loss, wants), torch.autograd.grad(wanted, wants), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def plainly(model: Any, teacher: Any, pieces: list[Piece], share: float) -> Tensor:
    """Each sequence alone through both models' own forward passes."""
    total = torch.zeros(())
    for piece in pieces:
        ids = torch.tensor(piece.ids.tolist())[None]
        places = torch.from_numpy(piece.targets[1:])
        with torch.no_grad():
            wanted = teacher(input_ids=ids).logits[0, :-1][places]
        total = total + mixed(model(input_ids=ids).logits[0, :-1][places], wanted, ids[0, 1:][places], share).sum()
    return total


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_step_learns_what_the_definition_says(kind: str, lora: bool):
    pieces = list(pieces_of("sft"))
    model = without_dropout(fakes.tiny(kind).train())
    if lora:
        add_lora(model, LoraSettings(r=4))
    teacher = fakes.tiny(kind, seed=7).requires_grad_(False)
    prefix = shared_prefix(pieces)
    wanted = plainly(model, teacher, pieces, 0.4)
    wanted.backward()
    expected = taken_gradients(model)
    with Forward(
        model, precision=FP32, prefix=prefix, teacher=(Forward(teacher, precision=FP32, prefix=prefix), 0.4)
    ) as forward:
        loss = forward.backward(pieces, scale=1.0)
        plain = forward.summed_loss(pieces)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=1e-4)
    for name, gradient in taken_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-4)
    assert plain != loss  # the dev loss is without the teacher


def test_a_teacher_that_is_the_model_itself_asks_for_nothing():
    model = without_dropout(fakes.tiny("llama").train())
    same = fakes.tiny("llama").requires_grad_(False)
    with Forward(model, precision=FP32, teacher=(Forward(same, precision=FP32), 1.0)) as forward:
        loss = forward.backward(list(pieces_of("all")), scale=1.0)
    assert abs(loss.item()) < 1e-4
    assert all(g.abs().max() < 1e-4 for g in taken_gradients(model).values())


def talk(index: int) -> dict[str, Any]:
    said = [{"role": "user", "content": f"Item {index}?"}, {"role": "assistant", "content": f"stone {index}"}]
    return {"id": f"q{index}", "messages": said, "group": ""}


def tuned(root: Path, **settings: Any) -> tuple[Path, dict[str, float]]:
    sources = {}
    for name, seed in (("student", 0), ("master", 3)):
        folder = root / name if (root / name).is_dir() else fakes.save_tiny(root / name, seed=seed)
        sources[name] = Source(name, (folder,), name, name)
    (root / "qa").mkdir(exist_ok=True)
    for split in ("train", "dev"):
        write_jsonl(root / "qa" / f"{split}.jsonl", map(talk, range(8)))
    (root / "qa" / "about.json").write_text(json.dumps({"counts": {"train": 8, "dev": 8}}))
    sources["qa"] = Source("qa", (root / "qa",), "qa", "qa")
    stage = Tune.model_validate(
        {"model": "student", "examples": "qa", "max_steps": 6, "batch_size": 4, "epochs": 3, "learning_rate": 5e-3}
        | settings
    )
    name = f"out-{len(list(root.glob('out-*')))}"
    folders = [root / name / part for part in ("files", "measured", "scratch")]
    for folder in folders:
        folder.mkdir(parents=True)
    stage.check(sources)
    return folders[0], dict(stage.run(Context(name, *folders, Events(name), sources)))


def test_a_taught_student_comes_nearer_to_its_teacher(tmp_path: Path):
    row = encode_conversation(fakes.byte_tokenizer(), conversation_of(talk(3)), max_length=64)
    ids, places = torch.tensor([row.ids]), torch.tensor(row.trained[1:])
    alone, _ = tuned(tmp_path)
    taught, metrics = tuned(tmp_path, teacher="master", teacher_weight=1.0)
    again, _ = tuned(tmp_path, teacher="master", teacher_weight=1.0)
    assert (taught / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    with torch.no_grad():
        said = [load(one).model(ids).logits[0, :-1][places] for one in (tmp_path / "master", alone, taught)]
        away = [mixed(one, said[0], ids[0, 1:][places], 1.0).sum().item() for one in said[1:]]
    assert away[1] < away[0]
    assert metrics["dev_loss"] > 0


def test_other_vocabularies_and_idle_settings_are_refused(tmp_path: Path):
    with pytest.raises(ValidationError, match="without a teacher"):
        Tune.model_validate({"model": "m", "examples": "e", "teacher_weight": 0.2})
    tuned(tmp_path)
    config = json.loads((tmp_path / "master/config.json").read_text())
    (tmp_path / "master/config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(ModelError, match="another vocabulary") as caught:
        tuned(tmp_path, teacher="master")
    assert caught.value.where == "teacher"
