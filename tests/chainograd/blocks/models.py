"""Small models of other libraries, and models that declare nothing."""

import torch
from torch import nn

UNET = {
    "sample_size": 8, "in_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 8,
    "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip
CONFIGS = {
    "UNet2DConditionModel": {
        **UNET, "out_channels": 4, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")
    },
    "ControlNetModel": {
        **{key: value for key, value in UNET.items() if key != "sample_size"},
        "conditioning_embedding_out_channels": (4, 8),
    },
    "UNet2DModel": {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "norm_num_groups": 4,
    },
    "AutoencoderKL": {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "FluxTransformer2DModel": {
        "in_channels": 4, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 2, 4),
    },
    "SD3Transformer2DModel": {
        "sample_size": 8, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 16,
        "pooled_projection_dim": 8, "out_channels": 4,
    },
    "PixArtTransformer2DModel": {
        "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
        "cross_attention_dim": 16, "caption_channels": 8,
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": 8, "freq_dim": 8, "ffn_dim": 16, "num_layers": 2,
    },
    "QwenImageTransformer2DModel": {
        "in_channels": 4, "out_channels": 1, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": (2, 2, 4),
    },
    "HunyuanVideoTransformer3DModel": {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
        "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 8,
        "pooled_projection_dim": 8, "rope_axes_dim": (2, 2, 4),
    },
    "AutoencoderKLWan": {"base_dim": 4, "z_dim": 2, "num_res_blocks": 1},
}  # fmt: skip


def build(diffusers, name):
    """Return a model of diffusers, without memory for its parameters."""
    with torch.device("meta"):
        return getattr(diffusers, name)(**CONFIGS[name])


class Block(nn.Module):
    """A block with a list of its own inside."""

    def __init__(self, width=4):
        super().__init__()
        self.experts = nn.ModuleList(Expert(width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x) + sum(expert(x) for expert in self.experts)


class Expert(nn.Module):
    """What is no block although there is a list of it."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        return self.net(x)


class Stage(nn.Module):
    """A part of a network with blocks inside."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.wider = nn.Linear(width, 2 * width)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.wider(x)


class Net(nn.Module):
    """A network that declares nothing."""

    def __init__(self, num_blocks=3):
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
        self.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return sum(head(x) for head in self.heads)


class Declaring(Net):
    """A network that declares its blocks, as those of diffusers do."""

    _no_split_modules = ("Block",)


class Holder(nn.Module):
    """A module around other modules."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
