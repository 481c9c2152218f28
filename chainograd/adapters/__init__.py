"""Models and samplers of other libraries as chains, without importing those libraries."""

from chainograd.adapters.diffusers.chain import DiffusersChain, diffusers_chain
from chainograd.adapters.guidance import classifier_guidance
from chainograd.adapters.guided_diffusion import guided_diffusion_ddim, guided_diffusion_step
from chainograd.adapters.k_diffusion import k_diffusion_step
from chainograd.adapters.predictions import edm_denoiser, epsilon_from
from chainograd.adapters.smalldiffusion import smalldiffusion_step
from chainograd.adapters.velocity import from_data_at_one

__all__ = [
    "DiffusersChain",
    "classifier_guidance",
    "diffusers_chain",
    "edm_denoiser",
    "epsilon_from",
    "from_data_at_one",
    "guided_diffusion_ddim",
    "guided_diffusion_step",
    "k_diffusion_step",
    "smalldiffusion_step",
]
