"""Differences between two sets of pictures: PSNR, SSIM, and two distances in the features of a small classifier.

The feature distances stand in for LPIPS and FID: same formulas, with a network that knows the scenes instead of photos.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trained import scenes


class Features(nn.Module):
    """A classifier of scenes, whose stages are the features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 32, 64, 128)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=2, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
                nn.Conv2d(b, b, 3, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
            )
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], scenes.CLASSES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Each stage's output; the last entry is the logits."""
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return [*out, self.head(x.mean((2, 3)))]


def train_features(device: str, steps: int = 400, seed: int = 5) -> tuple[Features, float]:
    """Train a classifier; returns it and its accuracy on fresh scenes. Deterministic up to the device's arithmetic."""
    torch.manual_seed(seed)
    net = Features().to(device)
    rng = torch.Generator(device=device).manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        labels = torch.randint(scenes.CLASSES, (128,), generator=rng, device=device)
        x = scenes.draw(labels, rng)
        x = x + 0.2 * torch.rand(len(x), 1, 1, 1, device=device) * torch.randn_like(x)
        loss = F.cross_entropy(net(x)[-1], labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)
    labels = torch.randint(scenes.CLASSES, (1024,), generator=rng, device=device)
    return net, float((net(scenes.draw(labels, rng))[-1].argmax(1) == labels).float().mean())


def compare(net: Features, got: Tensor, want: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of pictures [B, 4, H, W] in [-1, 1] against those of the 16-bit model at the same seeds."""
    fg, fw = net(got), net(want)
    distance = sum(
        float((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean())
        for a, b in zip(fg[:-1], fw[:-1], strict=True)
    ) / (len(fg) - 1)
    return {
        **differences(got, want),
        "feature_distance": distance,
        "frechet": frechet(fg[-2].mean((2, 3)), fw[-2].mean((2, 3))),
        "right_class": float((fg[-1].argmax(1) == labels).float().mean()),
    }


def differences(got: Tensor, want: Tensor) -> dict[str, float]:
    """Mean PSNR in dB and SSIM of pictures [B, C, H, W] in [-1, 1]."""
    mse = (got - want).square().mean((1, 2, 3))
    psnr = 10 * torch.log10(4 / mse.clamp_min(1e-10))
    return {"psnr_db": float(psnr.mean()), "ssim": float(ssim(got, want))}


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004), 7 x 7 windows, dynamic range 2."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean = lambda t: F.avg_pool2d(t, 7, 1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of feature rows [B, C]."""
    a, b = a.double().cpu(), b.double().cpu()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(ca)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross)
