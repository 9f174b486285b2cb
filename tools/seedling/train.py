"""Trains the seedling on a packed token file: bf16 autocast, Muon for the hidden matrices, AdamW for the rest, WSD
schedule.

Resumable (`state.pt`), and every few minutes a complete transformers folder is written aside and renamed to `latest`.
Two cores give about 8,000 tokens/s with `torch.compile` at 256-token blocks; eager attention is faster than the fused
CPU kernel there. The last fifth runs the learning rate down; its blocks are twice as long, so that positions up to 512
are seen.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.seedling.tokenizer import BOS, EOS, PAD, SPECIAL

BOS_ID, EOS_ID, PAD_ID = (SPECIAL.index(x) for x in (BOS, EOS, PAD))


@dataclass(frozen=True)
class Plan:
    """What one training run does."""

    tokens: int = 17_000_000
    batch_tokens: int = 12288
    block: int = 256
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    decay: float = 0.22
    clip: float = 1.0
    seed: int = 0
    save_s: float = 300.0
    compile: bool = True


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """The seedling's shape: 6 layers, 256 wide, 4 heads on 2 key-value heads, tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, attn_implementation="eager",
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.model.layers.named_parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is h for h in hidden)]
    muon = torch.optim.Muon(
        hidden, lr=plan.lr, weight_decay=plan.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(seen: int, step: int, plan: Plan) -> float:
    """The share of the peak rate: linear warm-up, flat, then 1 - sqrt down to zero."""
    left = (plan.tokens - seen) / (plan.decay * plan.tokens)
    return min(1.0, (step + 1) / plan.warmup) * (1.0 if left >= 1 else 1.0 - math.sqrt(1.0 - max(left, 0.0)))


def save_model(model: LlamaForCausalLM, tokenizer_dir: Path, folder: Path) -> None:
    """A complete bf16 folder, written aside and renamed."""
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(tokenizer_dir, aside)
    clone = LlamaForCausalLM(model.config)
    clone.load_state_dict(model.state_dict())
    clone.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=64
    )
    clone.to(torch.bfloat16).save_pretrained(aside)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)


@dataclass
class _Progress:
    """Where a run stands; what `state.pt` keeps beside the weights."""

    seen: int = 0
    step: int = 0
    spent: float = 0.0


def _keep(state: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], at: _Progress) -> None:
    """Writes the resumable state aside and renames it."""
    part = state.with_suffix(".part")
    torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts], **asdict(at)}, part)
    part.rename(state)


def _resume(state: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer]) -> _Progress:
    if not state.exists():
        return _Progress()
    kept = torch.load(state, weights_only=True)
    model.load_state_dict(kept["model"])
    for opt, values in zip(opts, kept["opts"], strict=True):
        opt.load_state_dict(values)
    return _Progress(kept["seen"], kept["step"], kept["spent"])


def _loss_of(model: LlamaForCausalLM, compiled: bool) -> Callable[[Tensor], Tensor]:
    """The mean next-token loss of a block of ids [B, T]; the logits [B, T-1, V] are small because the vocabulary is."""

    def loss_of(x: Tensor) -> Tensor:
        hidden = model.model(input_ids=x, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten())

    return torch.compile(loss_of, dynamic=False) if compiled else loss_of


def _update(loss: Tensor, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], lr: float, clip: float) -> None:
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()
        opt.zero_grad(set_to_none=True)


def train(
    data: Path, tokenizer_dir: Path, out: Path, plan: Plan, vocab_size: int, begin_with: Path | None = None
) -> dict[str, Any]:
    """Runs `plan` over the ids in `data`; returns the measured numbers. Goes on from `out/state.pt` where it stands.

    With `begin_with` the weights of a finished folder are the beginning, under a new schedule.
    """
    torch.manual_seed(plan.seed)
    model = make_model(vocab_size)
    if begin_with is not None:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(begin_with, dtype=torch.float32).state_dict())
    opts = optimizers(model, plan)
    ids = np.memmap(data, dtype=np.uint16, mode="r")
    if len(ids) < plan.tokens:
        raise ValueError(f"{data} holds {len(ids):,} tokens, the plan asks for {plan.tokens:,}: generate more")
    at = _resume(out / "state.pt", model, opts)
    loss_of = _loss_of(model, plan.compile)
    clock = last_save = time.monotonic()
    begun, before, mean = at.seen, at.spent, 0.0
    while at.seen + plan.batch_tokens <= plan.tokens:
        lr = plan.lr * rate(at.seen, at.step, plan)
        block = plan.block * (2 if at.seen > (1 - plan.decay / 2) * plan.tokens else 1)
        n = plan.batch_tokens // block * block
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(torch.from_numpy(ids[at.seen : at.seen + n].astype(np.int64)).view(-1, block))
        _update(loss, model, opts, lr, plan.clip)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {at.step}: lower lr")
        mean = value if mean == 0 else 0.95 * mean + 0.05 * value
        now = time.monotonic()
        at = _Progress(at.seen + n, at.step + 1, before + now - clock)
        if at.step % 20 == 0:
            speed = (at.seen - begun) / (now - clock)
            eta = (plan.tokens - at.seen) / speed / 60
            print(
                f"step {at.step} tokens {at.seen:,} loss {mean:.4f} lr {lr:.6f} {speed:.0f} tok/s eta {eta:.1f} min",
                flush=True,
            )
        if now - last_save > plan.save_s:
            save_model(model, tokenizer_dir, out / "latest")
            _keep(out / "state.pt", model, opts, at)
            last_save = now
    save_model(model, tokenizer_dir, out / "latest")
    return {"tokens": at.seen, "steps": at.step, "loss": mean, "seconds": at.spent, "plan": asdict(plan)}
