"""What comes from outside: pickles run nothing, headers that lie are refused, templates cannot reach out."""

import json
import os
import pickle
import random
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import byte_tokenizer, save_tiny, tiny
from metier.core.errors import DataError, ModelError
from metier.models.builtin import resolve
from metier.models.load import load, stored_dtype
from metier.models.unpickle import convert, read_pickled

IDS = torch.tensor([[0, 70, 80, 90, 100]])


class Malicious:
    """Unpickled by an ordinary reader, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def pickled(folder: Path, name: str = "pytorch_model.bin") -> Path:
    """A model's folder with its weights pickled instead."""
    save_tiny(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / name)
    return folder / name


# ---- pickles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_runs_nothing_whoever_is_asked(tmp_path: Path, name: str, protocol: int) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "model"
    path = pickled(folder, name)
    ways = [pickle.dumps(Malicious(mark), protocol), pickle.dumps({"weight": Malicious(mark)}, protocol)]
    torch.save({"weight": Malicious(mark)}, tmp_path / "zipped")
    for content in [*ways, (tmp_path / "zipped").read_bytes()]:
        path.write_bytes(content)
        for reader in (
            lambda: load(folder),
            lambda: resolve(str(folder), tmp_path),
            lambda: resolve(str(path), tmp_path),
        ):
            with pytest.raises(ModelError):
                reader()
        with pytest.raises(ModelError, match="nothing of it was run"):
            read_pickled(path)
        with pytest.raises(ModelError, match="nothing of it was run"):
            convert(path, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(ways[0])  # the fixture would do it
    assert mark.exists()


def test_beside_safetensors_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    mark = tmp_path / "mark"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Malicious(mark)))
    load(folder)
    assert not mark.exists()


def test_pickled_weights_are_refused_with_the_command_that_reads_them_and_nothing_else(tmp_path: Path) -> None:
    path = pickled(tmp_path / "model")
    for reference in (path.parent, path):
        with pytest.raises(ModelError) as caught:
            resolve(str(reference), tmp_path)
        assert f"metier convert {path}" in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
@torch.no_grad()
def test_asked_for_by_name_they_become_safetensors(tmp_path: Path, kind: str) -> None:
    model = tiny(kind, seed=3)
    folder = save_tiny(tmp_path / "model", kind, seed=3)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    convert(folder / "pytorch_model.bin", tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert loaded.tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_shards_nested_weights_and_what_does_not_fit(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for part, held in parts.items():
        torch.save({"state_dict": {name: weights[name] for name in held}}, folder / part)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, held in parts.items() for name in held}}))
    convert(index, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()
    with pytest.raises(ModelError, match="are not in the file"):
        convert(folder / "a.bin", tmp_path / "half")
    with pytest.raises(ModelError, match="something already"):
        convert(index, tmp_path / "out")
    with pytest.raises(ModelError, match="no pickled file"):
        convert(folder / "config.json", tmp_path / "other")
    with pytest.raises(ModelError, match="no such file"):
        convert(folder / "c.bin", tmp_path / "other")
    torch.save([1, 2], folder / "c.bin")
    with pytest.raises(ModelError, match="mapping of names to tensors"):
        convert(folder / "c.bin", tmp_path / "other")


# ---- safetensors ----------------------------------------------------------------------------------------------------


def header(value: object, *, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
BAD = {
    "a length beyond the file": header({"a": TENSOR}, length=10**6),
    "a length beyond all": header({"a": TENSOR}, length=2**63),
    "no header": b"\0" * 8,
    "cut in the length": b"\1\0\0",
    "not JSON": header(b"{" * 20),
    "not UTF-8": header(b"\xff" * 20),
    "a list": header([TENSOR]),
    "an unknown type": header({"a": TENSOR | {"dtype": "PICKLE"}}),
    "a shape of another size": header({"a": TENSOR | {"shape": [4, 5]}}),
    "a negative shape": header({"a": TENSOR | {"shape": [-4, -4]}}),
    "a shape that overflows": header({"a": TENSOR | {"shape": [2**32, 2**32, 16]}}),
    "offsets the wrong way": header({"a": TENSOR | {"data_offsets": [64, 0]}}),
    "offsets beyond the file": header({"a": TENSOR | {"shape": [400, 4], "data_offsets": [0, 6400]}}),
    "tensors that overlap": header({"a": TENSOR, "b": TENSOR}),
    "a hole": header({"a": TENSOR | {"data_offsets": [16, 80]}}, data=b"\0" * 80),
    "bytes that nobody owns": header({"a": TENSOR}, data=b"\0" * 128),
    "nested deeply": header(b'{"a":' * 5000 + b"0" + b"}" * 5000),
    "no offsets": header({"a": {"dtype": "F32", "shape": [4, 4]}}),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_header_that_lies_is_refused(tmp_path: Path, what: str) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(BAD[what])
    for reader in (load, stored_dtype):
        with pytest.raises(ModelError, match="the weights cannot be read"):
            reader(folder)


def test_no_byte_of_a_header_can_be_changed_into_a_crash(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    path = folder / "model.safetensors"
    good, draw = path.read_bytes(), random.Random(0)
    size = 8 + struct.unpack("<Q", good[:8])[0]
    for _ in range(300):
        place = draw.randrange(size)
        path.write_bytes(good[:place] + bytes([draw.randrange(256)]) + good[place + 1 :])
        with suppress(ModelError):
            stored_dtype(folder)


# ---- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ self.__init__.__globals__ }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ ''.format_map({}).__class__ }}",
        "{% set _ = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_reach_out(tmp_path: Path, escape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from metier.text.chat import encode_prompt
    from metier.text.nouns import Message

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = escape + tokenizer.chat_template
    with suppress(DataError):  # what the sandbox hides is nothing, and nothing can be done with it
        ids = encode_prompt(tokenizer, (Message("user", "Hello"),))
        assert not re.search("class|globals|root:", tokenizer.decode(ids))
    assert not (tmp_path / "MARK").exists()
