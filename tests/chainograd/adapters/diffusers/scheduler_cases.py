"""Every scheduler that diffusers exports, and the options it is run with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers.schedulers
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A scheduler with options, and how it is used.

    Attributes:
        name: The scheduler's class.
        config: Its options.
        steps: For ``set_timesteps``.
        times: Further arguments of ``set_timesteps``.
        options: Further arguments of ``step``.
        shape: Of the sample.
        axis: Where its channels are.
        widened: The network's channels for one of the sample.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 6
    times: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 4, 4)
    axis: int = 1
    widened: int = 1

    @property
    def label(self) -> str:
        """The options in words."""
        parts = {**self.config, **self.times, **self.options}
        shown = {k: v for k, v in parts.items() if not isinstance(v, Tensor)}
        return ", ".join(f"{k}={v}" for k, v in shown.items())

    def scheduler(self) -> Any:
        """Return the scheduler with its times set."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = getattr(diffusers.schedulers, self.name)(**self.config)
        scheduler.set_timesteps(self.steps, **self.times)
        if hasattr(scheduler, "set_sigmas"):
            scheduler.set_sigmas(self.steps)
        return scheduler


def tables(T: int = 1000) -> dict[str, Tensor]:
    """Return what Helios' distilled scheduler is told about its noise levels."""
    sigmas = torch.linspace(1, 0, T + 1, dtype=torch.float64)[:-1]
    return {"dmd_sigmas": sigmas, "dmd_timesteps": sigmas * T}


def cases() -> Iterator[Case]:
    """Yield every scheduler that diffusers exports, those with a history with several options."""
    for name in sorted(n for n in dir(diffusers.schedulers) if n.endswith("Scheduler")):
        for changes in OPTIONS.get(name, [{}]):
            yield Case(name, **changes)


def predictions(*names: str, **config: Any) -> list[dict[str, Any]]:
    return [{"config": {"prediction_type": name, **config}} for name in names]


DDIM = predictions("epsilon", "v_prediction", "sample")
VIDEO = {"shape": (2, 2, 3, 4, 4), "axis": 2}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [
        *DDIM,
        {"options": {"eta": 0.7}},
        {"config": {"clip_sample": False, "timestep_spacing": "trailing"}},
        {"config": {"thresholding": True}},
        {"options": {"use_clipped_model_output": True}},
    ],
    "DDIMParallelScheduler": [{}, {"options": {"eta": 0.7}}],
    "CogVideoXDDIMScheduler": [
        {**VIDEO, "config": {"prediction_type": "v_prediction"}}, {**VIDEO, "options": {"eta": 0.7}}
    ],
    "CogVideoXDPMScheduler": [
        {**VIDEO, "config": {"prediction_type": "v_prediction"}}, {**VIDEO, "options": {"eta": 0.7}}
    ],
    "DDPMScheduler": [
        *DDIM,
        {"config": {"variance_type": "learned_range"}, "widened": 2},
        {"config": {"variance_type": "fixed_large", "clip_sample": False}},
    ],
    "DPMSolverMultistepScheduler": [
        {"config": {"solver_order": 2}},
        {"config": {"solver_order": 3, "algorithm_type": "dpmsolver++"}},
        {"config": {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}},
        {
            "config": {
                "solver_order": 3, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"
            }
        },
        {"config": {"solver_type": "heun", "use_karras_sigmas": True}},
        {"config": {"prediction_type": "flow_prediction", "use_flow_sigmas": True}},
    ],
    "DPMSolverMultistepInverseScheduler": [
        {"config": {"solver_order": k}} for k in (1, 2, 3)
    ],
    "DPMSolverSinglestepScheduler": [
        {"config": {"solver_order": 2}},
        {"config": {"solver_order": 3}},
        {"config": {"algorithm_type": "sde-dpmsolver++"}},
        {"config": {"prediction_type": "v_prediction"}},
    ],
    "DPMSolverSDEScheduler": [
        {"config": {"noise_sampler_seed": 7}},
        {"config": {"noise_sampler_seed": 7, "use_karras_sigmas": True}},
        {},
    ],
    "EDMDPMSolverMultistepScheduler": [
        {"config": {"solver_order": 2}},
        {"config": {"solver_order": 3}},
        {"config": {"algorithm_type": "sde-dpmsolver++"}},
    ],
    "CosineDPMSolverMultistepScheduler": [
        {}, {"config": {"solver_order": 1}}, {"config": {"prediction_type": "epsilon"}}
    ],
    "DEISMultistepScheduler": [{"config": {"solver_order": k}} for k in (1, 2, 3)],
    "UniPCMultistepScheduler": [
        {"config": {"solver_order": 2}},
        {"config": {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}},
        {"config": {"prediction_type": "v_prediction", "disable_corrector": [0, 1]}},
        {"config": {"prediction_type": "flow_prediction", "use_flow_sigmas": True}},
    ],
    "SASolverScheduler": [
        {},
        {"config": {"predictor_order": 3, "corrector_order": 3}},
        {"config": {"prediction_type": "v_prediction", "use_karras_sigmas": True}},
    ],
    "PNDMScheduler": [
        {},
        {"config": {"skip_prk_steps": True}},
        {"config": {"skip_prk_steps": True, "prediction_type": "v_prediction"}},
    ],
    "LMSDiscreteScheduler": [
        {}, {"options": {"order": 2}}, {"config": {"use_karras_sigmas": True}},
        {"config": {"prediction_type": "v_prediction"}},
    ],
    "IPNDMScheduler": [{}, {"steps": 3}, {"steps": 9}],
    "HeunDiscreteScheduler": [
        {}, {"config": {"use_karras_sigmas": True}}, {"config": {"prediction_type": "v_prediction"}}
    ],
    "KDPM2DiscreteScheduler": [
        {}, {"config": {"use_karras_sigmas": True}}, {"config": {"prediction_type": "v_prediction"}}
    ],
    "KDPM2AncestralDiscreteScheduler": [
        {}, {"config": {"use_karras_sigmas": True}}, {"config": {"prediction_type": "v_prediction"}}
    ],
    "EulerDiscreteScheduler": [
        {}, {"config": {"prediction_type": "v_prediction"}},
        {"config": {"use_karras_sigmas": True}}, {"options": {"s_churn": 2.0}},
    ],
    "EulerAncestralDiscreteScheduler": [{}, {"config": {"prediction_type": "v_prediction"}}],
    "EDMEulerScheduler": [{}, {"options": {"s_churn": 2.0}}],
    "FlowMatchEulerDiscreteScheduler": [
        {}, {"config": {"shift": 3.0}}, {"config": {"stochastic_sampling": True}}
    ],
    "FlowMatchHeunDiscreteScheduler": [
        {}, {"config": {"shift": 3.0}}, {"options": {"s_churn": 2.0}}
    ],
    "FlowMatchLCMScheduler": [{}, {"config": {"shift": 3.0}}],
    "HeliosScheduler": [
        {"config": {"stages": 1, "stage_range": [0, 1], "solver_order": 2}, **VIDEO},
        {
            "config": {"stages": 1, "stage_range": [0, 1], "disable_corrector": [0, 1]},
            **VIDEO,
        },
        {"config": {"scheduler_type": "euler"}, "times": {"stage_index": 1}, **VIDEO},
    ],
    "HeliosDMDScheduler": [
        {"config": {"stages": 1, "stage_range": [0, 1]}, "options": {**tables()}, **VIDEO}
    ],
    "LCMScheduler": [{}, {"config": {"prediction_type": "v_prediction"}}],
    "TCDScheduler": [{}, {"options": {"eta": 0.0}}],
    "PiflowScheduler": [{"config": {"n_grid": 3}, "shape": (2, 5, 4), "axis": -1, "widened": 3}],
    "RFD4ProteinaScheduler": [
        {
            "config": {"schedule_mode": mode, "noise_mode": "1/t", "tsr_k": 1.2, "tsr_sigma": 0.3},
            "options": {"emit_mask": torch.tensor([[True, True, False, True, True]] * 2)},
            "shape": (2, 5, 3), "axis": -1, "steps": 24,
        }
        for mode in ("log", "power")
    ],
    "RePaintScheduler": [
        {
            "times": {"jump_length": 2, "jump_n_sample": 2},
            "options": {
                "original_image": torch.linspace(-1, 1, 96, dtype=torch.float64).view(2, 3, 4, 4),
                "mask": (torch.arange(96) % 3 == 0).double().view(2, 3, 4, 4),
            },
        }
    ],
    "SCMScheduler": [{"steps": 2}, {"steps": 5, "times": {"intermediate_timesteps": None}}],
    "UnCLIPScheduler": [
        {"config": {"clip_sample": False}},
        {"config": {"variance_type": "learned_range"}, "widened": 2},
    ],
    "ConsistencyDecoderScheduler": [{"steps": 2}],
    "VQDiffusionScheduler": [{"config": {"num_vec_classes": 5}}],
    "ScoreSdeVeScheduler": [{}, {"config": {"correct_steps": 2}}],
}  # fmt: skip
