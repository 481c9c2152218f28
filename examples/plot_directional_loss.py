"""The exact gradient of a CLIP-style loss, compared with the shortcut of one gradient per step.

A directional loss moves an image in the space of an embedding E in the direction of a word:

    L = 1 - cos(E(x_0) - E(source), d),        d = E(target) - E(source), of words or of examples

A sampler makes x_0, so the gradient must pass all of its steps. DiffusionCLIP could not afford this
on one GPU. Its "GPU-efficient" mode detaches the state after every step and takes the loss on each
step's *prediction* of x_0, with one update of the weights per step. This fits, but it is another
objective: it ignores the effect of a step on later steps, and predictions are not samples.
Checkpointed steps fit as well, and compute the gradient of the loss itself.

Both methods train the decoder of the network on the same digits, noised to t = 600, with
DiffusionCLIP's penalty on |x_0 - source|. E is the frozen network's own encoder, pooled over
quadrants; to use CLIP, replace `Embedding.__call__`. d is the mean change of E when digits are
slanted, so the model should learn italics. Each method runs at two learning rates; the better run
is drawn bold.

Result: the shortcut makes ten updates per pass and the exact method makes one. In the same time,
the shortcut reaches a lower loss and a larger slant. But look at the digits. The exact gradient
slants whole digits, less far. The shortcut tears strokes apart, and the frozen network does not
accept the result as digits: its denoising error, in the table, is higher on them than on digits
slanted by hand.

    python examples/plot_directional_loss.py            # minutes; the table has how many
    python examples/plot_directional_loss.py --quick    # seconds

References:
    Kim et al. (2022), DiffusionCLIP: Text-Guided Diffusion Models for Robust Image Manipulation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from digits import noise, sampler, sheet
from matplotlib.figure import Figure
from record import Record
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from chainograd import CheckpointedChain, meter
from chainograd.samplers import DDIM, ddim_update

T_0 = 600  # where training starts: the digit is decided, its strokes are not
FROZEN = sampler(1)
Pass = Callable[[Tensor, Tensor], None]


class Embedding:
    """Features of images, and the direction in which slanting digits moves the features."""

    def __init__(self, digits: Tensor) -> None:
        self.spread = torch.ones(())
        self.spread = self(digits).std(dim=0)
        moves = self(slanted(digits)) - self(digits)
        self.size = moves.norm(dim=1).mean()
        self.direction = F.normalize(moves.mean(dim=0), dim=0)

    def __call__(self, x: Tensor) -> Tensor:
        """Return features ``[N, D]`` of images ``[N, 1, 32, 32]``, in standard deviations."""
        skips = FROZEN.model.encode(x, x.new_full((len(x),), 100)).skips[:6]
        return torch.cat([F.adaptive_avg_pool2d(s, 2).flatten(1) for s in skips], 1) / self.spread

    def loss(self, x: Tensor, source: Tensor) -> Tensor:
        """Return the directional loss and its penalty.

        At the start nothing has moved, and the gradient of a true cosine is infinite there.
        """
        moved = self(x) - self(source)
        cosine = moved @ self.direction / (moved.norm(dim=1) + 0.1 * self.size)
        return (1 - cosine).mean() + (x - source).abs().mean()


def slanted(x: Tensor) -> Tensor:
    """Return digits sheared to the right."""
    shear = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(shear, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


def slant(x: Tensor) -> float:
    """Return the mean slant of digits, -mu_xy / mu_yy of their ink: pixels right a pixel up."""
    ink = (x.clamp(-1, 1).squeeze(1) + 1) / 2
    ink = ink / ink.sum((1, 2), keepdim=True)
    edge = torch.arange(32.0)
    right = edge - (ink.sum(1) @ edge)[:, None]
    up = (ink.sum(2) @ edge)[:, None] - edge
    mu_xy = torch.einsum("nyx,ny,nx->n", ink, up, right)
    return (mu_xy / torch.einsum("nyx,ny->n", ink, up**2)).mean().item()


def strangeness(x: Tensor) -> float:
    """Return the frozen network's mean squared denoising error of images at t = 100."""
    epsilon, t = noise(len(x), seed=5), torch.full((len(x),), 100)
    return (FROZEN.model(FROZEN.schedule.noise(x, t, epsilon), t) - epsilon).square().mean().item()


def exact(step: DDIM, embedding: Embedding, optimizer: Optimizer) -> Pass:
    """Return a function for a training pass on the loss itself, with one update."""
    chain = CheckpointedChain(step, step.num_steps, frozen="auto")

    def run(x: Tensor, source: Tensor) -> None:
        optimizer.zero_grad()
        embedding.loss(chain(x), source).backward()
        optimizer.step()

    return run


def shortcut(step: DDIM, embedding: Embedding, optimizer: Optimizer) -> Pass:
    """Return a function for a training pass on each step's prediction, with one update per step."""

    def run(x: Tensor, source: Tensor) -> None:
        for t, s in pairwise(step.grid):
            alpha_t, alpha_s = step.schedule.alpha_bar(t), step.schedule.alpha_bar(s)
            epsilon = step.model(x, x.new_full((len(x),), t).long())
            x_0 = (x - (1 - alpha_t) ** 0.5 * epsilon) / alpha_t**0.5
            optimizer.zero_grad()
            embedding.loss(x_0, source).backward()
            optimizer.step()
            x = ddim_update(x, epsilon.detach(), alpha_bar_t=alpha_t, alpha_bar_s=alpha_s)

    return run


def network(M: int) -> tuple[DDIM, list[Tensor]]:
    """Return a new sampler that starts at T_0, and the trained parameters of its network."""
    unet = sampler(1).model
    trained = [*unet.output_blocks.parameters(), *unet.out.parameters()]
    for parameter in trained:
        parameter.requires_grad_()
    return DDIM(unet, FROZEN.schedule, [T_0 * j // M for j in range(M, -1, -1)]), trained


@torch.no_grad()
def noised_digits(M: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return states at T_0, and the digits that the frozen network samples from them."""
    start = DDIM(FROZEN.model, FROZEN.schedule, [999, 900, 800, 700, T_0])
    x = CheckpointedChain(start, start.num_steps)(noise(count, seed=seed))
    return x, CheckpointedChain(network(M)[0], M)(x)


def main() -> None:
    record = Record(__file__, __doc__)
    M, batch, batches, passes = (2, 4, 2, 2) if record.quick else (10, 8, 12, 20)
    pool = [x.split(batch) for x in noised_digits(M, batches * batch, seed=0)]
    held_x, held_source = noised_digits(M, 2 * batch, seed=1)
    with torch.no_grad():
        embedding = Embedding(torch.cat(pool[1]))

    rates = [(exact, 6e-4), (exact, 3e-4), (shortcut, 1e-4), (shortcut, 3e-5)]
    sheets, curves, changes, peaks = {"source": held_source}, {}, {}, {}
    for method, rate in rates:
        name = method.__name__
        step, trained = network(M)
        optimizer = Adam(trained, lr=rate)
        decay = CosineAnnealingLR(optimizer, passes)
        run, seconds, curve = method(step, embedding, optimizer), 0.0, []
        for k in range(passes + 1):
            if k % 2 == 0:
                with torch.no_grad():
                    x_0 = CheckpointedChain(step, M)(held_x)
                    curve.append((k, seconds, embedding.loss(x_0, held_source).item()))
            if k < passes:
                started = time.process_time()  # this process only, so a busy machine does not count
                run(pool[0][k % batches], pool[1][k % batches])
                seconds += time.process_time() - started
                decay.step()
        if name not in sheets or curve[-1][-1] < min(c[-1][-1] for c in curves[name].values()):
            sheets[name] = x_0
        curves.setdefault(name, {})[rate] = curve

        # The change of the weights by one pass of plain gradient descent, and its peak memory.
        step, trained = network(M)
        before = parameters_to_vector(trained).detach().clone()
        with meter() as reading:
            method(step, embedding, SGD(trained, lr=1e-4))(pool[0][0], pool[1][0])
        peaks[name] = reading.peak_bytes / 2**20
        changes[name] = parameters_to_vector(trained).detach() - before

    best = {name: min(c[-1][-1] for c in by_rate.values()) for name, by_rate in curves.items()}
    alike = F.cosine_similarity(changes["exact"], changes["shortcut"], dim=0)
    shown = {"source, slanted": slanted(held_source), **sheets}
    with torch.no_grad():
        measured = {
            "loss of held-out samples": {"at the start": curves["exact"][6e-4][0][-1], **best},
            "denoising error of the frozen network": {k: strangeness(x) for k, x in shown.items()},
            "slant, pixels right a pixel up": {k: slant(x) for k, x in shown.items()},
            "peak of a pass, MiB": peaks,
            "CPU seconds a pass": {k: c[min(c)][-1][1] / passes for k, c in curves.items()},
            "cosine of the first pass's gradients": {"exact and shortcut": alike.item()},
        }
    record.keep(draw(sheets, curves), measured)


def draw(sheets: dict[str, Tensor], curves: dict[str, dict[float, list]]) -> Figure:
    """Return the figure: held-out digits, and their loss against passes and seconds."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=(1.1, 1))
    titles = ("source: held-out digits", "exact gradient", "shortcut")
    for axes, images, title in zip(top.subplots(3), sheets.values(), titles, strict=True):
        sheet(axes, images, title)
    both = bottom.subplots(1, 2, sharey=True)
    for (name, by_rate), colour in zip(curves.items(), ("C0", "C1"), strict=True):
        for rate, curve in sorted(by_rate.items(), key=lambda item: -item[1][-1][-1]):
            bold = curve[-1][-1] == min(c[-1][-1] for c in by_rate.values())
            passes, seconds, losses = zip(*curve, strict=True)
            for axes, along in zip(both, (passes, seconds), strict=True):
                axes.plot(
                    along, losses, color=colour, linewidth=2.5 if bold else 0.8,
                    label=f"{name}, rate {rate:g}",
                )  # fmt: skip
    both[0].set(xlabel="passes through the sampler", ylabel="loss of final samples, held out")
    both[1].set(xlabel="CPU seconds of training")
    both[0].legend(frameon=False, fontsize=8)
    for axes in both:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
