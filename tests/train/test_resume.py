"""A run that is stopped again and again, anywhere, ends with the bits of one that never was."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from test_loop import StopAt, adapted, fingerprint, pieces_of, run
from test_training_stages import base, context, documents, examples, pretrain, said, tune  # noqa: F401

import fakes
from metier.core.errors import InputError, Interrupted
from metier.core.fingerprint import file_digest, tree
from metier.models.shape import freeze_all_but
from metier.train.batches import shared_prefix
from metier.train.prefix_cache import PrefixCache, layout_of, room_for
from metier.train.stage import Training

PIECES, REPLAY, DEV = pieces_of(24), pieces_of(8, seed=5), pieces_of(5, seed=9)


def frozen() -> Any:
    """A GPT-2 with dropout, whose last block trains."""
    model = fakes.tiny("gpt2")
    freeze_all_but(model, 1, head=False)
    return model


def cache(folder: Path | None) -> PrefixCache:
    every = (*PIECES, *REPLAY, *DEV)
    prefix = shared_prefix(PIECES)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    room = room_for(every, prefix)
    return PrefixCache(room, 32, next(frozen().parameters()).dtype, folder, layout=layout_of(every, prefix, 96))


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "full, packed, replay": (lambda: fakes.tiny("llama"), {}),
    "lora, dropout, whole pieces": (adapted, {"epochs": 1, "batches": {"block_size": None}, "keep_best": True}),
    "freeze, kept in memory": (frozen, {"epochs": 4}),
    "freeze, kept in a file": (frozen, {"epochs": 4}),
    "muon, small micro-steps": (lambda: fakes.tiny("llama"), {"optimizer": "muon", "batches": {"micro_tokens": 48}}),
}


@pytest.mark.parametrize("name", CASES)
def test_stopped_anywhere(tmp_path: Path, name: str):
    make, changes = CASES[name]

    def trained(folder: Path, **more: Any) -> tuple[Any, Any]:
        model = make()
        if "kept" in name:
            more["cache"] = cache(folder / "cache" if "file" in name else None)
        return model, run(model, folder, **changes, **more)

    whole, expected = trained(tmp_path / "whole")
    for stops in count():  # 4 looks, then 5, ...: each stop is at another micro-step, most of them amid a window
        try:
            again, found = trained(tmp_path / "cut", check_stop=StopAt(4 + stops % 5 + (13 if "kept" in name else 0)))
        except Interrupted:
            assert stops < 40
            continue
        break
    assert stops >= 2
    assert found.log == expected.log
    assert fingerprint(again) == fingerprint(whole)


FREEZE = {"method": {"freeze": {"blocks": 1, "head": False}}, "epochs": 3, "batch_size": 2, "accumulation": 2}


@pytest.mark.parametrize("kept", ["memory", "disk", "auto"])
def test_a_stage_with_kept_blocks_ends_with_the_same_bytes(
    tmp_path: Path,
    base: Path,  # noqa: F811
    documents: Path,  # noqa: F811
    kept: str,
):
    stage = pretrain(**FREEZE, prefix_cache=kept)
    _same_bytes(tmp_path, stage, looks=(20, 200, 13), base=base, data=documents)


def test_tuning_with_an_adapter_ends_with_the_same_bytes(tmp_path: Path, base: Path, examples: Path):  # noqa: F811
    stage = tune(method={"lora": {"r": 4, "dropout": 0.2}}, batch_size=2, accumulation=2, neftune=5.0)
    _same_bytes(tmp_path, stage, looks=(9, 200, 9), base=base, data=examples)


def _same_bytes(folder: Path, stage: Training, looks: tuple[int, int, int], **sources: Path) -> None:
    whole = context(folder / "whole", **sources)
    stage.run(whole)
    last = whole
    for at in range(*looks):  # the first stop is in the data
        left = iter([False] * at)
        last = context(folder / "cut", lambda left=left: next(left, True), **sources)
        try:
            stage.run(last)
        except Interrupted:
            continue
        break
    assert at >= looks[0] + 2 * looks[2]
    assert "going on from step" in said(folder / "cut", "note")
    assert not any("warning" in line for line in said(folder / "cut", "warning").splitlines())
    found, expected = ({n: file_digest(p) for n, p in tree(one.out).items()} for one in (last, whole))
    assert found == expected


def test_other_settings_or_data_are_refused_by_field(tmp_path: Path, base: Path, documents: Path):  # noqa: F811
    stage = pretrain(epochs=2, batch_size=2)
    left = iter([False] * 40)
    with pytest.raises(Interrupted):
        stage.run(context(tmp_path, lambda: next(left, True), base=base, data=documents))
    with pytest.raises(InputError, match=r"config.learning_rate 0.01 -> 0.02"):
        pretrain(epochs=2, batch_size=2, learning_rate=0.02).run(context(tmp_path, base=base, data=documents))
    path = documents / "train.jsonl"
    path.write_text(path.read_text().replace("kelp", "weed"))
    with pytest.raises(InputError, match=r"data.train '.*' -> '"):
        stage.run(context(tmp_path, base=base, data=documents))
