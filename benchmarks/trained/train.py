"""Train a model of svdq_trt.models on the scenes, from a seed, for a number of steps or seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trained import scenes
from trained.tasks import Task, noised

WARM = 100  # steps until the learning rate is reached
EAGER = 3  # steps before a capture, for what a capture cannot do, such as making tables and the optimizer's state
#: Ways to run a step on a GPU, from fast to safe: its arithmetic, and whether it is one CUDA graph or single kernels.
MODES = ("bf16-graph", "tf32-graph", "tf32", "f32")
PACE = 10  # steps between looks at the clock: the GPU lags behind the host


def train(
    task: Task,
    out: Path,
    *,
    seconds: float,
    steps: int,
    batch: int,
    lr: float,
    device: str,
    mode: str = MODES[0],
    running: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Train and write `out`, a diffusers-style .safetensors in the act dtype; returns steps, seconds and the loss.

    The loss is that of the last tenth of the steps. Stops after `steps` or `seconds`; the learning rate falls to zero
    with whichever ends first. `mode` is one of MODES; a CPU knows only the last one. `running` is called once, when
    the first steps have worked.
    """
    spec = task.spec
    prepare(device, mode)
    module = spec.build(torch.float32, device).train().requires_grad_(True)
    flat = spec.wrap(module)

    def loss() -> Tensor:
        labels = torch.randint(scenes.CLASSES, (batch,), device=device)
        x, t, target = noised(scenes.draw(labels))
        return (task.output(flat(*task.inputs(x, t, labels))).float() - target).square().mean()

    record = fit(
        task.name,
        list(module.parameters()),
        loss,
        seconds=seconds,
        steps=steps,
        lr=lr,
        device=device,
        mode=mode,
        running=running,
    )
    weights = {name: p.detach().to(spec.torch_dtype).cpu().contiguous() for name, p in module.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out)
    return record


def prepare(device: str, mode: str) -> None:
    """Prepare this process to train, before anything is made on the device: seed, arithmetic, stream."""
    torch.manual_seed(0)
    if device == "cuda":  # not the default stream, which cannot be captured
        torch.cuda.set_stream(torch.cuda.Stream())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "f32"


def fit(
    name: str,
    parameters: list[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    seconds: float,
    steps: int,
    lr: float,
    device: str,
    mode: str = MODES[0],
    running: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Minimize `loss` over f32 parameters; returns steps, seconds and the loss.

    Args:
        loss: draws a batch and returns its loss, without waiting for the device: a CUDA graph holds it.
        lr: after WARM steps; it falls to zero with `steps` or `seconds`, whichever ends first.
        mode, running: as for `train`.
    """
    begin, on_gpu = time.perf_counter(), device == "cuda"
    dtype = torch.bfloat16 if on_gpu and mode == "bf16-graph" else torch.float32
    step, rate, last = _step(parameters, loss, lr, device, dtype)
    losses: list[float] = []
    done, count = 0.0, 0
    while done < 1:
        rate.fill_(lr * min(1.0, (count + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * done)))
        step()
        count += 1
        if count == EAGER:
            if on_gpu and mode.endswith("graph"):
                step = _captured(step)
            running()
        if count % PACE == 0 or count == steps:
            losses.append(last.item())  # waits for the GPU
        done = max(count / steps, (time.perf_counter() - begin) / seconds)
        if count % 500 == 0:
            print(f"{name}: step {count}, loss {losses[-1]:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    tail = losses[-max(len(losses) // 10, 1) :]
    mean = sum(tail) / len(tail) if tail else math.nan
    took = time.perf_counter() - begin
    print(f"{name}: {count} steps in {took:.0f} s, loss {mean:.4f}", flush=True)
    return {"steps": count, "seconds": took, "loss": mean}


def _step(
    parameters: list[nn.Parameter], loss: Callable[[], Tensor], lr: float, device: str, dtype: torch.dtype
) -> tuple[Callable[[], None], Tensor, Tensor]:
    """One optimizer step as a function, the learning rate it reads, and the loss it leaves."""
    rate, last = torch.tensor(lr, device=device), torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(
        parameters, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=device == "cuda"
    )

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        last.copy_(value.detach())

    return step, rate, last


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; it is recorded, not run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay
