"""Fine-tune a diffusion model on a reward, through all of its steps, with LoRA.

The shipped model draws digits in strokes of about three pixels. Here it learns strokes of 4.5
pixels. There are no pictures of such digits to train on, but the width of a stroke can be measured.
A stroke of width w and length l has area w l and, counting both sides, an outline of 2 l, so

    w = 2 area / outline = 2 ∫ ink / ∫ |∇ ink|,

which is differentiable and does not change if the ink gets darker. The reward is -(w - 4.5)^2. It
needs a maximum: if the reward were w itself, the same code would find within ten updates that a
black sheet has the broadest stroke.

The base network is frozen; peft adds a small trainable LoRA to each convolution and linear layer.
The gradient of the reward passes every sampling step. The chain keeps the graphs of as many steps
as fit into 128 MiB; the plain loop's graphs do not fit.

Top of the figure: digits before and after training, from noise that training did not use, one
column for each noise. Many digits keep their shape. Others become another digit where broad strokes
would merge, because the reward does not prevent it. Bottom: the widths and the reward of each
update's digits; a single blot can spoil the reward of a batch. The table also has a measure that
was not trained on: the share of ink that remains if one pixel is removed from every edge.

    python examples/plot_lora_reward.py            # minutes; the table has how many
    python examples/plot_lora_reward.py --quick    # seconds
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from digits import noise, sampler, sheet
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from record import Record
from torch import Tensor, nn

from chainograd import CheckpointedChain, meter

WIDTH = 4.5  # pixels


def ink_of(x: Tensor) -> Tensor:
    """Return images in [-1, 1] as ink in [0, 1]."""
    return (x.clamp(-1, 1) + 1) / 2


def stroke_width(x: Tensor) -> Tensor:
    """Return the mean width of each image's strokes in pixels, ``[N]``."""
    ink = ink_of(x)
    right = F.pad(ink, (0, 1))[..., 1:] - ink
    down = F.pad(ink, (0, 0, 0, 1))[..., 1:, :] - ink
    outline = (right**2 + down**2 + 1e-6).sqrt()  # the root's gradient is infinite at 0
    return 2 * ink.sum((1, 2, 3)) / outline.sum((1, 2, 3))


def reward_of(x: Tensor) -> Tensor:
    """Return each image's reward, ``[N]``."""
    return -(stroke_width(x) - WIDTH).square()


def surviving_ink(x: Tensor) -> Tensor:
    """Return the share of each image's ink that remains after an erosion by one pixel, ``[N]``."""
    eroded = -F.max_pool2d(-ink_of(x), 3, stride=1, padding=1)
    return eroded.sum((1, 2, 3)) / ink_of(x).sum((1, 2, 3))


def add_lora(unet: nn.Module, rank: int) -> nn.Module:
    """Return the frozen network with a trainable LoRA at every convolution and linear layer."""
    kinds = nn.Conv2d | nn.Conv1d | nn.Linear
    names = [name for name, layer in unet.named_modules() if isinstance(layer, kinds)]
    torch.manual_seed(0)
    return get_peft_model(unet, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))  # type: ignore[arg-type]


def peak_mib(chain: CheckpointedChain, x_T: Tensor) -> float:
    """Return the peak of one gradient in MiB."""
    with meter() as reading:
        stroke_width(chain(x_T)).mean().backward()
    return reading.peak_bytes / 2**20


def main() -> None:
    record = Record(__file__, __doc__)
    M, batch, updates = (3, 4, 4) if record.quick else (10, 8, 60)
    step = sampler(M)
    step.model = lora = add_lora(step.model, rank=4)
    chain = CheckpointedChain(step, M, plan="128MiB", frozen="auto")

    held_out = noise(16, seed=1)
    with torch.no_grad():
        before = chain(held_out)

    trained = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3 if record.quick else 5e-4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    widths = []
    for update in range(updates):
        x_0 = chain(noise(batch, seed=100 + update))
        reward = reward_of(x_0)
        optimizer.zero_grad()
        (-reward.mean()).backward()
        optimizer.step()
        decay.step()
        widths.append(stroke_width(x_0.detach()))

    with torch.no_grad():
        after = chain(held_out)
    x_T = noise(batch, seed=0)
    sheets = {"before": before, "after": after}
    measured = {
        "stroke width, pixels": {k: stroke_width(x).mean().item() for k, x in sheets.items()},
        "reward": {k: reward_of(x).mean().item() for k, x in sheets.items()},
        "ink that survives an erosion": {
            k: surviving_ink(x).mean().item() for k, x in sheets.items()
        },
        "peak of a gradient, MiB": {
            "plain loop": peak_mib(CheckpointedChain(step, M, plan="graph"), x_T),
            "chain, 128 MiB": peak_mib(chain, x_T),
            "chain, nodes": peak_mib(CheckpointedChain(step, M, frozen="auto"), x_T),
        },
        "trained parameters": {"LoRA": sum(p.numel() for p in trained)},
    }
    record.keep(draw(before, after, torch.stack(widths)), measured)


def draw(before: Tensor, after: Tensor, widths: Tensor) -> Figure:
    """Return the figure: digits before and after, stroke widths and reward of every update."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=(1, 1.3))
    rows = top.subplots(2)
    sheet(rows[0], before, "before: samples of held-out noise")
    sheet(rows[1], after, f"after: the same noise, strokes told to be {WIDTH} pixels wide")
    left, right = bottom.subplots(1, 2)
    left.plot(widths.mean(1), label="mean of a batch")
    left.fill_between(range(len(widths)), *widths.aminmax(dim=1), alpha=0.2, label="all of it")
    left.axhline(WIDTH, color="grey", linestyle=":")
    left.set(xlabel="update", ylabel="stroke width, pixels")
    left.legend(frameon=False, fontsize=8)
    right.plot(-(widths - WIDTH).square().mean(1))
    right.set(xlabel="update", ylabel="reward, mean of a batch")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
