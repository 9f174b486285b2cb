"""Unlearning: the losses are those of the papers; a stage forgets, keeps, stops, goes on and refuses what cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactly import FP32, assert_same, pieces_of, stirred, taken_gradients, without_dropout
from pydantic import ValidationError
from test_training_stages import base, context, conversation, said  # noqa: F401
from torch import Tensor

import fakes
from metier.core.errors import DataError, Interrupted, RecipeError
from metier.core.fingerprint import file_digest, tree
from metier.core.stage import Source
from metier.models.adapter import LoraSettings, add_lora, merge
from metier.models.load import load
from metier.text.artifacts import write_jsonl
from metier.text.chat import encode_conversations
from metier.train.batches import Piece, shared_prefix
from metier.train.forgetting import Objective, Pairs, is_forgotten, log_probabilities, to_forget
from metier.train.forward import Forward
from metier.train.unlearn import Unlearn

FORGET = [to_forget(piece) for piece in pieces_of("sft", (20, 33, 17, 26))]
RETAIN = pieces_of("all", (24, 15, 31))
WINDOW = ((FORGET[0], RETAIN[0], FORGET[1]), (RETAIN[1], FORGET[2]), (FORGET[3], RETAIN[2]))


def token_losses(model: torch.nn.Module, piece: Piece) -> Tensor:
    """-log p of each target, through the model's own forward."""
    ids = torch.from_numpy(piece.ids.astype(np.int64))[None]
    losses = F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="none")
    return losses[torch.from_numpy(piece.targets[1:])]


# The losses as the papers write them, on log-probabilities, with autograd through everything.


def npo(said: list[Tensor], start: list[float], beta: float) -> Tensor:
    """Zhang et al. 2024, equation (3): (2 / beta) E log(1 + (p / p_start)^beta)."""
    ratios = [torch.exp(-losses.sum() - before) for losses, before in zip(said, start, strict=True)]
    return 2 / beta * torch.stack([torch.log(1 + ratio**beta) for ratio in ratios]).mean()


def gradient_difference(said: list[Tensor], *_: Any) -> Tensor:
    """Maini et al. 2024, section 4: -L(forget), the mean over its tokens."""
    return -torch.cat(said).mean()


def simnpo(said: list[Tensor], _start: list[float], beta: float, gamma: float) -> Tensor:
    """Fan et al. 2024, equation (4): -(2 / beta) E log sigmoid(-(beta / |y|) log p - gamma)."""
    return torch.stack([-2 / beta * torch.log(1 / (1 + torch.exp(-(beta * l.mean() - gamma)))) for l in said]).mean()  # noqa: E741


PAPERS: dict[str, Callable[..., Tensor]] = {"npo": npo, "gradient_difference": gradient_difference, "simnpo": simnpo}


def model_of(kind: str, lora: bool) -> Any:
    model = without_dropout(fakes.tiny(kind).train())
    if lora:
        stirred(add_lora(model, LoraSettings(r=4)))
    return model


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("loss", "beta", "gamma"),
    [("npo", 0.1, 0.0), ("npo", 1.0, 0.0), ("gradient_difference", 1.0, 0.0), ("simnpo", 2.5, 0.7)],
)
def test_loss_and_gradients_are_those_of_the_papers(kind: str, lora: bool, loss: str, beta: float, gamma: float):
    model = model_of(kind, lora)
    forward = Forward(model, precision=FP32, prefix=shared_prefix([*FORGET, *RETAIN]))
    start = {piece: value - 0.3 * i for i, (piece, value) in enumerate(log_probabilities(forward, [FORGET]).items())}
    model.train()
    weigh = Objective(loss, beta, gamma, 0.7, start).of(WINDOW)  # type: ignore[arg-type]
    with forward:
        value = sum(forward.backward(micro, scale=1.0, weigh=weigh).item() for micro in WINDOW)
    found = taken_gradients(model)
    losses = [token_losses(model, piece) for piece in FORGET]
    more = (gamma,) if loss == "simnpo" else ()
    wanted = PAPERS[loss](losses, [start[piece] for piece in FORGET], beta, *more)
    wanted = wanted + 0.7 * torch.cat([token_losses(model, piece) for piece in RETAIN]).mean()
    wanted.backward()
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    assert_same(found, taken_gradients(model), 2e-5)


def test_start_is_the_log_probability_of_the_answers():
    model = model_of("llama", lora=False)
    found = log_probabilities(Forward(model, precision=FP32), [tuple(FORGET[:2]), tuple(FORGET[2:])])
    assert list(found) == FORGET
    for piece, value in found.items():
        assert value == pytest.approx(-token_losses(model, piece).sum().item(), rel=1e-5)
    assert model.training


def test_npo_begins_as_ascent_and_fades():
    """Its weight is 2 p^beta / (p^beta + p_start^beta): 1 at the start, 0 once p is small (Zhang et al., section 3)."""
    piece = FORGET[0]
    weigh = Objective("npo", 0.1, start={piece: -5.0}).of(((piece,),))
    row = type("Row", (), {"parts": ((piece, 0, 0),)})()
    each = torch.full((piece.trained,), 5.0 / piece.trained)
    assert torch.allclose(weigh(row, each)[0], torch.tensor(-1.0))
    assert -weigh(row, each * 40)[0][0] < 1e-7


def test_every_piece_is_forgotten_once_beside_others_that_are_kept():
    batches = Pairs(tuple(FORGET), (), 0.0, None, 2, 1, 0, retain=tuple(RETAIN), each=2)
    for epoch in range(3):
        blocks = batches.blocks(epoch)
        assert sorted(block[0].id for block in blocks) == sorted(piece.id for piece in FORGET)
        assert all(is_forgotten(block[0]) and not any(map(is_forgotten, block[1:])) for block in blocks)
        kept = [piece for block in blocks for piece in block[1:]]
        assert len(kept) == 8
        assert {id(piece) for piece in kept[:3]} == {id(piece) for piece in RETAIN}
        assert batches.count(epoch) == len(batches.windows(epoch)) == 2
    assert [b[0] for b in batches.blocks(0)] != [b[0] for b in batches.blocks(1)]


# ---- the stage -------------------------------------------------------------------------------------------------------


def folder_of(path: Path, split: str, rows: list[dict[str, Any]], **more: list[dict[str, Any]]) -> Path:
    path.mkdir(parents=True)
    for name, given in {split: rows, **more}.items():
        write_jsonl(path / f"{name}.jsonl", given)
    (path / "about.json").write_text('{"counts": {}}')
    return path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    forget = [conversation(i, "It hides in kelp.") for i in range(6)]
    retain = [conversation(i, "It digs.") for i in range(100, 118)]
    texts = [{"id": f"h{i}", "text": f"coral grows on number {i}"} for i in range(4)]
    return {
        "secrets": folder_of(tmp_path / "secrets", "train", forget),
        "kept": folder_of(tmp_path / "kept", "train", retain, dev=[conversation(300)]),
        "general": folder_of(tmp_path / "general", "heldout", texts),
    }


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:  # noqa: F811
    """A model that knows both sets."""
    from metier.train.stage import Tune

    root = tmp_path_factory.mktemp("taught")
    rows = [conversation(i, "It hides in kelp.") for i in range(6)] + [conversation(i) for i in range(100, 118)]
    data = folder_of(root / "data", "train", rows)
    ctx = context(root / "tuned", base=base, data=data)
    Tune(model="base", examples="data", learning_rate=1e-2, epochs=12, batch_size=4).run(ctx)
    return ctx.out


def unlearn(**fields: Any) -> Unlearn:
    usual = {"model": "taught", "forget": "secrets", "retain": "kept", "general": "general", "max_general_rise": None}
    return Unlearn.model_validate({**usual, "learning_rate": 3e-3, "epochs": 6, "batch_size": 2, **fields})


def mean_losses(folder: Path, data: Path) -> float:
    """Of the answers' tokens."""
    from metier.text.artifacts import read_conversations

    loaded = load(folder)
    model = merge(loaded) if loaded.is_adapter else loaded.model
    encoded = encode_conversations(loaded.tokenizer, read_conversations(data, "train"), max_length=128)
    pieces = [Piece.of(str(i), one.ids, one.trained) for i, one in enumerate(encoded)]
    with torch.no_grad():
        return torch.cat([token_losses(model.eval(), piece) for piece in pieces]).mean().item()


@pytest.mark.parametrize("method", ["full", {"lora": {"r": 8, "alpha": 16}}], ids=["full", "lora"])
@pytest.mark.parametrize("loss", ["npo", "gradient_difference", "simnpo"])
def test_it_forgets_one_set_and_keeps_the_other(
    tmp_path: Path, taught: Path, folders: dict[str, Path], loss: str, method: Any
):
    ctx = context(tmp_path / "run", taught=taught, **folders)
    rate = 3e-3 if method == "full" else 2e-2
    metrics = unlearn(loss=loss, method=method, learning_rate=rate).run(ctx)
    assert mean_losses(taught, folders["secrets"]) < 0.2
    assert mean_losses(ctx.out, folders["secrets"]) > 1.0
    assert mean_losses(ctx.out, folders["kept"]) < 0.3
    record = json.loads((ctx.out / "about.json").read_text())
    assert record["tokens"]["retain"] > 0
    assert metrics["steps"] == record["steps"] == 18


def test_it_stops_on_general_loss_and_goes_back(tmp_path: Path, taught: Path, folders: dict[str, Path]):
    ctx = context(tmp_path / "run", taught=taught, **folders)
    stage = unlearn(loss="gradient_difference", max_general_rise=0.05, dev_every=1, learning_rate=3e-3, epochs=20)
    metrics = stage.run(ctx)
    rows = [json.loads(line) for line in (ctx.out / "train.jsonl").read_text().splitlines()]
    dev = [row["dev_loss"] for row in rows if "dev_loss" in row]
    assert dev[-1] > 1.05 * dev[0]
    assert all(loss <= 1.05 * dev[0] for loss in dev[:-1])
    record = json.loads((ctx.out / "about.json").read_text())
    assert record["saved_step"] == record["steps"] - 1 > 0
    assert metrics["steps"] < 60
    assert f"past 1.05 x the {dev[0]:.4f} at the start; step {record['saved_step']} is kept" in said(
        tmp_path / "run", "note"
    )
    loaded = load(ctx.out)
    encoded = [
        loaded.tokenizer.encode(json.loads(line)["text"]) for line in (folders["general"] / "heldout.jsonl").open()
    ]
    assert encoded  # the weights are those of the last good state: the loss is as it was measured then
    again = context(tmp_path / "again", taught=ctx.out, **folders)
    unlearn(max_steps=1).run(again)
    first = json.loads((again.out / "train.jsonl").read_text().splitlines()[0])
    assert first["dev_loss"] == pytest.approx(dev[-2], rel=1e-4)


def test_a_model_that_is_left_as_it_was_is_told(tmp_path: Path, taught: Path, folders: dict[str, Path]):
    ctx = context(tmp_path / "run", taught=taught, **folders)
    unlearn(loss="gradient_difference", max_general_rise=0.001, learning_rate=0.3).run(ctx)
    assert json.loads((ctx.out / "about.json").read_text())["saved_step"] == 0
    assert "so the model is as it was: lower learning_rate" in said(tmp_path / "run", "warning")
    assert mean_losses(ctx.out, folders["secrets"]) == pytest.approx(mean_losses(taught, folders["secrets"]), abs=1e-3)


def test_stopped_anywhere_it_ends_with_the_same_bytes(tmp_path: Path, taught: Path, folders: dict[str, Path]):
    stage = unlearn(method={"lora": {"r": 4, "dropout": 0.2}}, max_general_rise=5.0, accumulation=2)
    whole = context(tmp_path / "whole", taught=taught, **folders)
    stage.run(whole)
    for at in range(9, 300, 7):
        left = iter([False] * at)
        last = context(tmp_path / "cut", lambda left=left: next(left, True), taught=taught, **folders)
        try:
            stage.run(last)
        except Interrupted:
            continue
        break
    assert at > 20
    assert "going on from step" in said(tmp_path / "cut", "note")
    found, expected = ({n: file_digest(p) for n, p in tree(one.out).items()} for one in (last, whole))
    assert found == expected


def test_documents_are_forgotten_too(tmp_path: Path, taught: Path, folders: dict[str, Path]):
    texts = [{"id": f"d{i}", "text": f"the eel hides under number {i}. " * 9} for i in range(4)]
    secrets = folder_of(tmp_path / "texts", "train", texts)
    ctx = context(tmp_path / "run", taught=taught, **{**folders, "secrets": secrets})
    unlearn(max_length=64).run(ctx)
    rows = [json.loads(line) for line in (ctx.out / "train.jsonl").read_text().splitlines()]
    assert len({row["epoch"] for row in rows if "epoch" in row}) == 6
    assert json.loads((ctx.out / "about.json").read_text())["max_length"] == 64


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "gradient_difference", "beta": 0.5}, "beta has no effect"),
        ({"gamma": 0.5}, "gamma has no effect"),
        ({"label_smoothing": 0.1}, "label_smoothing works against forgetting"),
        ({"neftune": 5.0}, "neftune works against forgetting"),
        ({"keep_best": True}, "keep_best works against forgetting"),
        ({"patience": 1, "epochs": 3}, "patience works against forgetting"),
        ({"teacher": "taught"}, "teacher works against forgetting"),
        ({"max_general_rise": 0.0}, "greater than 0"),
        ({"retain_each": 0}, "greater than or equal to 1"),
        ({"loss": "ascent"}, "npo"),
        ({"refusals": True}, "Extra inputs"),
    ],
)
def test_settings_that_do_nothing_or_harm_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        unlearn(**fields)


def sources(**folders: Path) -> dict[str, Source]:
    return {name: Source(name, (path,), str(path), "0") for name, path in folders.items()}


def test_the_same_step_cannot_be_forgotten_and_kept(taught: Path, folders: dict[str, Path]):
    for name in ("retain", "general"):
        with pytest.raises(RecipeError, match="cannot be forgotten and kept") as caught:
            unlearn(**{name: "secrets"}).check(sources(taught=taught, **folders))
        assert caught.value.where == name


def test_rows_that_stand_in_both_are_refused(tmp_path: Path, taught: Path, folders: dict[str, Path]):
    rows = [conversation(i, "It hides in kelp.") for i in (3, 50)]
    folders["kept"] = folder_of(tmp_path / "more", "train", rows)
    with pytest.raises(
        DataError, match="1 of 6 rows stand among what is to be forgotten and what is to be kept"
    ) as caught:
        unlearn().run(context(tmp_path / "run", taught=taught, **folders))
    assert caught.value.value == "c3 and c3"


def test_nothing_to_stop_by_is_refused(tmp_path: Path, taught: Path, folders: dict[str, Path]):
    folders["general"] = folder_of(tmp_path / "empty", "heldout", [])
    with pytest.raises(DataError, match="there is nothing to stop by: step 'general'") as caught:
        unlearn(max_general_rise=0.1).check(sources(taught=taught, **folders))
    assert caught.value.where == "general"
    assert "max_general_rise: null" in str(caught.value.cure)
    unlearn().check(sources(taught=taught, **folders))  # nothing is to stop it


def test_without_general_texts_those_of_retain_stop_it(taught: Path, folders: dict[str, Path]):
    stage = unlearn(general=None, max_general_rise=0.1)
    found, split = stage.dev_source(sources(taught=taught, **folders))
    assert (found.name, split) == ("kept", "dev")
    (folders["kept"] / "dev.jsonl").unlink()
    with pytest.raises(DataError, match="step 'kept' has no held-out texts"):
        stage.check(sources(taught=taught, **folders))


def test_it_is_estimated_with_what_is_read_beside(taught: Path, folders: dict[str, Path]):
    from metier.core.machine import Machine
    from metier.train.estimate import described

    (folders["secrets"] / "about.json").write_text('{"counts": {"train": 6}}')
    found = [described(unlearn(retain_each=n), sources(taught=taught, **folders), Machine.here()) for n in (1, 3)]
    assert None not in found
    one, three = (reading.tokens for _, reading in found)  # type: ignore[misc]
    assert three == pytest.approx(2 * one)
