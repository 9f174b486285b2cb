"""Calibration text: each text by itself, from all over the split, no more than was asked for."""

from pathlib import Path

import pytest
import torch

from fakes import save_tiny
from metier.core.errors import DataError
from metier.models.load import Loaded, load
from metier.prune.calibrate import BATCH_TOKENS, pieces
from metier.prune.stream import Stream
from metier.text.artifacts import write_jsonl
from metier.text.chat import encode_document


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(save_tiny(tmp_path_factory.mktemp("tiny")))


def texts(folder: Path, *rows: str) -> Path:
    write_jsonl(folder / "train.jsonl", ({"id": str(at), "text": row} for at, row in enumerate(rows)))
    return folder


def test_no_text_is_joined_to_another(tmp_path: Path, loaded: Loaded):
    rows = ("a cat", "a dog", "the otter", "kelp in winter")
    found = pieces(loaded, texts(tmp_path, *rows), "documents", samples=9, tokens=24)
    wanted = {tuple(encode_document(loaded.tokenizer, row)) for row in rows}
    assert {tuple(ids) for batch in found for ids in batch.tolist()} == wanted
    assert [batch.shape[0] for batch in found] == [1, 1, 2]  # the longest first, those of one length together


def test_what_goes_into_a_block_is_what_the_text_alone_gives(tmp_path: Path, loaded: Loaded):
    rows = ("a cat", "a dog", "the otter")
    found = pieces(loaded, texts(tmp_path, *rows), "documents", samples=9, tokens=12)
    stream = Stream(loaded.model, found)
    hidden = torch.cat([each for batch in stream.run(loaded.model.model.layers[0]) for each in batch])
    alone = []
    for batch in found:
        for ids in batch:
            one = Stream(loaded.model, (ids[None],))
            alone.append(one.run(loaded.model.model.layers[0])[0][0])
    torch.testing.assert_close(hidden, torch.cat(alone))


def test_of_longer_texts_the_first_pieces_come_before_the_second(tmp_path: Path, loaded: Loaded):
    long = [word * 40 for word in ("abc", "def", "ghi")]
    folder = texts(tmp_path, *long)
    (batch,) = pieces(loaded, folder, "documents", samples=4, tokens=16)
    begun = [tuple(encode_document(loaded.tokenizer, text)) for text in long]
    expected = [ids[:16] for ids in begun] + [begun[0][16:32]]
    assert [tuple(ids) for ids in batch.tolist()] == expected


def test_no_more_is_read_than_was_asked_for(tmp_path: Path, loaded: Loaded):
    folder = texts(tmp_path, *(f"text number {at} of many" for at in range(400)))
    found = pieces(loaded, folder, "documents", samples=30, tokens=50)
    assert 1500 - 2 < sum(batch.numel() for batch in found) <= 1500
    assert max(batch.numel() for batch in found) <= BATCH_TOKENS


def test_less_text_than_a_piece_is_refused(tmp_path: Path, loaded: Loaded):
    with pytest.raises(DataError, match="one piece of calibration takes") as caught:
        pieces(loaded, texts(tmp_path, "short"), "documents", samples=2, tokens=60)
    assert caught.value.where == "calibration.tokens"
