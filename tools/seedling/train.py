"""Trains the seedling on a packed token file: bf16 autocast, Muon for the hidden matrices, AdamW for the rest, WSD
schedule.

Resumable (`state.pt`), and every few minutes a complete transformers folder is written aside and renamed to `latest`.
Two cores give about 8,000 tokens/s with `torch.compile` at 256-token blocks; eager attention is faster than the fused
CPU kernel there. The last fifth runs the learning rate down; its blocks are twice as long, so that positions up to 512
are seen.
"""

from __future__ import annotations

import json
import math
import shutil
import time
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


def train(data: Path, tokenizer_dir: Path, out: Path, plan: Plan, vocab_size: int) -> dict[str, Any]:
    """Runs `plan` over the ids in `data`; returns the measured numbers. Goes on from `out/state.pt` where it stands."""
    torch.manual_seed(plan.seed)
    model = make_model(vocab_size)
    opts = optimizers(model, plan)
    ids = np.memmap(data, dtype=np.uint16, mode="r")
    if len(ids) < plan.tokens:
        raise ValueError(
            f"{data} holds {len(ids):,} tokens, the plan asks for {plan.tokens:,}: generate more or lower tokens"
        )
    seen = step = 0
    spent = 0.0
    state = out / "state.pt"
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        for opt, values in zip(opts, kept["opts"], strict=True):
            opt.load_state_dict(values)
        seen, step, spent = kept["seen"], kept["step"], kept["spent"]

    def loss_of(x: Tensor) -> Tensor:
        hidden = model.model(input_ids=x, use_cache=False).last_hidden_state  # [B, T, 256]
        logits = model.lm_head(hidden[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten())

    run = torch.compile(loss_of, dynamic=False) if plan.compile else loss_of
    log = (out / "log.jsonl").open("a")
    start = last_save = time.monotonic()
    begun, mean = seen, 0.0
    while seen < plan.tokens:
        share = rate(seen, step, plan)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = plan.lr * share
        block = plan.block * (2 if seen > (1 - plan.decay / 2) * plan.tokens else 1)
        n = plan.batch_tokens // block * block
        x = torch.from_numpy(ids[seen : seen + n].astype(np.int64)).view(-1, block)
        if x.numel() < n:
            break
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {step}: lower lr")
        mean = value if mean == 0 else 0.95 * mean + 0.05 * value
        seen, step = seen + n, step + 1
        now = time.monotonic()
        if step % 20 == 0:
            speed = (seen - begun) / (now - start)
            line = {
                "step": step,
                "tokens": seen,
                "loss": round(mean, 4),
                "lr": round(plan.lr * share, 6),
                "tok_s": round(speed),
                "eta_min": round((plan.tokens - seen) / speed / 60, 1),
            }
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(line, flush=True)
        if now - last_save > plan.save_s:
            save_model(model, tokenizer_dir, out / "latest")
            part = state.with_suffix(".part")
            torch.save(
                {
                    "model": model.state_dict(),
                    "opts": [o.state_dict() for o in opts],
                    "seen": seen,
                    "step": step,
                    "spent": spent + now - start,
                },
                part,
            )
            part.rename(state)
            last_save = now
    save_model(model, tokenizer_dir, out / "latest")
    return {
        "tokens": seen,
        "steps": step,
        "loss": mean,
        "seconds": spent + time.monotonic() - start,
        "plan": asdict(plan),
    }
