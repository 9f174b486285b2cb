"""How fast Metier trains beside other tools: `python -m benchmarks.training [sft6 sft22 gpt2 ...]`.

Every contender gets the same token ids (`benchmarks.work`) and runs in its own environment (made by
`benchmarks.peers.install`) and its own process. A round is each contender once, so that a disturbance meets all; a
ratio is taken within a round, and the median of the rounds is reported with their lowest and highest. A long round has
several sittings, and its first contender runs in each: the others' speed is taken beside its own there. The speed of
large matrix products is measured in every sitting as well. Tokens are the examples' own: padding and repeated work do
not count. A contender that other processes disturbed runs once more.

With `--sittings N` a call ends after so many (exit code 75 where more are to come), and the next goes on; one with more
`--rounds` goes on behind what is complete.

Figures with their bars go to `benchmarks/results/training.json`, all contenders to `benchmarks/results/training.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import work
from benchmarks.peers import contenders as by
from benchmarks.peers.contenders import Contender
from benchmarks.rows import RESULTS, Row, hardware, write
from benchmarks.sittings import Kept, Others, Sitting

HERE = Path(__file__).parent
THREADS = 2
ROUNDS = 2
TRIES, CALM = 1, 0.25
"""How often a contender is run where other processes take more than that share of the cores' time."""
LEFT: int | None = None
"""How many more sittings this call may hold."""
LORA = {"lora": {"r": 16, "alpha": 32, "targets": "all-linear"}}
LORA_GPT2 = {"lora": {"r": 16, "alpha": 32, "targets": ["c_attn"]}}
ENVIRONMENT = {
    # the same for all: threads wait as Metier's command line has it, and nothing looks for a network
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "40000",
    "OMP_NUM_THREADS": str(THREADS),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
ALONE = 0.8
"""Below that share of the threads' time a contender did not have the cores to itself, and the table says so."""
PEAK = """
import json, sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
found = {}
for name in ("float32", "bfloat16"):
    a, b = (torch.randn(*shape).to(getattr(torch, name)) for shape in ((1024, 2048), (5632, 2048)))
    times = []
    for _ in range(25):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        times.append(time.perf_counter() - start)
    found[name] = 2 * 1024 * 2048 * 5632 / sorted(times)[len(times) // 2]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Case:
    """One comparison. data, model: names in `benchmarks.work`. sittings: who runs at one go, the first in each of them.
    examples: what an optimizer step reads. steps: timed. warmup: steps before. epochs: how often the rows are read in
    all.
    """

    name: str
    title: str
    model: str
    data: str
    method: Any
    sittings: tuple[tuple[Contender, ...], ...]
    examples: int = 16
    steps: int = 1
    warmup: int = 1
    epochs: int = 1

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """All that take part, each once."""
        return tuple({c.name: c for sitting in self.sittings for c in sitting}.values())


@dataclass
class Measured:
    """What the rounds of a case gave. rounds: of each its sittings."""

    case: Case
    rounds: list[list[Sitting]]

    def sat(self, contender: Contender) -> list[list[Sitting]]:
        """The sittings in which it ran, a round each."""
        return [[sitting for sitting in one if contender.name in sitting.results] for one in self.rounds]

    def results(self, contender: Contender) -> list[dict[str, Any]]:
        """All that its runs gave."""
        return [sitting.results[contender.name] for one in self.sat(contender) for sitting in one]

    def speeds(self, contender: Contender) -> list[float]:
        """Useful tokens a second, a round each."""
        return [median(sitting.speed(contender.name) for sitting in one) for one in self.sat(contender)]

    def speed(self, contender: Contender) -> float:
        """The median of its rounds."""
        return median(self.speeds(contender))

    def memory(self, contender: Contender) -> float:
        """Peak resident bytes, the median of its runs."""
        return float(median(r["peak_rss_bytes"] for r in self.results(contender)))

    def cores(self, contender: Contender) -> float:
        """How many cores it was given, on average."""
        return float(median(r["cpu_seconds"] / r["seconds"] for r in self.results(contender)))

    def utilisations(self, contender: Contender) -> list[float]:
        """Arithmetic that its work needs over what large bf16 products reach in the same time, a round each."""
        name = contender.name
        return [
            median(s.results[name]["flops"] / s.results[name]["seconds"] / s.peaks["bfloat16"] for s in one)
            for one in self.sat(contender)
        ]

    def ratios(self, contender: Contender, other: Contender) -> list[float]:
        """Its speed over another's, a round each: each beside the first contender's in the same sitting."""
        first = self.case.contenders[0].name
        both = [
            [median(s.speed(c.name) / s.speed(first) for s in one) for one in self.sat(c)] for c in (contender, other)
        ]
        return [a / b for a, b in zip(*both, strict=True)]

    def fastest_peer(self) -> Contender:
        """By the median; whichever configuration that is."""
        return max((c for c in self.case.contenders if c.is_peer), key=self.speed)

    def leanest_other(self) -> Contender:
        """Which of the others takes the least memory, the notebook among them."""
        return min((c for c in self.case.contenders if c.run != "metier"), key=self.memory)


SFT6 = Case(
    "sft6",
    "LoRA on short questions and answers, TinyLlama's shape with 6 layers",
    "tinyllama6",
    "sft",
    LORA,
    (
        (by.METIER, by.LLAMAFACTORY_PACKED, by.METIER_INT8, by.LLAMAFACTORY),
        (by.METIER, by.TRL_PACKED, by.TRL, by.LITGPT, by.NOTEBOOK),
    ),
    steps=3,
)
SFT22 = Case(
    "sft22",
    "LoRA on short questions and answers, TinyLlama's shape with all 22 layers",
    "tinyllama22",
    "sft",
    LORA,
    (
        (by.METIER, by.LLAMAFACTORY_PACKED, by.METIER_INT8, by.LLAMAFACTORY),
        (by.METIER, by.NOTEBOOK),
        (by.METIER, by.TRL_PACKED),
    ),
)
GPT2 = Case(
    "gpt2",
    "LoRA on c_attn, GPT-2's shape, rows of 512 tokens",
    "gpt2",
    "gpt2",
    LORA_GPT2,
    ((by.METIER, by.TRL, by.TRL_DEFAULTS),),
    steps=2,
)
FROZEN = Case(
    "frozen",
    "Last blocks only, TinyLlama's shape, rows of 512 tokens, the second epoch",
    "tinyllama22",
    "causal512",
    "full",
    (
        (by.METIER_LAST_4_CACHED, by.METIER_LAST_4, by.METIER_FULL),
        (
            by.METIER_LAST_4_CACHED,
            by.METIER_LAST_2_CACHED,
            by.METIER_LAST_2,
            by.METIER_LORA_4_CACHED,
            by.METIER_LORA_4,
        ),
    ),
    examples=16,
    epochs=2,
)
SHARED = Case(
    "shared",
    "Prompts shared or not, LoRA, TinyLlama's shape with 6 layers",
    "tinyllama6",
    "sft",
    LORA,
    ((by.METIER, by.METIER_UNSHARED),),
    steps=4,
)
SHARED22 = Case(
    "shared22",
    "Prompts shared or not, LoRA, TinyLlama's shape with all 22 layers",
    "tinyllama22",
    "sft",
    LORA,
    ((by.METIER, by.METIER_UNSHARED),),
    steps=2,
)
QUANTIZED = Case(
    "quantized",
    "What each kind of base costs, LoRA, TinyLlama's shape with all 22 layers, micro-steps of 256 tokens",
    "tinyllama22",
    "sft",
    LORA,
    ((by.METIER_SMALL, by.METIER_SMALL_INT8, by.METIER_8BIT, by.METIER_4BIT),),
    examples=4,
)


def sft(case: Case) -> list[Row]:
    """Metier's two bases beside the peers and the notebook, its memory beside theirs, and its share of the peak."""
    found = run(case)
    peer, lean = found.fastest_peer(), found.leanest_other()
    memory = found.memory(by.METIER) / found.memory(lean)
    return [
        ratio(f"{case.title}: tokens a second", found, by.METIER, peer, 2.3),
        ratio(f"{case.title}, int8 base: tokens a second", found, by.METIER_INT8, peer, 3.0),
        ratio(f"{case.title}: tokens a second beside the notebook", found, by.METIER, by.NOTEBOOK, 20.0),
        share(f"{case.title}: utilisation of the bf16 GEMM peak", found.utilisations(by.METIER), 0.6),
        Row(f"{case.title}: peak memory", memory, 1.0, "ratio", "lower", lean.name, n=len(found.rounds)),
    ]


def gpt2(case: Case) -> list[Row]:
    """Metier beside TRL's faster configuration."""
    found = run(case)
    return [ratio(f"{case.title}: tokens a second", found, by.METIER, found.fastest_peer(), 2.0)]


def frozen(case: Case) -> list[Row]:
    """What the cache gives to the epochs after the first, and what it all gives beside full fine-tuning."""
    found = run(case)
    losses = [found.results(c)[-1]["losses"] for c in (by.METIER_LAST_4_CACHED, by.METIER_LAST_4)]
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    title = "last 4 of 22 blocks and head, TinyLlama's shape"
    return [
        ratio(f"{title}: later epochs, cached", found, by.METIER_LAST_4_CACHED, by.METIER_LAST_4, 1.9),
        ratio(f"{title}: later epochs, cached, beside full", found, by.METIER_LAST_4_CACHED, by.METIER_FULL, 4.0),
        Row(f"{title}: losses with and without the cache, difference", apart, 1e-3, "nats", "lower"),
    ]


def shared(case: Case) -> list[Row]:
    """How much of the saving in tokens appears as a saving in time."""
    found = run(case)
    last = found.results(by.METIER)[-1]
    part, useful = last["settings"], last["useful_tokens"]
    saved = part["spared_tokens"] / useful
    each = [(1 - 1 / r) / saved for r in found.ratios(by.METIER, by.METIER_UNSHARED)]
    print(f"shared: {saved:.1%} of the tokens are spared")
    return [share(f"{case.title}: saving in time over saving in tokens", each, 0.9)]


def quantized(case: Case) -> list[Row]:
    """Memory of the quantised bases, all of the process."""
    found = run(case, rounds=1)
    kinds = {"8-bit": by.METIER_8BIT, "4-bit": by.METIER_4BIT}
    return [
        Row(f"LoRA on a {kind} base, TinyLlama's shape: peak memory", found.memory(c) / 1e9, 3.0, "GB", "lower")
        for kind, c in kinds.items()
    ]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "sft6": lambda: sft(SFT6),
    "sft22": lambda: sft(SFT22),
    "gpt2": lambda: gpt2(GPT2),
    "frozen": lambda: frozen(FROZEN),
    "shared": lambda: shared(SHARED),
    "shared22": lambda: shared(SHARED22),
    "quantized": lambda: quantized(QUANTIZED),
}


def main() -> None:
    global ROUNDS, LEFT
    parser = argparse.ArgumentParser(description="How fast Metier trains beside other tools.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all, or some of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each contender runs")
    parser.add_argument("--sittings", type=int, help="stop after so many; the next call goes on")
    parser.add_argument("--fresh", action="store_true", help="begin anew where an earlier call stopped")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (there are: {', '.join(PARTS)})")
    ROUNDS, LEFT = given.rounds, given.sittings
    if given.fresh:
        for name in given.parts or list(PARTS):
            Kept(name).forget()
    for name in given.parts or list(PARTS):
        write("training", f"python -m benchmarks.training {name}", PARTS[name]())


def run(case: Case, rounds: int | None = None) -> Measured:
    """All rounds of a case; its section of the table is written when they are through.

    Raises SystemExit(75) where no more sittings may be held in this call.
    """
    global LEFT
    check_environments(case.contenders)
    kept = Kept(case.name)
    rounds = ROUNDS if rounds is None else rounds
    for number, seats in [(n, seats) for n in range(rounds) for seats in case.sittings][len(kept.parts) :]:
        if LEFT == 0:
            print(f"{case.name}: {len(kept.parts)} of {rounds * len(case.sittings)} sittings are through")
            raise SystemExit(75)
        kept.add(asdict(sit(case, seats, f"{case.name} {number + 1}/{rounds}")))
        LEFT = None if LEFT is None else LEFT - 1
    width, sittings = len(case.sittings), [Sitting(**part) for part in kept.parts]
    found = Measured(case, [sittings[n * width : (n + 1) * width] for n in range(rounds)])
    write_section(case.name, section(found))
    if LEFT is None:
        kept.forget()
    return found


def sit(case: Case, seats: Sequence[Contender], label: str) -> Sitting:
    """Each of these once, one after the other."""
    sitting = Sitting(gemm_peaks())
    for contender in seats:
        sitting.results[contender.name] = undisturbed(case, contender)
        speed = sitting.speed(contender.name)
        memory = sitting.results[contender.name]["peak_rss_bytes"] / 1e9
        print(f"{label} {contender.name}: {speed:.1f} tokens/s, {memory:.2f} GB", flush=True)
    return sitting


def undisturbed(case: Case, contender: Contender) -> dict[str, Any]:
    """A contender's run; again where other processes took more than a little of the cores, and the calmest counts."""
    tries: list[dict[str, Any]] = []
    while len(tries) < TRIES and (not tries or tries[-1]["others"] > CALM):
        watch = Others()
        tries.append(run_one(case, contender))
        tries[-1]["others"] = watch.share()
        if tries[-1]["others"] > CALM:
            print(f"{contender.name}: other processes took {tries[-1]['others']:.0%} of the cores", flush=True)
    return min(tries, key=lambda result: float(result["others"]))


def check_environments(contenders: Iterable[Contender]) -> None:
    """Stop before anything is measured where a peer is not installed."""
    missing = sorted({str(c.environment) for c in contenders if not Path(c.python).exists()})
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(missing)} (python -m benchmarks.peers.install {' '.join(missing)})"
        )


def run_one(case: Case, contender: Contender) -> dict[str, Any]:
    """One contender's run in a process of its own. Raises SystemExit with the end of what it said where it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        job = {
            "model": str(work.model(case.model)),
            "data": str(work.data(case.data)),
            "method": contender.method or case.method,
            "examples_per_step": contender.examples or case.examples,
            "steps": case.steps,
            "warmup": case.warmup,
            "epochs": case.epochs,
            "seed": 0,
            "threads": THREADS,
            "settings": contender.settings,
            "scratch": f"{scratch}/run",
        }
        Path(scratch, "run").mkdir()
        script = HERE / f"peers/run_{contender.run}.py"
        done = subprocess.run(
            [contender.python, str(script), json.dumps(job)],
            env=os.environ | ENVIRONMENT | {"HF_HOME": f"{scratch}/hf"},
            cwd=scratch,
            capture_output=True,
            text=True,
        )
    if done.returncode or not done.stdout:
        raise SystemExit(f"{contender.name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def gemm_peaks() -> dict[str, float]:
    """Operations a second of a 1024 x 2048 x 5632 product in float32 and in bfloat16: the median of 25."""
    command = [sys.executable, "-c", PEAK, str(THREADS)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ratio(case: str, found: Measured, contender: Contender, other: Contender, bar: float) -> Row:
    """A row of speed against another contender."""
    each = found.ratios(contender, other)
    return Row(case, median(each), bar, "ratio", "higher", other.name, n=len(each), interval=(min(each), max(each)))


def share(case: str, each: Sequence[float], bar: float) -> Row:
    """A row of a share of something, a figure a round."""
    return Row(case, median(each), bar, "share", "higher", n=len(each), interval=(min(each), max(each)))


def section(found: Measured) -> str:
    """A case's part of the Markdown table."""
    case = found.case
    peaks = [sitting.peaks for one in found.rounds for sitting in one]
    peak = {name: median(p[name] for p in peaks) / 1e9 for name in peaks[0]}
    lines = [
        f"{case.title}. {len(found.rounds)} rounds, {case.steps} optimizer steps of {case.examples} examples timed "
        f"after {case.warmup} of warm-up. Large products: {peak['float32']:.0f} GFLOP/s in float32, "
        f"{peak['bfloat16']:.0f} in bf16. {hardware()}.",
        "",
        "| contender | tokens/s | lowest to highest | peak memory | share of the bf16 peak |",
        "|---|---:|---:|---:|---:|",
    ]
    for contender in sorted(case.contenders, key=found.speed, reverse=True):
        speeds = found.speeds(contender)
        known = "flops" in found.results(contender)[0]
        used = f"{median(found.utilisations(contender)):.0%}" if known else ""
        mark = "" if found.cores(contender) >= ALONE * THREADS else " (not alone on the machine)"
        lines.append(
            f"| {contender.name}{mark} | {found.speed(contender):.1f} | {min(speeds):.1f} to {max(speeds):.1f} "
            f"| {found.memory(contender) / 1e9:.2f} GB | {used} |"
        )
    lines += ["", "Versions and settings:", ""]
    for contender in case.contenders:
        result = found.results(contender)[-1]
        versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        few = f"; {contender.examples} examples a step" if contender.examples else ""
        lines.append(f"- {contender.name}: {versions}; `{json.dumps(result['settings'])}`{few}")
    return "\n".join(lines) + "\n"


def write_section(name: str, text: str) -> None:
    """Replace a case's section of the table, keep the others."""
    path = RESULTS / "training.md"
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in old}
    kept[name] = text.strip()
    title = "# Training speed, all contenders\n\nWritten by `python -m benchmarks.training`.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f"\n## {key}\n\n{value}\n" for key, value in kept.items())
    path.write_text(title + body, encoding="utf-8")


if __name__ == "__main__":
    main()
