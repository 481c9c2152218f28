"""A decoder and a reward after the sampler: slices, tiles and blocks against the plain decode.

Run ``python benchmarks/loss_head.py``. Each memory reading has its own process. Timed runs
alternate between the ways in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from measured import apart, default_device, each_apart, in_turn, ratio, results, save
from torch import Tensor, nn

from chainograd import meter
from chainograd.adapters import in_slices

BATCH, LATENTS, TILE = 4, 32, 16
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 64, 64), "layers_per_block": 2, "norm_num_groups": 8,
    "sample_size": 4 * LATENTS,
}  # fmt: skip
# The way, what of diffusers is switched on, and the options of `in_slices`; None is a plain call.
WAYS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "plain": ("", None),
    "diffusers' slicing": ("slicing", None),
    "whole batch, frozen layers": ("", {"micro_batch": None}),
    "blocks": ("", {"micro_batch": None, "blocks": "auto"}),
    "one sample": ("", {}),
    "one sample, blocks": ("", {"blocks": "auto"}),
    "diffusers' tiling": ("tiling", None),
    "one sample, diffusers' tiling": ("tiling", {}),
    "one tile": ("tiling", {"micro_batch": None, "blocks": "decoder"}),
    "one tile of one sample": ("slicing, tiling", {"micro_batch": None, "blocks": "decoder"}),
}


class Head(nn.Module):
    """Decodes latents and scores the images."""

    def __init__(self, switched_on: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vae: Any = AutoencoderKL(**VAE)
        self.vae.encoder = None
        self.vae.tile_latent_min_size, self.vae.tile_sample_min_size = TILE, 4 * TILE
        if "slicing" in switched_on:
            self.vae.enable_slicing()
        if "tiling" in switched_on:
            self.vae.enable_tiling()
        self.score = nn.Sequential(
            nn.Conv2d(3, 32, 4, 4), nn.SiLU(), nn.Conv2d(32, 32, 4, 4), nn.SiLU(), nn.Flatten(),
            nn.Linear(32 * (LATENTS // 4) ** 2, 1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Return a score for each sample."""
        return self.score(self.vae.decode(z).sample)[:, 0]


def workload(way: str, device: str) -> Callable[[], None]:
    """Return a run: score four latents, under a loss over the whole batch, and run backward."""
    switched_on, options = WAYS[way]
    head = Head(switched_on).requires_grad_(False).eval().to(device)
    z = torch.randn(BATCH, 4, LATENTS, LATENTS, device=device, requires_grad=True)
    scores: Callable[[Tensor], Tensor] = head
    if options is not None:
        of_vae = {"blocks": [head.vae.decoder]} if options.get("blocks") == "decoder" else {}
        scores = in_slices(head, **{**options, **of_vae})

    def run() -> None:
        scored = scores(z)
        ((scored - scored.mean()) / scored.std()).pow(3).mean().backward()
        z.grad = None

    return run


def memory(way: str, device: str) -> dict[str, Any]:
    """Return the peak of a run, after a run that pays first-call costs."""
    run = workload(way, device)
    run()
    with meter(device) as reading:
        run()
    return {"way": way, "peak_bytes": reading.peak_bytes}


def timing(device: str, pairs: int = 5) -> dict[str, Any]:
    """Return seconds of alternating runs of every way, after one run of each."""
    return {"seconds": in_turn({way: workload(way, device) for way in WAYS}, pairs, device)}


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table; time ratios are medians of alternating runs."""
    peak = {row["way"]: row["peak_bytes"] for row in content["memory"]}
    seconds = content["timing"]["seconds"]
    lines = ["| way | MiB | memory | time |", "|---|---:|---:|---:|"]
    for way in WAYS:
        lines.append(
            f"| {way} | {peak[way] / 2**20:.1f} | {peak[way] / peak['plain']:.3f} "
            f"| {ratio(seconds, way, 'plain'):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device: str = options.device
    memories = each_apart(memory, [(way, device) for way in WAYS], device)
    out = options.out or results("loss_head", device)
    content = save(out, device, {"memory": memories, "timing": apart(timing, device)})
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
