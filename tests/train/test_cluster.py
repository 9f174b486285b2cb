"""What training would take on machines that are not here: by hand, in order, and refused where it makes no sense."""

from typing import Any

import pytest
from tools.pages import LLAMA, SHAPES

from metier.core.errors import InputError
from metier.core.machine import Machine
from metier.train.cluster import DEVICES, FITS, NETWORK, SHARE, Cluster, Device, fewest, layouts, parse, total_seconds
from metier.train.costs import operations
from metier.train.methods import Lora, LoraMethod
from metier.train.sizes import Job, Reading, Shape

NOWHERE = Machine(0.0, "cuda", "bf16")
READING = Reading(1e8, 1e8, 2, 1e8 / 262_144, 262_144, 1, 4096, True, 1e8 / 4096)


def job(name: str, **settings: Any) -> Job:
    shape = Shape.of(LLAMA | SHAPES[name])
    assert shape is not None
    return Job(shape, **{"method": "full", "precision": "bf16", "device": "cuda", **settings})


def best(name: str, text: str, **settings: Any) -> Any:
    found = layouts(job(name, **settings), READING, parse(text, NOWHERE, 1), NOWHERE)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("text", "machines", "devices"), [("8xH100", 1, 8), ("4x8xa100-40", 4, 8), ("1xRTX4090", 1, 1)]
)
def test_a_cluster_is_read(text: str, machines: int, devices: int):
    found = parse(text, NOWHERE, 2)
    assert (found.machines, found.devices, found.count) == (machines, devices, machines * devices)
    assert found.link == (found.device.link if machines == 1 else min(NETWORK, found.device.link))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("H100", "written as devices x kind"),
        ("0xH100", "written as devices x kind"),
        ("8xH10", "did you mean 'H100'"),
        ("8xhere", "this machine has 2 cores"),
        ("2xhere", "this machine was not measured yet"),
    ],
)
def test_what_is_no_cluster_is_refused(text: str, said: str):
    with pytest.raises(InputError, match=said):
        parse(text, Machine(8e9, "cpu", "bf16"), 2)


def test_this_machine_is_what_was_measured():
    here = Machine(8e9, "cpu", "bf16", {"bf16": 1e12}, {"bf16": {"2048": 0.6}})
    cluster = parse("2xhere", here, 2)
    assert (cluster.device.memory, cluster.device.peak, cluster.kind) == (4e9, 5e11, "cpu")
    small = job("1B", method=LoraMethod(lora=Lora(r=16)), quantize="4bit", device="cpu")
    found = layouts(small, READING, cluster, here)[0]
    per_token = operations(small, READING) / READING.tokens
    fastest = 2 * 5e11 * 0.6 / per_token
    assert found.speed <= fastest * (1 if not found.checkpointing else 1 / 1.5) * 1.001
    assert not found.overlaps


def test_a_small_model_stays_whole_and_a_large_one_is_sharded():
    assert not best("1B", "8xH100", method=LoraMethod(lora=Lora(r=16))).shard
    assert not best("1B", "1xH100").shard
    large = best("70B", "8x8xH100")
    assert large.shard
    assert large.parts["moments"] == pytest.approx(8 * 70.55e9 / 64, rel=0.01)
    assert large.memory <= FITS * DEVICES["H100"].memory
    assert "sharded over 64" in large.words


def test_what_does_not_fit_says_how_many_would():
    assert best("70B", "8xH100") is None
    enough = fewest(job("70B"), READING, parse("8xH100", NOWHERE, 1), NOWHERE)
    assert enough is not None
    assert enough.count == 32
    assert (enough.machines, enough.devices) == (4, 8)
    lora = {"method": LoraMethod(lora=Lora(r=16))}
    assert fewest(job("70B", **lora), READING, parse("8xH100", NOWHERE, 1), NOWHERE) is None  # each holds all
    assert best("70B", "1xH100", **lora, quantize="4bit") is not None


def test_speed_follows_the_devices_and_never_exceeds_them():
    one, eight, many = (
        best("8B", text, method=LoraMethod(lora=Lora(r=16))) for text in ("1xH100", "8xH100", "4x8xH100")
    )
    assert 7 < eight.speed / one.speed <= 8
    assert one.speed < eight.speed < many.speed <= 32 * one.speed
    work = operations(job("8B", method=LoraMethod(lora=Lora(r=16))), READING) / READING.tokens
    assert one.speed <= SHARE * DEVICES["H100"].peak / work
    assert total_seconds(one, READING) == pytest.approx(2e8 / one.speed)


def test_what_is_sent_is_a_ring_of_gradients_or_weights_twice_and_gradients_once():
    lora = best("8B", "8xH100", method=LoraMethod(lora=Lora(r=16)))
    trained = sum(job("8B", method=LoraMethod(lora=Lora(r=16))).trained.values())
    assert lora.network == pytest.approx(4 * trained * 2 * 7 / 8 / DEVICES["H100"].link)
    full = best("8B", "8xH100")
    micros = max(1.0, 262_144 / 8 / full.micro)
    assert full.shard
    assert full.network == pytest.approx(micros * 8.03e9 * 8 * 7 / 8 / DEVICES["H100"].link, rel=0.01)
    assert full.step_seconds == max(full.compute, full.network) + full.update


def test_a_slow_network_is_what_a_sharded_step_is_bound_by():
    slow = Cluster("x", 8, 8, Device(24e9, 125e12, 0.6e12, 2e9))
    found = layouts(job("8B"), READING, slow, NOWHERE)
    assert found
    assert found[0].bound == "network"
