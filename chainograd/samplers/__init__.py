"""Samplers as pure steps, and the noise schedules and time grids they run on."""

from chainograd.samplers.ddim import DDIM, ddim_sigma, ddim_update
from chainograd.samplers.schedule import NoiseSchedule, time_grid

__all__ = ["DDIM", "NoiseSchedule", "ddim_sigma", "ddim_update", "time_grid"]
