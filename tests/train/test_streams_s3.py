"""A corpus in a bucket of a server on this machine: read as it is trained on, stopped, gone on with, refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import fakes
from metier.core.errors import DataError, InputError, Interrupted
from metier.core.store import Store
from metier.pipeline import run
from metier.recipe import load_recipe

pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Any:
    import boto3

    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="corpora")
    for shard in range(6):
        rows = [{"text": f"the crab {20 * shard + i} digs in sand. " * (1 + i % 4)} for i in range(20)]
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        client.put_object(Bucket="corpora", Key=f"bay/part-{shard}.jsonl", Body=body)
    return client


def recipe(folder: Path, base: Path, path: str) -> Path:
    place = folder / "r.yaml"
    place.write_text(
        f"name: bay\nsteps:\n  corpus: {{kind: stream, sources: [{{path: '{path}'}}], heldout: 3, lanes: 2, "
        "shuffle_buffer: 0.002}\n"
        f"  reader: {{kind: pretrain, model: {base}, documents: corpus, block_size: 64, batch_size: 2, max_steps: 8, "
        "precision: fp32, log_every: 1}\n"
    )
    return place


def test_a_corpus_in_a_bucket(tmp_path: Path, bucket: Any):
    base = fakes.save_tiny(tmp_path / "model")
    found = load_recipe(recipe(tmp_path, base, "s3://corpora/bay/*.jsonl"))
    steps = 0

    def hear(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["event"] == "train"

    whole = run(found, Store(tmp_path / "whole")).artifacts
    assert (whole["corpus"].record["metrics"]["shards"], whole["corpus"].record["metrics"]["heldout"]) == (6, 3)
    with pytest.raises(Interrupted):
        run(found, Store(tmp_path / "cut"), listeners=[hear], stop=lambda: steps >= 3)
    before = bucket.get_object(Bucket="corpora", Key="bay/part-2.jsonl")["Body"].read()
    bucket.put_object(Bucket="corpora", Key="bay/part-2.jsonl", Body=before.replace(b"digs", b"sits"))
    with pytest.raises(DataError, match=r"part-2\.jsonl has changed since it was listed"):
        run(found, Store(tmp_path / "cut"))
    bucket.put_object(Bucket="corpora", Key="bay/part-2.jsonl", Body=before)
    cut = run(found, Store(tmp_path / "cut")).artifacts
    for name in ("train.jsonl", "model.safetensors"):
        assert (cut["reader"].files / name).read_bytes() == (whole["reader"].files / name).read_bytes()


def test_a_bucket_and_a_prefix_that_are_not_there(tmp_path: Path, bucket: Any):
    base = fakes.save_tiny(tmp_path / "model")
    for path, words in (("s3://nowhere/*.jsonl", "not there|no shard"), ("s3://corpora/sea/*.jsonl", "no shard")):
        with pytest.raises(InputError, match=words) as caught:
            run(load_recipe(recipe(tmp_path, base, path)), Store(tmp_path / "s"))
        assert path in str(caught.value)
