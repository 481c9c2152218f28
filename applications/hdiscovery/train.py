"""Algorithm 1: directions, reconstructor and discriminator trained through the whole sampler."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from chainograd import CheckpointedChain
from chainograd.samplers import DDIM, time_grid
from hdiscovery.asymmetric import AsymmetricDDIM, Directions, shifted_chain
from hdiscovery.autocast import autocast
from hdiscovery.config import DiscoveryConfig, run_config
from hdiscovery.models.discriminator import Discriminator
from hdiscovery.models.dm import DiffusionModel, load_dm
from hdiscovery.models.reconstructor import build_reconstructor
from hdiscovery.models.shift_block import ShiftBlock
from hdiscovery.run import RunFolder

Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # x_0, shifted x_0, k, s


@dataclass(slots=True, eq=False)
class Discovery:
    """The networks of a run and what trains them: phi (shift block), omega (R), psi (D)."""

    config: DiscoveryConfig
    dm: DiffusionModel
    shift_block: ShiftBlock
    R: nn.Module
    D: Discriminator
    real: CheckpointedChain
    shifted: CheckpointedChain
    optimizer: Adam
    optimizer_D: Adam
    buffer: list[Pair] = field(default_factory=list)

    @classmethod
    def build(cls, config: DiscoveryConfig, dm: DiffusionModel | None = None) -> Discovery:
        """Make the networks from ``config.seed``."""
        dm = load_dm(config.dm) if dm is None else dm
        torch.manual_seed(config.seed)
        channels, size, _ = dm.image_shape
        shift_block = ShiftBlock(
            dm.unet.h_shape[0],
            dm.unet.embedding_channels,
            config.K,
            form=config.shift_form,
            head_std=config.head_std,
        )
        R = build_reconstructor(
            config.reconstructor, channels=channels, image_size=size, num_directions=config.K
        )
        D = Discriminator(dm.config)
        grid = time_grid(config.M, dm.schedule.num_train_steps, convention=config.grid)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            with autocast(config.autocast, x.device):
                return dm.unet(x, t)[:, :channels].to(x.dtype)

        step = AsymmetricDDIM(
            dm, shift_block, grid, t_stop=config.t_stop, precision=config.autocast
        )
        return cls(
            config, dm, shift_block, R, D,
            real=CheckpointedChain(DDIM(predict, dm.schedule, grid), config.M),
            shifted=shifted_chain(step, plan=config.plan),
            optimizer=Adam([*shift_block.parameters(), *R.parameters()], config.learning_rate),
            optimizer_D=Adam(D.parameters(), config.learning_rate),
        )  # fmt: skip

    def along(self, directions: Directions) -> CheckpointedChain:
        """Return the chain ``x_T, k, s -> x_0`` of other directions under the same settings."""
        step: Any = self.shifted.step
        other = type(step)(
            self.dm, directions, step.grid, t_stop=step.t_stop, precision=step.precision
        )
        return shifted_chain(other, plan=self.config.plan)

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw ``x_T`` from N(0, I), k and s (one a sample) from U{0 … K-1} and U[-S, S]."""
        config = self.config
        x_T = torch.randn(n, *self.dm.image_shape)
        k = torch.randint(config.K, (n,))
        s = (2 * torch.rand(n) - 1) * config.S
        return x_T, k, s

    def losses(self, x_0: Tensor, x_0_shifted: Tensor, k: Tensor, s: Tensor) -> dict[str, Tensor]:
        """Return the terms of step 2: L_G, cross entropy, shift error, and the accuracy."""
        logits, s_hat = self.R(x_0, x_0_shifted)
        D = self.D(x_0_shifted)
        return {
            "L_G": F.binary_cross_entropy_with_logits(D, torch.ones_like(D)),
            "cross_entropy": F.cross_entropy(logits, k),
            "shift_error": F.l1_loss(s_hat, s),
            "accuracy": (logits.argmax(1) == k).float().mean(),
        }

    def step(self, x_T: Tensor, k: Tensor, s: Tensor) -> dict[str, float]:
        """Do one step of Algorithm 1 and return its record.

        Raises:
            FloatingPointError: If a loss is not finite; no network was changed by it.
        """
        config = self.config
        # Step 1: sample both branches, train the discriminator. Real means: not shifted.
        with torch.no_grad():
            x_0 = self.real(x_T)
        x_0_shifted = self.shifted(x_T, k, s)
        self.D.requires_grad_(True)
        self.optimizer_D.zero_grad()
        real, fake = self.D(x_0), self.D(x_0_shifted.detach())
        L_D = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        L_D = L_D + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        _refuse_nan({"L_D": L_D})
        L_D.backward()
        self.optimizer_D.step()

        # Step 2: train shift block and reconstructor; the chain goes back node by node.
        self.D.requires_grad_(False)
        self.optimizer.zero_grad()
        terms = self.losses(x_0, x_0_shifted, k, s)
        _refuse_nan(terms)
        L_R = config.lambda_1 * terms["cross_entropy"] + config.lambda_2 * terms["shift_error"]
        (terms["L_G"] + L_R).backward()
        self.optimizer.step()

        self.buffer = [*self.buffer, (x_0, x_0_shifted.detach(), k, s)][-config.r_buffer :]
        self.train_reconstructor_again()
        return {"L_D": L_D.item(), **{name: term.item() for name, term in terms.items()}}

    def train_reconstructor_again(self) -> None:
        """Train R on recent pairs: sampling is dear, R is cheap and starves on one batch a step.

        Directions do not move: their gradients are None in these updates, so Adam skips them.
        """
        for _ in range(self.config.r_updates - 1):
            parts = random.choices(self.buffer, k=4)
            x_0, x_0_shifted, k, s = (torch.cat(column) for column in zip(*parts, strict=True))
            logits, s_hat = self.R(x_0, x_0_shifted)
            loss = self.config.lambda_1 * F.cross_entropy(logits, k)
            self.optimizer.zero_grad()
            (loss + self.config.lambda_2 * F.l1_loss(s_hat, s)).backward()
            self.optimizer.step()

    def state(self, step: int) -> dict[str, Any]:
        """Return everything a resumed run needs."""
        return {
            "step": step,
            "shift_block": self.shift_block.state_dict(),
            "R": self.R.state_dict(),
            "D": self.D.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_D": self.optimizer_D.state_dict(),
            "buffer": [list(pair) for pair in self.buffer],
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Load what `state` returned; return the next step."""
        self.shift_block.load_state_dict(state["shift_block"])
        self.R.load_state_dict(state["R"])
        self.D.load_state_dict(state["D"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_D.load_state_dict(state["optimizer_D"])
        for optimizer in (self.optimizer, self.optimizer_D):
            for group in optimizer.param_groups:  # a resumed run may have another rate
                group["lr"] = self.config.learning_rate
        self.buffer = [(x, y, k, s) for x, y, k, s in state["buffer"]]
        torch.set_rng_state(state["rng"])
        return state["step"]


def train(run: RunFolder, config: DiscoveryConfig) -> Iterator[dict[str, Any]]:
    """Train in a run folder, from its last checkpoint if it has one; yield a record per step.

    Raises:
        FloatingPointError: If a loss is not finite; the last good checkpoint is kept.
    """
    discovery = Discovery.build(config)
    checkpoint = run.load_checkpoint()
    first = discovery.restore(checkpoint) if checkpoint else 0
    run.keep_records(before=first)
    for step in range(first, config.steps):
        started = time.perf_counter()
        random.seed(config.seed * 1_000_003 + step)
        try:
            terms = discovery.step(*discovery.draw(config.batch_size))
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} at step {step}. The last good checkpoint is kept; resume with a lower "
                "`--learning-rate`."
            ) from error
        record = {"step": step, **terms, "seconds": time.perf_counter() - started}
        run.append_record(record)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            run.save_checkpoint(discovery.state(step + 1))
        yield record


def open_run(path: RunFolder) -> Discovery:
    """Return the networks of a run's last checkpoint.

    Raises:
        ValueError: If the run has no checkpoint yet.
    """
    discovery = Discovery.build(run_config(path))
    checkpoint = path.load_checkpoint()
    if checkpoint is None:
        raise ValueError(f"The run {path.path} has no checkpoint yet.")
    discovery.restore(checkpoint)
    return discovery


def _refuse_nan(terms: dict[str, Tensor]) -> None:
    for name, term in terms.items():
        if not math.isfinite(term.item()):
            raise FloatingPointError(f"{name} is {term.item()}")
