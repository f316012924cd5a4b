"""Train a model of svdq_trt.models on the scenes, from a seed, for a number of steps or seconds."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trained import scenes

WARM = 100


def train(task: Any, out: Path, *, seconds: float, steps: int, batch: int, lr: float, seed: int, device: str) -> None:
    """Write `out` (a diffusers-style .safetensors in the act dtype) with the averaged weights.

    Stops after `steps`, or when `seconds` are over; the learning rate falls with whichever ends first.
    """
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    spec = task.spec
    module = spec.build(torch.float32, device).train().requires_grad_(True)
    flat = spec.wrap(module)
    average = copy.deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01, fused=device == "cuda")
    rng = torch.Generator(device=device).manual_seed(seed)
    begin, losses = time.perf_counter(), []
    for step in range(steps):
        done = max(step / steps, (time.perf_counter() - begin) / seconds)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARM) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        labels = torch.randint(scenes.CLASSES, (batch,), generator=rng, device=device)
        x0 = scenes.draw(labels, rng)
        noise = torch.randn(x0.shape, generator=rng, device=device)
        x, t, target = task.noised(x0, noise, rng)
        with torch.autocast(device, torch.bfloat16):
            y = task.output(flat(*task.inputs(x, t, labels)))
        loss = (y.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        keep = min(0.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - keep)
        if step % 50 == 0:
            losses.append(loss.item())
        if step % 500 == 0:
            print(f"{task.name}: step {step}, loss {losses[-1]:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"{task.name}: {step} steps, loss {sum(losses[-4:]) / len(losses[-4:]):.4f}", flush=True)
    weights = {name: p.detach().to(spec.torch_dtype).cpu().contiguous() for name, p in average.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out)
