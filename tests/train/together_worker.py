"""One of several processes that run the loop: `python together_worker.py FOLDER`, with what torch.distributed's env://
needs. Goes through CASES in order and leaves what came out in FOLDER/<case>.json, or <case>-<rank>.json.
"""

import copy
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from test_loop import StopAt, adapted, fingerprint, pieces_of, run  # noqa: E402
from test_resume import cache, frozen  # noqa: E402

import fakes  # noqa: E402
from metier.core.errors import Interrupted  # noqa: E402
from metier.core.events import Events  # noqa: E402
from metier.core.team import Team  # noqa: E402
from metier.train.checkpoint import Checkpoints  # noqa: E402
from metier.train.forward import Forward  # noqa: E402
from metier.train.precision import Precision, choose  # noqa: E402
from metier.train.sharded import shard, whole  # noqa: E402
from metier.train.together import World  # noqa: E402

GENTLE = {"learning_rate": 1e-3}
DATA = {"pieces": pieces_of(24), "replay": pieces_of(8, seed=5), "replay_share": 0.2, "block_size": 64}
CUT = {"batches": {**DATA, "batch_size": 4, "accumulation": 1}}


def full(folder: Path, world: World) -> dict[str, Any]:
    return told(run, fakes.tiny("llama"), folder, world=world, **GENTLE)


def cut(folder: Path, world: World) -> dict[str, Any]:
    """One micro-step, which each process takes a part of."""
    return told(run, fakes.tiny("llama"), folder, world=parted(world), **GENTLE, **CUT)


def lora(folder: Path, world: World) -> dict[str, Any]:
    """With dropout, and the best weights kept."""
    return told(run, adapted(), folder, world=world, keep_best=True, **GENTLE)


def freeze(folder: Path, world: World) -> dict[str, Any]:
    """GPT-2 with dropout; what the lower blocks make is kept, by each process of its own share."""
    return told(run, frozen(), folder, world=world, cache=cache(None), epochs=3, learning_rate=1e-3)


def muon(folder: Path, world: World) -> dict[str, Any]:
    """In small micro-steps, of which there is often no multiple of the processes."""
    batches = {**DATA, "batch_size": 2, "accumulation": 2, "micro_tokens": 48}
    more = {"optimizer": "muon", "learning_rate": 1e-3, "batches": batches}
    return told(run, fakes.tiny("llama"), folder, world=parted(world), **more)


def stopped(folder: Path, world: World) -> dict[str, Any]:
    """One process alone is asked to stop; all do."""
    stop = StopAt(4 if world.rank == world.size - 1 else 10**9)
    try:
        run(adapted(), folder, world=world, check_stop=stop, **GENTLE)
    except Interrupted:
        return {"stopped": True}
    return {"stopped": False}


def resumed(folder: Path, world: World) -> dict[str, Any]:
    """From the checkpoint of `stopped`."""
    return told(run, adapted(), folder.with_name("stopped"), world=world, **GENTLE)


def switched(folder: Path, world: World) -> dict[str, Any]:
    """From a checkpoint that another number of processes left in `other`."""
    return told(run, adapted(), folder.with_name("other"), world=world, **GENTLE)


def scarce(folder: Path, world: World) -> dict[str, Any]:
    """Memory runs out in the last process alone, in its first micro-step."""
    left = [1 if world.rank == world.size - 1 else 0]
    plain = Forward.backward

    def backward(self: Forward, micro: Any, **others: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise MemoryError("too little")
        return plain(self, micro, **others)

    Forward.backward = backward  # type: ignore[method-assign]
    heard: list[str] = []
    events = Events("t", listeners=[lambda event: heard.append(event.get("text", ""))])
    try:
        found = told(run, fakes.tiny("llama"), folder, world=world, events=events, **GENTLE)
    finally:
        Forward.backward = plain  # type: ignore[method-assign]
    return {**found, "warned": [text for text in heard if "memory ran out" in text]}


def often(folder: Path, world: World) -> dict[str, Any]:
    """A checkpoint after every step."""
    every = Checkpoints(folder, every_seconds=0)
    return told(run, fakes.tiny("llama"), folder, world=parted(world), checkpoints=every, **CUT)


def split(folder: Path, world: World) -> dict[str, Any]:
    """As `full`, but that the processes hold the model between them."""
    return held(fakes.tiny("llama"), folder, world)


def untied(folder: Path, world: World) -> dict[str, Any]:
    """With a head of its own, blocks computed again, and the best weights kept."""
    return held(fakes.tiny_llama(tied=False), folder, world, checkpointing=True, keep_best=True)


def gpt2(folder: Path, world: World) -> dict[str, Any]:
    """GPT-2 without dropout, in parts of micro-steps of which there are too few for all."""
    plain = fakes.tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return held(plain, folder, world, max_steps=3, batches={**DATA, "batch_size": 1, "accumulation": 1})


def bf16(folder: Path, world: World) -> dict[str, Any]:
    """Mixed precision: gathered in bf16, held in float32."""
    return held(fakes.tiny("llama"), folder, world, precision=Precision("bf16", "asked for"))


def split_stopped(folder: Path, world: World) -> dict[str, Any]:
    """A checkpoint of shards."""
    stop = StopAt(4 if world.rank == 0 else 10**9)
    try:
        held(fakes.tiny("llama"), folder, world, check_stop=stop)
    except Interrupted:
        return {"files": sorted(path.name for path in max(folder.glob("checkpoint-*")).iterdir())}
    return {}


def split_resumed(folder: Path, world: World) -> dict[str, Any]:
    """From the checkpoint of `split_stopped`."""
    return held(fakes.tiny("llama"), folder.with_name("split_stopped"), world)


def split_switched(folder: Path, world: World) -> dict[str, Any]:
    """From a checkpoint that another number of processes left in `split_other`."""
    return held(fakes.tiny("llama"), folder.with_name("split_other"), world)


def held(model: Any, folder: Path, world: World, **changes: Any) -> dict[str, Any]:
    """Trained with shards, where there is more than one process."""
    precision = changes.pop("precision", choose("fp32", width=32))
    world = dataclasses.replace(world, sharded=not world.alone, whole=False)
    full = copy.deepcopy(model)
    if not world.alone:
        shard(model, precision)
    more = {**GENTLE, "precision": precision, "sharded": not world.alone, **changes}
    found = told(run, model, folder, world=world, **more) if world.alone else {}
    if not found:
        state = run(model, folder, world=world, **more)
        whole(model, full)
        found = {
            "losses": state.losses,
            "dev": state.dev_losses,
            "step": state.step,
            "sum": float(sum(p.detach().double().abs().sum() for p in full.parameters())),
            "held": sum(p.to_local().numel() for p in model.parameters()),
            "all": sum(p.numel() for p in model.parameters()),
        }
    return found


def parted(world: World) -> World:
    """With micro-steps cut for the processes."""
    return dataclasses.replace(world, whole=False)


CASES: list[Callable[[Path, World], dict[str, Any]]] = [
    full,
    cut,
    lora,
    freeze,
    muon,
    stopped,
    resumed,
    switched,
    scarce,
    often,
    split,
    untied,
    gpt2,
    bf16,
    split_stopped,
    split_resumed,
    split_switched,
]


def told(do: Callable[..., Any], model: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    state = do(model, folder, **changes)
    return {
        "losses": state.losses,
        "dev": state.dev_losses,
        "step": state.step,
        "tokens": state.tokens,
        "best": state.best_step,
        "weights": fingerprint(model),
        "sum": float(sum(p.detach().double().abs().sum() for p in model.parameters())),
        "limit": state.micro_tokens,
        "kept": sorted(path.name for path in folder.glob("checkpoint-*")),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=240))
    world = World.of(Team(rank, size, size), accumulation=size)
    for case in CASES:
        found = case(folder / case.__name__, world)
        name = f"{case.__name__}.json" if rank == 0 else f"{case.__name__}-{rank}.json"
        (folder / name).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
