"""What the runs of all contenders share: the job they are given, the clock they are timed by, the line they print.

A run is `python run_<peer>.py '<job as JSON>'`. It trains one optimizer step to warm up and then `steps` more, and what
lies between the ends of the first and of the last is timed: reading batches and logging included, loading, saving and
evaluating not. Whatever the peer itself prints goes to stderr; stdout gets one JSON line.

With `turns` several contenders are in memory side by side and train in turns, `steps` at a time: each says on stdout
that it is ready, waits for a line on stdin, and says how long its steps took.

Imports only the standard library, for it runs in every peer's environment; torch is taken from whoever has it.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

IGNORED = -100
"""The label of what is no target, in all of these tools."""
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Job:
    """model: a folder. data: JSON lines of input_ids and prompt_length. method: as in a recipe of Metier's; the peers
    know `{"lora": {"r", "alpha", "targets"}}` only. examples_per_step: what an optimizer step reads. steps: those that
    are timed; `warmup` more come before. settings: the contender's own. scratch: an empty folder for what is written.
    epochs: how often the rows are read in all these steps (peers: once). device: cpu or cuda. turns: how often `steps`
    are timed; 0: once, without waiting for anybody.
    """

    model: str
    data: str
    method: Any
    examples_per_step: int
    steps: int
    seed: int
    threads: int
    settings: dict[str, Any]
    scratch: str
    warmup: int = 1
    epochs: int = 1
    device: str = "cpu"
    turns: int = 0

    @property
    def all_steps(self) -> int:
        """The warm-up and what is timed."""
        return self.warmup + self.steps * max(1, self.turns)

    @property
    def lora(self) -> dict[str, Any]:
        """The adapter's settings."""
        return dict(self.method["lora"])

    @property
    def peft(self) -> dict[str, Any]:
        """The adapter, as PEFT's LoraConfig takes it."""
        lora = self.lora
        return {
            "r": lora["r"],
            "lora_alpha": lora["alpha"],
            "lora_dropout": 0.0,
            "target_modules": lora["targets"],
            "task_type": "CAUSAL_LM",
        }

    def trainer_settings(self, *, batch: int) -> dict[str, Any]:
        """The contender's own settings for a Trainer of transformers. batch: how many examples it takes by default."""
        settings = dict(self.settings)
        batch = settings.setdefault("per_device_train_batch_size", batch)
        settings.setdefault("gradient_accumulation_steps", self.examples_per_step // batch)
        return settings

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """What every Trainer of transformers is given besides."""
        return {
            "max_steps": self.all_steps,
            "learning_rate": LEARNING_RATE,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": self.device == "cpu",
            "seed": self.seed,
            "disable_tqdm": True,
        }

    def rows(self) -> list[dict[str, Any]]:
        """As many examples as the run reads, the same for every contender: input_ids and labels."""
        wanted = self.all_steps * self.examples_per_step // self.epochs
        lines = Path(self.data).read_text(encoding="utf-8").splitlines()[:wanted]
        if len(lines) < wanted:
            raise SystemExit(f"{self.data} holds {len(lines)} examples, and the run reads {wanted}")
        rows = [json.loads(line) for line in lines]
        return [
            {"input_ids": r["input_ids"], "labels": [IGNORED] * (n := r["prompt_length"]) + r["input_ids"][n:]}
            for r in rows
        ]


@dataclass
class Clock:
    """Counts the optimizer's steps and the tokens that are read in them, from the warm-up's end on.

    seconds: of the clock. cpu_seconds: of all cores together; far below seconds x threads, others had the cores.
    planned: the tokens of each step, where they are known before. gpu_bytes: the most that torch held on a GPU since
    the warm-up.
    """

    steps: int
    warmup: int = 1
    turns: int = 0
    planned: tuple[int, ...] = ()
    done: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    tokens: int = 0
    gpu_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    each: list[dict[str, float]] = field(default_factory=list)
    _started: tuple[float, float] = (0.0, 0.0)

    def saw(self, tokens: int) -> None:
        """So many real tokens are about to be trained on."""
        if self.turns or self.done < self.warmup + self.steps:
            self.tokens += tokens

    def tick(self, *_: Any) -> None:
        """An optimizer step is through."""
        if self.turns:
            self._turn()
            return
        now = time.perf_counter(), time.process_time()
        self.done += 1
        if self.done == self.warmup:
            self._started, self.tokens = now, 0
        if self.done == self.warmup + self.steps:
            self.seconds, self.cpu_seconds = (b - a for a, b in zip(self._started, now, strict=True))
            self.peak_rss_bytes = peak_rss_bytes()

    def _turn(self) -> None:
        """Count a step; where it ends a turn, say so and wait for the next."""
        from torch import cuda

        self.tokens += self.planned[self.done] if self.planned else 0
        self.done += 1
        after = self.done - self.warmup
        if after < 0 or after % self.steps:
            return
        cuda.synchronize()
        now = time.perf_counter()
        if after:
            self.each.append({"seconds": now - self._started[0], "tokens": self.tokens})
            self.gpu_bytes = cuda.max_memory_allocated()
            say(self.each[-1])
        else:
            cuda.reset_peak_memory_stats()
        if len(self.each) < self.turns:
            say({"ready": len(self.each)})
            sys.stdin.readline()
            self.tokens = 0
            self._started = time.perf_counter(), 0.0

    def watch_optimizers(self) -> None:
        """Tick whenever any of torch's optimizers has stepped."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(self.tick)

    def watch_trainer(self) -> None:
        """Count what transformers' Trainer, and whatever is derived from it, trains on."""
        from transformers import Trainer

        step = Trainer.training_step

        def counted(trainer: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            self.saw(real_tokens(inputs))
            return step(trainer, model, inputs, *rest, **more)

        Trainer.training_step = counted

    def train(self, trainer: Any) -> None:
        """Time a Trainer of transformers, and take its losses."""
        self.watch_optimizers()
        self.watch_trainer()
        trainer.train()
        self.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]


def real_tokens(inputs: Any) -> int:
    """Tokens of a batch that are no padding. A mask of four dimensions is 0 where a token may look."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return int(inputs["input_ids"].numel())
    if mask.dim() == 4:
        return int((mask[:, 0].diagonal(dim1=-2, dim2=-1) == 0).sum())
    return int((mask > 0).sum())


def peak_rss_bytes() -> int:
    """The most that this process ever held in memory (VmHWM)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def begin() -> tuple[Job, Clock]:
    """The job from the command line, and its clock. Sends what is printed from here on to stderr."""
    global _out
    _out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.argv[1]))
    import torch

    torch.set_num_threads(job.threads)
    return job, Clock(job.steps, job.warmup, job.turns)


def end(
    clock: Clock, *, packages: tuple[str, ...], settings: dict[str, Any], flops: float | list[float] | None = None
) -> None:
    """Print the result. settings: what it really ran with. flops: what the timed work, or that of each turn, needs."""
    if clock.done < clock.warmup + clock.steps * max(1, clock.turns):
        raise SystemExit(f"the run ended after {clock.done} optimizer steps of {clock.warmup + clock.steps}")
    result = {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "steps": clock.steps,
        "useful_tokens": clock.tokens,
        "peak_rss_bytes": clock.peak_rss_bytes,
        "versions": {name: number(name) for name in ("torch", *packages)},
        "settings": settings,
        "losses": clock.losses,
    }
    if clock.turns:
        result |= {"each": clock.each, "gpu_bytes": clock.gpu_bytes}
    if flops is not None:
        result["flops"] = flops
    say(result)


def number(package: str) -> str:
    """Its version, also where it is imported from a folder that was never installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return str(import_module(package).__version__)


def say(told: Any) -> None:
    """A line of JSON for whoever runs this."""
    print(json.dumps(told), file=_out, flush=True)


_out = sys.stdout
