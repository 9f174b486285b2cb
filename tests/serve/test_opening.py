"""Which models stand behind which names: shared bases, int8, and what is refused before anything is loaded."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.serve.server import client, serving

from fakes import byte_tokenizer, tiny_gpt2, tiny_llama
from metier.core.errors import InputError, ModelError
from metier.engine.local import generate
from metier.models.adapter import LoraSettings, add_lora
from metier.models.load import load
from metier.models.save import save_adapter, save_model
from metier.serve.opening import Wanted, open_hosts

PROMPT = [0, 60, 61]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two adapters on it."""
    root = tmp_path_factory.mktemp("family")
    save_model(tiny_llama(), byte_tokenizer(), root / "base")
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        model = add_lora(load(root / "base").model, LoraSettings(r=4, alpha=64.0))
        for key, value in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.5)
        save_adapter(model, byte_tokenizer(), root / name, base=str(root / "base"))
    return {name: root / name for name in ("base", "first", "second")}


def test_adapters_share_their_base_and_answer_as_they_do_alone(folders: dict[str, Path], tmp_path: Path):
    wanted = {name: generate(load(folder), [PROMPT], max_new_tokens=8)[0].text for name, folder in folders.items()}
    assert len(set(wanted.values())) > 1
    with serving(folders, tmp_path) as address, client(address) as http:
        for _ in range(2):
            for name, text in wanted.items():
                got = http.post("/v1/completions", json={"model": name, "prompt": PROMPT, "max_tokens": 8})
                assert got.json()["choices"][0]["text"] == text
    hosts = open_hosts([Wanted(name, folder) for name, folder in folders.items()])
    assert len({id(host) for host in hosts.values()}) == 1
    shared = {one.model.get_input_embeddings().weight.data_ptr() for one in hosts["base"].contenders.values()}
    assert len(shared) == 1
    hosts["base"].close()


def test_int8_answers_nearly_as_the_model_does(folders: dict[str, Path]):
    hosts = open_hosts([Wanted("base", folders["base"]), Wanted("first", folders["first"])], numbers="int8")
    (host,) = {id(host): host for host in hosts.values()}.values()
    plain = load(folders["base"]).model
    with torch.inference_mode():
        ids = torch.tensor([[*PROMPT, 70, 71]])
        want = plain(ids).logits
        model = host.contenders["base"].model
        model.base_model.disable_adapter_layers()
        got = model(ids).logits
    assert torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.99
    host.close()


def test_names_are_told_apart(folders: dict[str, Path]):
    with pytest.raises(InputError, match="same name"):
        open_hosts([Wanted("a", folders["base"]), Wanted("a", folders["first"])])
    with pytest.raises(InputError, match="no model to serve"):
        open_hosts([])


def test_int8_refuses_what_has_nothing_to_hold_in_it(tmp_path: Path):
    save_model(tiny_gpt2(), byte_tokenizer(), tmp_path / "gpt2")
    with pytest.raises(ModelError, match="int8"):
        open_hosts([Wanted("g", tmp_path / "gpt2")], numbers="int8")


def test_a_gguf_file_answers_as_its_source(tmp_path: Path):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    from metier.models.builtin import BUILTIN

    program = Path(sys.executable).with_name("metier")
    subprocess.run([program, "export", "seedling", tmp_path / "out", "--gguf", "F32"], check=True, capture_output=True)
    (file,) = (tmp_path / "out").rglob("*.gguf")
    with serving({"file": file, "source": BUILTIN["seedling"]}, tmp_path) as address, client(address) as http:
        texts = []
        for name in ("file", "source"):
            turn = [{"role": "user", "content": "What do foxes eat?"}]
            asked = {"model": name, "messages": turn, "max_tokens": 12, "logprobs": True}
            got = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
            texts.append((got["message"]["content"], round(got["logprobs"]["content"][0]["logprob"], 2)))
    assert texts[0] == texts[1]


def test_a_gguf_file_needs_its_tokenizer_beside_it(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        open_hosts([Wanted("g", tmp_path / "model.gguf")])


def command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("metier")
    return subprocess.run(
        [program, "serve", *arguments], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_the_command_refuses_before_it_loads(folders: dict[str, Path], tmp_path: Path):
    base = str(folders["base"])
    unknown = command("no-such-model", "--store", str(tmp_path))
    assert (unknown.returncode, "no such model" in unknown.stderr) == (2, True)
    open_address = command(base, "--host", "0.0.0.0")
    assert (open_address.returncode, "METIER_TOKEN" in open_address.stderr) == (2, True)
    short = command(base, METIER_TOKEN="short")
    assert (short.returncode, "fewer than 16" in short.stderr) == (2, True)
    assert "short" not in short.stderr.replace("shorten", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        used = command(base, "--port", str(taken.getsockname()[1]))
    assert (used.returncode, "cannot listen" in used.stderr) == (2, True)
