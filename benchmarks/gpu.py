"""Training on one GPU beside other tools: `python -m benchmarks.gpu [PART ...] [--short]`.

TinyLlama's shape with all 22 blocks and random weights. The contenders of a part are in memory side by side, each in a
process of its own, and train in turns, so that a disturbance meets all; in each turn the speed of large bf16 products
of random numbers is measured as well. Tokens are the examples' own.

    full     whole weights, rows of 2,048 tokens
    lora     LoRA of rank 16 on all linear layers, the same rows
    sft      the same on short questions and answers (1,024 pairs of MedQuAD)
    bases    LoRA on bf16, int8, 8-bit and 4-bit bases, and with checkpointing
    gpt2     LoRA on c_attn, GPT-2's shape, rows of 512 tokens

Peers are imported from the environment that this runs in (TRL with Liger's kernels and torch.compile); one that fails
is told and left out. Figures go to `benchmarks/results/training.json` and `training.md`; with `--short` they are
printed only. Needs a GPU of 80 GB, for `full` with all its contenders one of 140.
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from statistics import median
from typing import IO, Any

from benchmarks import work
from benchmarks.peers.contenders import Contender
from benchmarks.rows import Row, hardware, write
from benchmarks.training import LORA, LORA_GPT2, write_section

HERE = Path(__file__).parent
LENGTH = 2048
READY_SECONDS, TURN_SECONDS = 240.0, 120.0
SIDE, PEAK_SECONDS = 8192, 0.3
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

MICRO = {"micro_tokens": 16_384}
METIER = Contender("Metier", "metier", None, MICRO)
METIER_INT8 = Contender("Metier, int8 base", "metier", None, {"quantize": "int8", **MICRO})
METIER_8BIT = Contender("Metier, 8-bit base (bitsandbytes)", "metier", None, {"quantize": "8bit", **MICRO})
METIER_4BIT = Contender("Metier, 4-bit base (bitsandbytes)", "metier", None, {"quantize": "4bit", **MICRO})
METIER_CHECKED = Contender("Metier, checkpointing", "metier", None, {"checkpointing": True, **MICRO})


def trl(name: str, batch: int, *, weights: str = "bfloat16", **settings: Any) -> Contender:
    """TRL with micro-batches of so many rows, nothing computed twice."""
    given = {
        "gradient_checkpointing": False,
        "max_length": LENGTH,
        "per_device_train_batch_size": batch,
        "model_init_kwargs": {"dtype": weights, "attn_implementation": "sdpa"},
        **settings,
    }
    return Contender(f"TRL, {name}", "trl", None, given)


TRL_LIGER = trl("bf16 weights, Liger", 8, use_liger_kernel=True)
TRL_COMPILED = trl("bf16 weights, torch.compile", 4, torch_compile=True)
TRL_MASTER = trl("fp32 weights, bf16 products, Liger", 4, weights="float32", use_liger_kernel=True)
TRL_PACKED = trl("packed, Liger", 1, packing=True, gradient_accumulation_steps=7, use_liger_kernel=True)
TRL_BY_LENGTH = trl("by length, Liger", 32, train_sampling_strategy="group_by_length", use_liger_kernel=True)
TRL_GPT2 = trl("bf16 weights", 32)
TRL_GPT2_COMPILED = trl("bf16 weights, torch.compile", 32, torch_compile=True)


@dataclass(frozen=True)
class Case:
    """One comparison. data: a name in `DATA`. examples: that an optimizer step reads. steps: of a turn."""

    title: str
    model: str
    data: str
    method: Any
    contenders: tuple[Contender, ...]
    examples: int
    steps: int = 4
    turns: int = 3
    warmup: int = 3
    utilisation: float | None = None
    rows: bool = True


CASES = {
    "full": Case(
        "TinyLlama's shape, rows of 2,048 tokens, whole weights",
        "tinyllama22",
        "rows2048",
        "full",
        (METIER, TRL_LIGER, TRL_MASTER, TRL_COMPILED),
        16,
        utilisation=0.5,
    ),
    "lora": Case(
        "TinyLlama's shape, rows of 2,048 tokens, LoRA",
        "tinyllama22",
        "rows2048",
        LORA,
        (METIER, METIER_INT8, TRL_LIGER, TRL_COMPILED),
        16,
        utilisation=0.5,
    ),
    "sft": Case(
        "TinyLlama's shape, short questions and answers, LoRA",
        "tinyllama22",
        "sft1024",
        LORA,
        (METIER, METIER_INT8, TRL_PACKED, TRL_BY_LENGTH),
        64,
        steps=4,
    ),
    "bases": Case(
        "TinyLlama's shape, rows of 2,048 tokens, LoRA on each kind of base",
        "tinyllama22",
        "rows2048",
        LORA,
        (METIER, METIER_CHECKED, METIER_INT8, METIER_8BIT, METIER_4BIT),
        8,
        steps=3,
        turns=2,
        rows=False,
    ),
    "gpt2": Case(
        "GPT-2's shape, rows of 512 tokens, LoRA on c_attn",
        "gpt2",
        "rows512",
        LORA_GPT2,
        (METIER, TRL_GPT2, TRL_GPT2_COMPILED),
        64,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training on one GPU beside other tools.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all, or some of {', '.join(CASES)}")
    parser.add_argument("--short", action="store_true", help="one turn of two steps each, and no rows")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(CASES):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (there are: {', '.join(CASES)})")
    for name in given.parts or list(CASES):
        found = Duel(CASES[name], short=given.short).run()
        text = section(found)
        print(text, flush=True)
        if not given.short:
            write_section(f"gpu, {name}", text)
            write("training", f"python -m benchmarks.gpu {name}", rows_of(found))


# ---- one comparison -------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A contender's process and what it said. turns: seconds and tokens of each, with the peak measured before it."""

    contender: Contender
    process: subprocess.Popen[str]
    log: IO[str]
    turns: list[dict[str, float]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    _lines: Queue[str] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next line that it prints, or None, and it has failed, where none comes in that time."""
        try:
            line = self._lines.get(timeout=seconds)
        except Empty:
            line = ""
        if not line:
            self.process.kill()
            self.process.wait()
            self.log.seek(0)
            self.failed = self.log.read()[-1500:].strip() or "said nothing"
            return None
        told: dict[str, Any] = json.loads(line)
        return told

    def speed(self, turn: int) -> float:
        """Useful tokens a second."""
        return self.turns[turn]["tokens"] / self.turns[turn]["seconds"]

    def utilisation(self, turn: int) -> float:
        """Arithmetic that the work needs over what large products reach in the same time."""
        flops: float = self.result["flops"][turn]
        return flops / self.turns[turn]["seconds"] / self.turns[turn]["peak"]


@dataclass
class Duel:
    """A case while it runs."""

    case: Case
    short: bool = False
    runs: list[Run] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """How many each contender has."""
        return 1 if self.short else self.case.turns

    def run(self) -> "Duel":
        """All turns. Contenders that fail are told."""
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            self.runs = [self._start(c, Path(folder) / str(n)) for n, c in enumerate(self.case.contenders)]
            for run in self.runs:
                run.hear(max(1.0, READY_SECONDS - (time.monotonic() - started)))
            print(f"{self.case.title}: ready after {time.monotonic() - started:.0f} s", flush=True)
            for turn in range(self.turns):
                for run in [one for one in self.runs if not one.failed]:
                    self._turn(run, turn)
            for run in [one for one in self.runs if not one.failed]:
                run.result = run.hear(TURN_SECONDS) or {}
                run.process.wait()
            for run in self.runs:
                if run.failed:
                    print(f"FAILED {run.contender.name}:\n{run.failed}", flush=True)
        return self

    def _start(self, contender: Contender, scratch: Path) -> Run:
        case = self.case
        scratch.mkdir()
        steps = 2 if self.short else case.steps
        job = {
            "model": str(work.model(case.model)),
            "data": str(data(case.data, (case.warmup + self.turns * steps) * case.examples)),
            "method": case.method,
            "examples_per_step": case.examples,
            "steps": steps,
            "turns": self.turns,
            "warmup": case.warmup,
            "seed": 0,
            "threads": 4,
            "device": "cuda",
            "settings": contender.settings,
            "scratch": str(scratch),
        }
        log = (scratch / "log").open("w+", encoding="utf-8")
        process = subprocess.Popen(
            [contender.python, str(HERE / f"peers/run_{contender.run}.py"), json.dumps(job)],
            env=os.environ | ENVIRONMENT | {"HF_HOME": str(scratch / "hf")},
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        return Run(contender, process, log)

    def _turn(self, run: Run, turn: int) -> None:
        peak = gemm_peak()
        assert run.process.stdin is not None
        run.process.stdin.write("go\n")
        run.process.stdin.flush()
        told = run.hear(TURN_SECONDS)
        if told is not None:
            run.turns.append(told | {"peak": peak})
            name = run.contender.name
            print(f"turn {turn + 1} {name}: {run.speed(turn):,.0f} tokens/s, peak {peak / 1e12:.0f} T", flush=True)
            if turn + 1 < self.turns:
                run.hear(TURN_SECONDS)


def gemm_peak() -> float:
    """Operations a second of an 8192 x 8192 x 8192 product of random numbers in bf16: the median of a third of a
    second's worth, after one to warm up."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < PEAK_SECONDS:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ b.t()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return float(2 * SIDE**3 / median(times[1:]))


# ---- the work -------------------------------------------------------------------------------------------------------


def data(name: str, count: int) -> Path:
    """JSON lines of so many examples: those of short answers as often as it takes, and rows of random ids."""
    path = work.WORK / f"{name}-{count}.jsonl"
    if not path.exists():
        draw = random.Random(0)
        if name == "sft1024":
            lines = sft_lines()
            text = "".join(lines[n % len(lines)] for n in range(count))
        else:
            length = int(name.removeprefix("rows"))
            rows = ({"input_ids": draw.choices(range(3, 32_000), k=length), "prompt_length": 0} for _ in range(count))
            text = "".join(json.dumps(row) + "\n" for row in rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def sft_lines() -> list[str]:
    """The pairs of `benchmarks.work`, but 1,024 of them."""
    path = work.WORK / "sft1024.jsonl"
    if not path.exists():
        work.need_shared()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in work.sft(1024)), encoding="utf-8")
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


# ---- what is written ------------------------------------------------------------------------------------------------


def rows_of(found: Duel) -> list[Row]:
    """Speed beside the fastest peer's, and the share of the peak."""
    case = found.case
    done = [run for run in found.runs if not run.failed]
    rows: list[Row] = []
    own = [run for run in done if run.contender.run == "metier"]
    peers = [run for run in done if run.contender.is_peer]
    for run in own if peers else []:
        each = {peer.contender.name: [run.speed(t) / peer.speed(t) for t in range(found.turns)] for peer in peers}
        name, ratios = min(each.items(), key=lambda item: median(item[1]))
        rows.append(ratio(f"GPU, {case.title}{kind(run)}: tokens a second", ratios, name))
        lean = min(peers, key=lambda peer: float(peer.result["gpu_bytes"]))
        memory = run.result["gpu_bytes"] / lean.result["gpu_bytes"]
        what = f"GPU, {case.title}{kind(run)}: peak memory"
        rows.append(Row(what, memory, 1.0, "ratio", "lower", lean.contender.name))
    if case.utilisation is not None and own:
        shares = [own[0].utilisation(turn) for turn in range(found.turns)]
        what = f"GPU, {case.title}: utilisation of the bf16 GEMM peak"
        spread = (min(shares), max(shares))
        rows.append(Row(what, median(shares), case.utilisation, "share", "higher", n=len(shares), interval=spread))
    if not case.rows:
        plain = own[0].result["gpu_bytes"]
        rows += [
            Row(f"GPU, {case.title}{kind(run)}: peak memory", run.result["gpu_bytes"] / plain, 1.0, "ratio", "lower")
            for run in own[1:]
        ]
    return rows


def kind(run: Run) -> str:
    """What is special about a contender of ours."""
    return run.contender.name.removeprefix("Metier")


def ratio(case: str, each: Sequence[float], peer: str) -> Row:
    """A row of speed against another contender."""
    return Row(case, median(each), 1.0, "ratio", "higher", peer, n=len(each), interval=(min(each), max(each)))


def section(found: Duel) -> str:
    """A case's part of the Markdown table."""
    case = found.case
    done = [run for run in found.runs if not run.failed and run.result]
    peaks = [turn["peak"] for run in done for turn in run.turns] or [float("nan")]
    lines = [
        f"{case.title}. {found.turns} turns of {2 if found.short else case.steps} optimizer steps of {case.examples} "
        f"examples after {case.warmup} of warm-up. Large products: {median(peaks) / 1e12:.0f} TFLOP/s in bf16. "
        f"{hardware()}.",
        "",
        "| contender | tokens/s | lowest to highest | peak of torch's memory | share of the bf16 peak |",
        "|---|---:|---:|---:|---:|",
    ]
    speeds = {run.contender.name: [run.speed(turn) for turn in range(len(run.turns))] for run in done}
    for run in sorted(done, key=lambda run: -median(speeds[run.contender.name])):
        own = speeds[run.contender.name]
        used = f"{median(map(run.utilisation, range(len(run.turns)))):.0%}" if "flops" in run.result else ""
        lines.append(
            f"| {run.contender.name} | {median(own):,.0f} | {min(own):,.0f} to {max(own):,.0f} "
            f"| {run.result['gpu_bytes'] / 1e9:.1f} GB | {used} |"
        )
    lines += ["", "Versions and settings:", ""]
    for run in done:
        versions = ", ".join(f"{name} {number}" for name, number in run.result["versions"].items())
        lines.append(f"- {run.contender.name}: {versions}; `{json.dumps(run.result['settings'])}`")
    lines += [
        f"- {run.contender.name}: failed ({run.failed.splitlines()[-1][:120]})" for run in found.runs if run.failed
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
