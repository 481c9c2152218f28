"""Complete half a digit by optimising the noise that the digit is sampled from.

Sampling with DDIM is a function from noise x_T to a digit x_0. Given the upper half of a digit,
which noise makes a digit with that upper half? The network is not trained here, and was never
trained to complete images. Only x_T is optimised:

    L(x_T) = |upper half of x_0(x_T) - target|^2 / (2 s^2)  +  |x_T|^2 / 2 - (n - 1) log |x_T|

The first term is the misfit in units of s = 0.2. The second term is minus the log-density of the
length of n Gaussian numbers; it keeps x_T at a length that the model knows. The gradient is exact,
so LBFGS can use its line search, which compares losses and slopes along a line and needs them to
agree.

Each of four targets is the upper half of a sample of the model, completed twice, from two noises.
The picture shows, from top to bottom: the given half; the sample before optimisation; the sample
after it; and, for comparison only, the digit that the half was taken from. The result matches the
given half. The hidden half is up to the model and may differ between the two noises. Peaks of the
loss are points that the line search tried and rejected.

    python examples/plot_noise_lbfgs.py            # minutes; the table has how many
    python examples/plot_noise_lbfgs.py --quick    # seconds
"""

from __future__ import annotations

import math
from statistics import median

import torch
from digits import noise, sampler, sheet
from matplotlib.figure import Figure
from record import Record
from torch import Tensor

from chainograd import CheckpointedChain, meter

VISIBLE = 16  # rows, from the top
SPREAD = 0.2  # s, in grey values of -1 … 1


def misfit(x_0: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of the visible halves, summed over pixels, ``[N]``."""
    return (x_0 - target)[:, :, :VISIBLE].square().sum((1, 2, 3))


def improbability(x_T: Tensor) -> Tensor:
    """Return minus the log-density of each noise's length, up to a constant, ``[N]``."""
    length, n = x_T.flatten(1).norm(dim=1), x_T[0].numel()
    # The value at the likeliest length is subtracted, so that the best loss is near 0.
    likeliest = (n - 1) / 2 - (n - 1) / 2 * math.log(n - 1)
    return length**2 / 2 - (n - 1) * length.log() - likeliest


def complete(
    chain: CheckpointedChain, x_T: Tensor, target: Tensor, iterations: int
) -> tuple[Tensor, list[float]]:
    """Return the optimised noise of one digit, and the loss of every gradient taken."""
    x_T = x_T.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x_T], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (misfit(chain(x_T), target) / (2 * SPREAD**2) + improbability(x_T)).sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    return x_T.detach(), losses


def rms(x: Tensor, target: Tensor, rows: slice) -> float:
    """Return the root mean square difference of some rows."""
    return (x - target)[:, :, rows].square().mean().sqrt().item()


def main() -> None:
    record = Record(__file__, __doc__)
    M, iterations, columns = (3, 3, 2) if record.quick else (10, 50, 8)
    chain = CheckpointedChain(sampler(M), M, frozen="auto")
    with torch.no_grad():
        digits = chain(noise(16, seed=1)[[3, 8, 9, 10]]).clamp(-1, 1)
    target = digits.repeat_interleave(2, dim=0)[:columns]
    first = noise(columns, seed=4)
    with meter() as reading:
        found = [
            complete(chain, *pair, iterations)
            for pair in zip(first.split(1), target.split(1), strict=True)
        ]
    best = torch.cat([x_T for x_T, _ in found])
    curves = [losses for _, losses in found]

    with torch.no_grad():
        start, result = chain(first), chain(best)
    sheets = {"start": start, "result": result}
    given, hidden = slice(VISIBLE), slice(VISIBLE, None)
    measured = {
        "RMS difference, given half": {k: rms(x, target, given) for k, x in sheets.items()},
        "RMS difference, hidden half": {k: rms(x, target, hidden) for k, x in sheets.items()},
        "median loss": {
            "start": median(losses[0] for losses in curves),
            "result": median(losses[-1] for losses in curves),
        },
        "length of x_T / sqrt(n)": {"result": best.square().mean().sqrt().item()},
        "gradients taken for a digit": {"median": median(len(losses) for losses in curves)},
        "peak, MiB": {"result": reading.peak_bytes / 2**20},
    }
    record.keep(draw(target, start, result, curves), measured)


def draw(target: Tensor, start: Tensor, result: Tensor, curves: list[list[float]]) -> Figure:
    """Return the figure: given half, start, result, the whole target, and the loss."""
    given = target.clone()
    given[:, :, VISIBLE:] = torch.nan
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    rows = left.subplots(4)
    sheet(rows[0], given, "given: the upper half of a sample")
    sheet(rows[1], start, "start: the sample of the first noise")
    sheet(rows[2], result, "result: the sample of the optimised noise")
    sheet(rows[3], target, "for comparison: where the half was taken from")
    axes = right.subplots()
    for k, losses in enumerate(curves):
        axes.semilogy(losses, color=f"C{k // 2}", linewidth=1)
    axes.set(xlabel="gradients taken by LBFGS", ylabel="loss, one line a digit")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
