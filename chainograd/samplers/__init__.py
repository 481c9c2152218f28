"""Samplers as pure steps, and the noise, noise schedules and grids they run on."""

from chainograd.samplers.ddim import DDIM, ddim_sigma, ddim_update
from chainograd.samplers.ddpm import DDPM
from chainograd.samplers.dpm_solver import DPMSolver2M, MultistepState
from chainograd.samplers.edm import Churn, EDMEuler, EDMHeun, karras_sigmas
from chainograd.samplers.flow import FlowEuler, FlowHeun, flow_times
from chainograd.samplers.noise import SeededNoise
from chainograd.samplers.schedule import NoiseSchedule, time_grid

__all__ = [
    "DDIM",
    "DDPM",
    "Churn",
    "DPMSolver2M",
    "EDMEuler",
    "EDMHeun",
    "FlowEuler",
    "FlowHeun",
    "MultistepState",
    "NoiseSchedule",
    "SeededNoise",
    "ddim_sigma",
    "ddim_update",
    "flow_times",
    "karras_sigmas",
    "time_grid",
]
