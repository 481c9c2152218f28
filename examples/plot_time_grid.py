"""Learn the times of a sampler with four steps, and the weight of the previous step in each step.

A sampler with few steps is cheap and inexact: from the same noise, four steps of DDIM make another
digit than fifty steps. The times of the steps, and the weight of the previous step, are usually
chosen by hand. Here these six numbers are learned, so that the result of four steps comes closer to
the result of fifty.

A step goes from time t_i to t_{i+1}. Its estimate of the noise e uses the previous step's estimate:

    x'  = A x + B ê,       ê = e_i + c_i (e_i - e_{i-1})
    A   = sqrt(ᾱ' / ᾱ),    B = sqrt(1 - ᾱ') - A sqrt(1 - ᾱ)

c = 0 is DDIM, and c = 1/2 is the rule of Adams and Bashforth for equal steps. The times are real
numbers: ᾱ between two training times is interpolated in the log-SNR, and the network's sinusoidal
time embedding takes any number. The gradient of a time passes A and B of two steps, the network's
input in one of them, and all later steps. For the chain, times are arguments like any other:
`chain((x_T, e), times, c)`. The state is a pair of the image and the last e.

The training pairs are noise and the result of fifty steps from it. The picture shows digits from
noise that training did not use, their distance to the result of fifty steps against the number of
network evaluations, and the learned numbers. *By hand* means equal steps with the best of three c.

    python examples/plot_time_grid.py            # minutes; the table has how many
    python examples/plot_time_grid.py --quick    # seconds

References:
    Watson et al. (2022), Learning Fast Samplers for Diffusion Models by Differentiating Through
    Sample Quality.
"""

from __future__ import annotations

import torch
from digits import noise, sampler, sheet
from matplotlib.figure import Figure
from record import Record
from torch import Tensor

from chainograd import CheckpointedChain

Pair = tuple[Tensor, Tensor]
MODEL = sampler(1)
LOG_SNR = (MODEL.schedule.alpha_bars / (1 - MODEL.schedule.alpha_bars)).log()
T_LAST = len(LOG_SNR) - 1
HAND = (0.0, 0.25, 0.5)


def alpha_bar(t: Tensor) -> Tensor:
    """Return alpha-bar at a real time, differentiable in it."""
    below = int(t.detach().clamp(0, T_LAST - 1))
    log_snr = torch.lerp(LOG_SNR[below], LOG_SNR[below + 1], t.double() - below)
    return torch.sigmoid(log_snr)


def step(state: Pair, i: int, times: Tensor, c: Tensor) -> Pair:
    """Return the state at ``times[i + 1]`` and this step's estimate of the noise."""
    x, e_before = state
    e = MODEL.model(x, times[i].expand(len(x)))
    e_hat = e + c[i] * (e - e_before) if i else e
    here, there = alpha_bar(times[i]), alpha_bar(times[i + 1])
    A = (there / here).sqrt()
    B = (1 - there).sqrt() - A * (1 - here).sqrt()
    return A.float() * x + B.float() * e_hat, e


def times_of(gaps: Tensor) -> Tensor:
    """Return falling times from T-1 to 0, whose gaps are in the ratios of ``exp(gaps)``."""
    passed = gaps.softmax(dim=0).cumsum(dim=0)
    return T_LAST * torch.cat([torch.ones(1), (1 - passed[:-1]), torch.zeros(1)])


def sampled(x_T: Tensor, times: Tensor, c: Tensor) -> Tensor:
    """Return samples; their gradient goes to times and c."""
    chain = CheckpointedChain(step, len(c), plan="256MiB", frozen="auto")
    return chain((x_T, torch.zeros_like(x_T)), times, c)[0]


@torch.no_grad()
def ddim(x_T: Tensor, num_steps: int) -> Tensor:
    """Return DDIM's samples."""
    return CheckpointedChain(sampler(num_steps), num_steps)(x_T)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the root mean square difference of grey values, ``[N]``."""
    return (x - y).square().mean((1, 2, 3)).sqrt()


def main() -> None:
    record = Record(__file__, __doc__)
    M, teacher, batch, pool, updates = (3, 8, 4, 4, 5) if record.quick else (4, 50, 16, 192, 96)
    x_T, held_out = noise(pool, seed=0), noise(4 if record.quick else 64, seed=1)
    wanted, held_wanted = ddim(x_T, teacher), ddim(held_out, teacher)

    gaps = torch.zeros(M, requires_grad=True)
    c = torch.zeros(M, requires_grad=True)
    optimizer = torch.optim.Adam([gaps, c], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for update in range(updates):
        part = slice(update * batch % pool, update * batch % pool + batch)
        loss = distances(sampled(x_T[part], times_of(gaps), c), wanted[part]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    c, times = c.detach(), times_of(gaps.detach())
    with torch.no_grad():
        learned = sampled(held_out, times, c)
        by_hand = [sampled(held_out, times_of(torch.zeros(M)), torch.full((M,), k)) for k in HAND]
    counts = (M, M + 2) if record.quick else (4, 5, 6, 8, 10, 12, 15)
    by_count = {count: ddim(held_out, count) for count in counts}
    errors = {count: distances(x, held_wanted).mean().item() for count, x in by_count.items()}
    error = distances(learned, held_wanted).mean().item()
    hand = {k: distances(x, held_wanted).mean().item() for k, x in zip(HAND, by_hand, strict=True)}
    measured = {
        f"RMS distance to {teacher} steps, held out, {M} steps": {
            **{f"equal, c = {k:g}": value for k, value in hand.items()}, "learned": error
        },
        "the same of DDIM in more steps": {f"{n}": e for n, e in errors.items() if n > M},
        "learned times": {f"t_{i}": t.item() for i, t in enumerate(times)},
        "learned c": {f"c_{i}": c[i].item() for i in range(1, M)},
    }  # fmt: skip
    rows = {
        f"{teacher} steps of DDIM": held_wanted,
        f"{M} steps of DDIM": by_count[M],
        f"{M} learned steps": learned,
    }
    record.keep(draw(rows, errors, min(hand.values()), error, times, c), measured)


def draw(
    rows: dict[str, Tensor],
    errors: dict[int, float],
    hand: float,
    error: float,
    times: Tensor,
    c: Tensor,
) -> Figure:
    """Return the figure: samples; distances against evaluations; the learned times and c."""
    M = len(c)
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=(1.1, 1))
    for axes, (title, images) in zip(top.subplots(3), rows.items(), strict=True):
        sheet(axes, images[:16], title)
    left, middle, right = bottom.subplots(1, 3)
    left.plot(*zip(*errors.items(), strict=True), "o-", color="grey", label="DDIM")
    left.plot(M, hand, "s", color="C0", label="by hand")
    left.plot(M, error, "*", color="C3", markersize=14, label="learned")
    left.set(xlabel="network evaluations", ylabel="distance to 50 steps", ylim=(0, None))
    middle.plot(torch.linspace(T_LAST, 0, M + 1), "o-", color="grey", label="equal")
    middle.plot(times, "*-", color="C3", label="learned")
    middle.set(xlabel="i", ylabel="$t_i$")
    right.plot(range(1, M), c[1:], "*-", color="C3", label="learned")
    right.axhline(0.5, color="grey", linestyle=":", label="Adams-Bashforth")
    right.set(xlabel="i", ylabel="$c_i$", ylim=(0, None), xticks=range(1, M))
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
