"""Which settings make the peers fast: `python -m benchmarks.peers.tries [llamafactory|trl|litgpt|notebook ...]`.

One run each on the work of the case `sft6`, with one step to warm up and one timed. Writes `tries.md`; the fastest of
each peer are then its contenders in `contenders.py`.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers.contenders import Contender
from benchmarks.rows import hardware
from benchmarks.training import SFT6, gemm_peaks, run_one

TABLE = Path(__file__).with_suffix(".md")
BF16 = {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": "bfloat16"}}
FACTORY = {"disable_gradient_checkpointing": True}


def batch(size: int) -> dict[str, int]:
    """Micro-batches of so many examples, sixteen in all."""
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": max(1, 16 // size)}


def packed(rows: int, length: int) -> dict[str, int]:
    """So many packed rows a step, one at a time."""
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows, "cutoff_len": length}


TRIES = (
    Contender("LLaMA-Factory: defaults", "llamafactory", "llamafactory"),
    *(
        Contender(
            f"LLaMA-Factory: no checkpointing, micro-batch {n}", "llamafactory", "llamafactory", FACTORY | batch(n)
        )
        for n in (1, 2, 4, 8, 16)
    ),
    *(
        Contender(
            f"LLaMA-Factory: no checkpointing, neat packing, {rows} rows of {length}",
            "llamafactory",
            "llamafactory",
            FACTORY | packed(rows, length) | {"neat_packing": True},
        )
        for rows, length in ((8, 512), (4, 1024), (2, 2048))
    ),
    Contender("TRL: defaults", "trl", "trl"),
    *(
        Contender(f"TRL: bf16, no checkpointing, micro-batch {n}", "trl", "trl", BF16 | batch(n))
        for n in (1, 2, 4, 8, 16)
    ),
    *(
        Contender(
            f"TRL: bf16, no checkpointing, by length, micro-batch {n}",
            "trl",
            "trl",
            BF16 | batch(n) | {"train_sampling_strategy": "group_by_length"},
        )
        for n in (4, 8)
    ),
    Contender(
        "TRL: bf16, no checkpointing, padding-free, micro-batch 4",
        "trl",
        "trl",
        BF16 | batch(4) | {"padding_free": True},
    ),
    *(
        Contender(
            f"TRL: bf16, no checkpointing, packed, {rows} rows of {length}",
            "trl",
            "trl",
            BF16 | batch(1) | {"packing": True, "max_length": length, "gradient_accumulation_steps": rows},
        )
        for rows, length in ((8, 512), (4, 1024), (2, 2048))
    ),
    Contender("LitGPT: defaults", "litgpt", "litgpt", examples=8),
    *(
        Contender(
            f"LitGPT: bf16-true, micro-batch {n}",
            "litgpt",
            "litgpt",
            {"precision": "bf16-true", "micro_batch_size": n},
            8,
        )
        for n in (1, 4, 8)
    ),
    Contender("notebook: micro-batch 4", "notebook", "trl", {"per_device_train_batch_size": 4}, 4),
)


def main() -> None:
    wanted = sys.argv[1:]
    rows = []
    for contender in TRIES:
        if wanted and contender.name.split(":")[0].lower().replace("-", "") not in wanted:
            continue
        try:
            result = run_one(SFT6, contender)
        except SystemExit as refused:
            said = str(refused).strip().splitlines()[-1][:100]
            rows.append(f"| {contender.name} | failed: {said} | |")
        else:
            speed = result["useful_tokens"] / result["seconds"]
            rows.append(f"| {contender.name} | {speed:.0f} | {result['peak_rss_bytes'] / 1e9:.2f} GB |")
        print(rows[-1], flush=True)
    peak = gemm_peaks()["bfloat16"] / 1e9
    TABLE.write_text(
        "# Settings that were tried for the peers\n\n"
        f"Written by `python -m benchmarks.peers.tries`. {SFT6.title}, one timed step, one run each, "
        f"{datetime.now(UTC):%Y-%m-%d}, {hardware()}, large bf16 products {peak:.0f} GFLOP/s.\n\n"
        "| peer and settings | tokens/s | peak memory |\n|---|---:|---:|\n" + "\n".join(rows) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
