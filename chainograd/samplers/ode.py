"""Steps of an ordinary differential equation dx/dt = f(x, t), from time t to time s."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Slope = Callable[[Tensor, float], Tensor]


def euler(f: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """Return Euler's step, of first order, with one evaluation of ``f``.

    x_s = x + (s - t) f(x, t)
    """
    return x + (s - t) * f(x, t)


def heun(f: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """Return Heun's step, of second order, with two evaluations of ``f``; Euler's if s = 0.

        ahead = x + (s - t) f(x, t)
        x_s   = x + (s - t) (f(x, t) + f(ahead, s)) / 2

    At time 0, clean data, the slope of a denoiser is 0/0, and a velocity is rarely trained there. A
    single first-order step does not lower the order of the whole method.
    """
    d = f(x, t)
    ahead = x + (s - t) * d
    if s == 0:
        return ahead
    return x + (s - t) * ((d + f(ahead, s)) / 2)
