"""A text-to-image pipeline, trained through all of its fifty steps.

The pipeline has the components of Stable Diffusion, small and with random weights: a
`UNet2DConditionModel`, an `AutoencoderKL`, and a CLIP text encoder with its tokenizer. Nothing is
downloaded. The images are not pretty, but the loop is the real one. The text encoder reads the
prompt, fifty steps of a multistep solver run with classifier-free guidance, and the decoder makes
pixels of the latents. A loss on the *pixels* trains a LoRA of the UNet through all of this: images
should change from row to row, and not along rows.

Only one thing replaces the pipeline's loop: `diffusers_chain(pipe.unet, pipe.scheduler, …)` and a
call of it. The left figure compares memory: the plain loop's grows with every step, and the chain's
does not. The right figures show the loss, and samples of the same noise before and after training.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from record import Record
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from chainograd import meter
from chainograd.adapters import diffusers_chain

PROMPT = "rows"
GUIDANCE = 2.0


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of the prompt's letters."""
    letters = (*PROMPT[:-1], f"{PROMPT[-1]}</w>")
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("vocab.json", "merges.txt")]
        files[0].write_text(json.dumps({word: i for i, word in enumerate(words)}))
        files[1].write_text("#version: 0.2\n")
        return CLIPTokenizer(*map(str, files), model_max_length=10)


def pipeline() -> StableDiffusionPipeline:
    """Return the pipeline, with random frozen weights."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=10, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        8, 4, 4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32), latent_channels=4, sample_size=16,
    )  # fmt: skip
    parts: dict[str, Any] = {"text_encoder": CLIPTextModel(text), "unet": unet, "vae": vae}
    for part in parts.values():
        part.requires_grad_(False).eval()
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        **parts, scheduler=scheduler, tokenizer=tokenizer(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    layers = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
    unet.add_adapter(LoraConfig(r=8, target_modules=layers))
    return pipe


class Sampler:
    """The pipeline's sampling with a gradient: from a prompt to pixels, in a number of steps."""

    def __init__(self, pipe: StableDiffusionPipeline, num_steps: int, plan: str) -> None:
        self.pipe = pipe
        self.chain = diffusers_chain(
            pipe.unet, pipe.scheduler, num_steps, guidance_scale=GUIDANCE, plan=plan, frozen="auto"
        )

    def __call__(self, noise: Tensor) -> Tensor:
        """Return images, ``[N, 3, 16, 16]`` in [-1, 1], for noise ``[N, 4, 8, 8]``."""
        cond, uncond = self.pipe.encode_prompt([PROMPT] * len(noise), noise.device, 1, True)
        latents = self.chain(noise * self.chain.init_noise_sigma, cond=cond, uncond=uncond)
        return torch.tanh(self.pipe.vae.decode(latents).sample)


def loss_of(images: Tensor) -> Tensor:
    """Return the share of the images' change along rows, 0 … 1; 0 if each row has one colour."""
    along = images.diff(dim=3).square().mean()
    across = images.diff(dim=2).square().mean()
    return along / (along + across)


def peak(pipe: StableDiffusionPipeline, num_steps: int, plan: str) -> float:
    """Return the peak of one training step in MiB, after a first run that pays first-call costs."""
    sampler = Sampler(pipe, num_steps, plan)
    for _ in range(2):
        with meter() as reading:
            loss_of(sampler(torch.randn(2, 4, 8, 8))).backward()
    return reading.peak_bytes / 2**20


def train(pipe: StableDiffusionPipeline, num_steps: int, updates: int, batch: int) -> list[float]:
    """Train the LoRA; return the loss of every update."""
    sampler = Sampler(pipe, num_steps, "nodes")
    lora = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(lora, lr=1e-2)
    losses = []
    for _ in range(updates):
        loss = loss_of(sampler(torch.randn(batch, 4, 8, 8)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Measure memory, train, and sample the same noise before and after."""
    record = Record(__file__, __doc__)
    M, updates, batch = (6, 6, 2) if record.quick else (50, 30, 3)
    few, many = ((2, 4), (2, 4, 6)) if record.quick else ((5, 10, 20), (5, 10, 20, 35, 50))
    pipe = pipeline()
    peaks = {plan: {m: peak(pipe, m, plan) for m in ms}
             for plan, ms in (("graph", few), ("nodes", many))}  # fmt: skip
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def samples() -> Tensor:
        with torch.no_grad():
            return Sampler(pipe, M, "nodes")(noise)

    before = samples()
    losses = train(pipe, M, updates, batch)
    after = samples()
    measured = {
        f"peak of an update, MiB, {name}": {f"{m} steps": v for m, v in peaks[plan].items()}
        for plan, name in (("graph", "plain loop"), ("nodes", "chain"))
    }
    measured["change along rows, same noise"] = {
        "before": loss_of(before).item(),
        "after": loss_of(after).item(),
    }
    record.keep(draw(peaks, losses, before, after), measured)


def draw(peaks: dict, losses: list[float], before: Tensor, after: Tensor) -> Any:
    """Return the figure: memory against steps, the loss, samples before and after."""
    figure, axes = matplotlib.pyplot.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    for plan, name in (("graph", "plain loop"), ("nodes", "chain")):
        axes[0].plot(*zip(*peaks[plan].items(), strict=True), "o-", label=name)
    axes[0].set(xlabel="sampling steps", ylabel="peak, MiB", ylim=(0, None))
    axes[0].legend()
    axes[1].plot(losses)
    axes[1].set(xlabel="update", ylabel="share of change along rows", ylim=(0, None))
    for ax, images, title in ((axes[2], before, "before"), (axes[3], after, "after")):
        rows = images.unflatten(0, (2, 4))
        ax.imshow((rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1) + 1) / 2)
        ax.set(title=title, xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    main()
