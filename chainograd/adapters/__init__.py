"""Models, samplers and loss heads of other libraries as steps and chains.

No adapter imports the library that it adapts.
"""

from chainograd.adapters.diffusers import DiffusersChain, diffusers_chain
from chainograd.adapters.edm import edm_denoiser
from chainograd.adapters.guidance import classifier_guidance
from chainograd.adapters.guided_diffusion import guided_diffusion_step
from chainograd.adapters.guided_networks import guided_diffusion_ddim
from chainograd.adapters.k_diffusion import k_diffusion_step
from chainograd.adapters.loss_head import in_slices
from chainograd.adapters.predictions import epsilon_from, from_data_at_one
from chainograd.adapters.smalldiffusion import smalldiffusion_step

__all__ = [
    "DiffusersChain",
    "classifier_guidance",
    "diffusers_chain",
    "edm_denoiser",
    "epsilon_from",
    "from_data_at_one",
    "guided_diffusion_ddim",
    "guided_diffusion_step",
    "in_slices",
    "k_diffusion_step",
    "smalldiffusion_step",
]
