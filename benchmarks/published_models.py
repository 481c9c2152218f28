"""Models that people tune today: class, published config, and the size that is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from forward_inputs import Size
from torch import nn

Training = Literal["lora", "embedding"]
TRAININGS: tuple[Training, ...] = ("lora", "embedding")


@dataclass(frozen=True)
class Model:
    """A network and the size at which it is sampled.

    Attributes:
        name: Its name in tables.
        cls: ``"module:Class"``.
        config: What its published config says other than the class's defaults.
        size: What the config does not say; see `forward_inputs.Size`.
        resolution: The size in the words of its users.
        source: Where the config and the resolution were published.
        prediction: What the network returns: a velocity, or the noise.
        last_time: What the network is given as time at the noisiest step.
    """

    name: str
    cls: str
    config: Mapping[str, Any]
    size: Size
    resolution: str
    source: str
    prediction: Literal["flow", "noise"] = "flow"
    last_time: float = 1000.0


def named(cls: str) -> type[nn.Module]:
    """Return the class that ``"module:Class"`` names."""
    module, _, name = cls.partition(":")
    return getattr(import_module(module), name)


HUB = "https://huggingface.co"
FLUX_TEXT, WAN_TEXT = 512, 512  # tokens, as their pipelines pad
MODELS = {
    model.name: model
    for model in (
        Model(
            "SD1.5", "diffusers:UNet2DConditionModel",
            {"sample_size": 64, "cross_attention_dim": 768},
            Size((1, 4, 64, 64), 77), "512 px",
            f"{HUB}/stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json", "noise",
        ),
        Model(
            "SDXL", "diffusers:UNet2DConditionModel",
            {
                "sample_size": 128, "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048, "use_linear_projection": True,
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            Size((1, 4, 128, 128), 77), "1024 px",
            f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0, unet/config.json", "noise",
        ),
        Model(
            "SD3.5-M", "diffusers:SD3Transformer2DModel",
            {
                "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
                "pos_embed_max_size": 384, "qk_norm": "rms_norm",
                "dual_attention_layers": tuple(range(13)),
            },
            Size((1, 16, 128, 128), 77 + 256), "1024 px",
            f"{HUB}/stabilityai/stable-diffusion-3.5-medium, transformer/config.json",
        ),
        Model(
            "FLUX.1-dev", "diffusers:FluxTransformer2DModel", {"guidance_embeds": True},
            Size((1, 64 * 64, 64), FLUX_TEXT), "1024 px",
            f"{HUB}/black-forest-labs/FLUX.1-dev, transformer/config.json", last_time=1.0,
        ),
        Model(
            "Qwen-Image", "diffusers:QwenImageTransformer2DModel", {},
            Size((1, 83 * 83, 64), 512, grid=(1, 83, 83)), "1328 px",
            f"{HUB}/Qwen/Qwen-Image, transformer/config.json", last_time=1.0,
        ),
        Model(
            "Wan2.1-1.3B", "diffusers:WanTransformer3DModel",
            {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            Size((1, 16, 21, 60, 104), WAN_TEXT), "832x480, 81 frames",
            f"{HUB}/Wan-AI/Wan2.1-T2V-1.3B-Diffusers, transformer/config.json",
        ),
        Model(
            "Wan2.1-14B", "diffusers:WanTransformer3DModel", {},
            Size((1, 16, 21, 90, 160), WAN_TEXT), "1280x720, 81 frames",
            f"{HUB}/Wan-AI/Wan2.1-T2V-14B-Diffusers, transformer/config.json",
        ),
        Model(
            "HunyuanVideo", "diffusers:HunyuanVideoTransformer3DModel", {},
            Size((1, 16, 33, 90, 160), 256), "1280x720, 129 frames",
            f"{HUB}/hunyuanvideo-community/HunyuanVideo, transformer/config.json",
        ),
        Model(
            "LTX-Video", "diffusers:LTXVideoTransformer3DModel", {},
            Size((1, 21 * 15 * 22, 128), 128, grid=(21, 15, 22)), "704x480, 161 frames",
            f"{HUB}/Lightricks/LTX-Video, transformer/config.json",
        ),
    )
}  # fmt: skip
