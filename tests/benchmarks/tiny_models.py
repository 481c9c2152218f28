"""Models of today with a few narrow blocks."""

from forward_inputs import Size
from published_models import Model

TINY = {
    "flux": Model(
        "flux", "diffusers:FluxTransformer2DModel",
        {
            "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16,
            "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32,
            "pooled_projection_dim": 16, "in_channels": 8, "guidance_embeds": True,
        },
        Size((1, 16, 8), 8), "", "", last_time=1.0,
    ),
    "sd3": Model(
        "sd3", "diffusers:SD3Transformer2DModel",
        {
            "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": 8,
            "in_channels": 4, "out_channels": 4, "joint_attention_dim": 32,
            "caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 8,
            "qk_norm": "rms_norm", "dual_attention_layers": (0,),
        },
        Size((1, 4, 8, 8), 8), "", "",
    ),
    "wan": Model(
        "wan", "diffusers:WanTransformer3DModel",
        {
            "num_layers": 4, "attention_head_dim": 16, "num_attention_heads": 2, "text_dim": 32,
            "ffn_dim": 64, "freq_dim": 16,
        },
        Size((1, 16, 2, 8, 8), 8), "", "",
    ),
    "unet": Model(
        "unet", "diffusers:UNet2DConditionModel",
        {
            "block_out_channels": (32, 64), "cross_attention_dim": 32, "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1,
        },
        Size((1, 4, 8, 8), 7), "", "", "noise",
    ),
}  # fmt: skip
