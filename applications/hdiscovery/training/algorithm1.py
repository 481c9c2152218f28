"""Algorithm 1, one step after another."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hdiscovery.directions.discovery import Discovery
from hdiscovery.directions.saved import FORMAT, averaged, load_networks
from hdiscovery.training.augment import moved_alike
from hdiscovery.training.objective import Objective, discriminator_loss
from hdiscovery.training.optimizers import keep_drawn_rows, optimizers, set_rates
from hdiscovery.training.world import World

Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # x_0, shifted x_0, k, s


class Trainer:
    """Trains phi (shift block), omega (R) and psi (D) of a run through its whole sampler.

    Each of the two phases of a step has one backward pass and, among several processes, one
    reduction of gradients.

    Args:
        discovery: The networks, the same ones in every process.
        world: The processes that train together.
    """

    def __init__(self, discovery: Discovery, world: World | None = None) -> None:
        self.discovery, self.world = discovery, world or World(device=discovery.device)
        self.config = config = discovery.config
        if config.networks.sync_batch_norm:
            discovery.R = nn.SyncBatchNorm.convert_sync_batchnorm(discovery.R)
        self.optimizers = optimizers(discovery)
        self.D = self.world.wrap(discovery.D)
        self.own_objective = Objective(discovery)
        self.objective = self.world.wrap(self.own_objective)
        self.average = average_of(discovery) if config.optimizer.ema else None
        self.buffer: list[Pair] = []

    def step(
        self, x_T: Tensor, k: Tensor, s: Tensor, x_0: Tensor | None = None
    ) -> dict[str, float]:
        """Do one step and return its record, averaged over the processes.

        Args:
            x_T: Noise, ``[N, C, H, W]``.
            k: Directions, ``[N]``.
            s: Shifts, ``[N]``.
            x_0: What the frozen model makes of ``x_T``, if that is known.

        Raises:
            FloatingPointError: If a loss is not finite. No network was changed, unless it is of
                R alone; then D has made its step.
        """
        x_0 = self._real(x_T) if x_0 is None else x_0
        shifted = self.discovery.shifted(x_T, k, s)
        record = self._train_discriminator(x_0, shifted.detach())
        record |= self._train_directions(x_0, shifted, k, s)
        self._train_reconstructor_again((x_0, shifted.detach(), k, s))
        if self.average is not None:
            self.average.update_parameters(self.discovery.shift_block)
        return record

    def settle(
        self, x_T: Tensor, k: Tensor, s: Tensor, x_0: Tensor | None = None, *, rate: float
    ) -> dict[str, float]:
        """Do a step that leaves the directions as they are, and return its record.

        No gradient goes through the sampler, which is what a step is dear for. The discriminator
        learns on, so that L_G still says whether shifted samples can be told from others. Where the
        shift block has a moving average, the directions are those of the average from here on: they
        are what is evaluated, and what the reconstructor has to know.

        Args:
            x_T: Noise, ``[N, C, H, W]``.
            k: Directions, ``[N]``.
            s: Shifts, ``[N]``.
            x_0: What the frozen model makes of ``x_T``, if that is known.
            rate: Learning rate of the reconstructor.

        Raises:
            FloatingPointError: If a loss is not finite; then D may have made its step.
        """
        x_0 = self._real(x_T) if x_0 is None else x_0
        if self.average is not None:
            self.discovery.shift_block.load_state_dict(self.average.module.state_dict())
        with torch.no_grad():
            shifted = self.discovery.shifted(x_T, k, s)
        record = self._train_discriminator(x_0, shifted)
        set_rates(self.optimizers, {**self.config.rates, "omega": rate})
        record |= self._train_reconstructor(x_0, shifted, k, s)
        self._train_reconstructor_again((x_0, shifted, k, s))
        return record

    def _real(self, x_T: Tensor) -> Tensor:
        with torch.no_grad():
            return self.discovery.real(x_T)

    def _train_discriminator(self, x_0: Tensor, shifted: Tensor) -> dict[str, float]:
        """Phase 1: let D tell shifted samples from others."""
        psi = self.optimizers["psi"]
        self.discovery.D.requires_grad_(True)
        psi.zero_grad()
        real, fake = self.D(torch.cat([x_0, shifted])).chunk(2)
        L_D = discriminator_loss(real, fake)
        right = torch.cat([real > 0, fake < 0]).float().mean()  # 1/2 in equilibrium
        record = self._finite({"L_D": L_D, "accuracy_D": right})
        L_D.backward()
        psi.step()
        return record

    def _train_directions(
        self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor
    ) -> dict[str, float]:
        """Phase 2: train shift block and reconstructor; the chain goes back node by node."""
        self.discovery.D.requires_grad_(False)
        for name in ("phi", "omega", "heads"):
            if name in self.optimizers:
                self.optimizers[name].zero_grad()
        terms = self.objective(x_0, shifted, k, s)
        record = self._finite(terms)
        terms["loss"].backward()
        if "heads" in self.optimizers:
            for head in self.discovery.shift_block.heads:
                keep_drawn_rows(head)
            self.optimizers["heads"].step()
        self.optimizers["phi"].step()
        self.optimizers["omega"].step()
        return record

    def _train_reconstructor(
        self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor
    ) -> dict[str, float]:
        """Train R alone on samples that have no graph."""
        self.discovery.D.requires_grad_(False)
        omega = self.optimizers["omega"]
        omega.zero_grad()
        terms = self.own_objective(x_0, shifted, k, s)
        record = self._finite(terms)
        terms["loss"].backward()
        self.world.average_gradients(list(self.discovery.R.parameters()))
        omega.step()
        return record

    def _train_reconstructor_again(self, pair: Pair) -> None:
        """Train R on recent pairs: sampling is dear, R is cheap and starves on one batch a step."""
        if self.config.training.r_updates == 1:
            return
        self.buffer = [*self.buffer, pair][-self.config.training.r_buffer :]
        omega, parameters = self.optimizers["omega"], list(self.discovery.R.parameters())
        for _ in range(self.config.training.r_updates - 1):
            parts = random.choices(self.buffer, k=4)
            x_0, shifted, k, s = (torch.cat(column) for column in zip(*parts, strict=True))
            if self.config.training.r_augment:
                x_0, shifted = moved_alike(x_0, shifted)
            omega.zero_grad()
            self.own_objective.reconstruction(x_0, shifted, k, s).backward()
            self.world.average_gradients(parameters)
            omega.step()

    def _finite(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Return terms as numbers, the same ones in every process."""
        record = self.world.average(terms)
        for name, value in record.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value}")
        return record

    def refuse_not_finite(self) -> None:
        """Check that no weight and no moment of an optimizer has become infinite.

        Raises:
            FloatingPointError: If one has.
        """
        nets = (self.discovery.shift_block, self.discovery.R, self.discovery.D)
        moments = [m for each in self.optimizers.values() for own in each.state.values()
                   for m in own.values()]  # fmt: skip
        for tensor in (*(p for net in nets for p in net.parameters()), *moments):
            if isinstance(tensor, Tensor) and not tensor.isfinite().all():
                raise FloatingPointError("A weight or a moment of Adam is not finite")

    def state(self, step: int) -> dict[str, Any]:
        """Return everything a resumed run needs; in rank 0, of all processes.

        There is no state of random streams in it: what step i draws depends on the run's seed, on i
        and on the rank alone.
        """
        discovery, buffers = self.discovery, self.world.gather(_on_cpu(self.buffer))
        return {
            "format": FORMAT,
            "step": step,
            "shift_block": discovery.shift_block.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "R": discovery.R.state_dict(),
            "D": discovery.D.state_dict(),
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "buffers": [[list(pair) for pair in buffer] for buffer in buffers],
        }

    def begin_with(self, state: dict[str, Any]) -> None:
        """Load the networks and optimizers of another run's checkpoint; this run's step is 0.

        The pairs that R was trained on again are left behind: they were sampled otherwise. The
        directions are multiplied by ``start_scale``. What a published run has not, its
        discriminator and the optimizers, begins anew, and so does R where ``state["R"]`` is None.
        Of a shift block with a moving average, a run that keeps none begins with the average.
        """
        if self.average is None and state["average"] is not None:
            state = {**state, "shift_block": averaged(state["average"])}
        if state["R"] is None:
            state = {**state, "R": self.discovery.R.state_dict()}
            if state["optimizers"] is not None:
                own = self.optimizers["omega"].state_dict()
                state["optimizers"] = {**state["optimizers"], "omega": own}
        if state["optimizers"] is None:
            discovery = self.discovery
            discovery.shift_block.load_state_dict(state["shift_block"])
            discovery.R.load_state_dict(state["R"])
            self._begin_average()
        else:
            self.restore({**state, "buffers": [[]]})
        blocks: list[Any] = [self.discovery.shift_block]
        if self.average is not None:
            blocks.append(self.average.module)
        with torch.no_grad():
            for head in (head for block in blocks for head in block.heads):
                head.mul_(self.config.run.start_scale)

    def _begin_average(self) -> None:
        """Let the average be the shift block as it is, not as it was drawn."""
        if self.average is not None:
            self.average.module.load_state_dict(self.discovery.shift_block.state_dict())

    def restore(self, state: dict[str, Any]) -> int:
        """Load what `state` returned; return the next step.

        Other rates hold from here on, if the config has others. Among another number of processes,
        each takes the buffer of the rank that is left over by division.
        """
        load_networks(self.discovery, state)
        self._begin_average()
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        for name, each in self.optimizers.items():
            each.load_state_dict(state["optimizers"][name])
        set_rates(self.optimizers, self.config.rates)
        buffers, device = state["buffers"], self.discovery.device
        mine = buffers[self.world.rank % len(buffers)]
        self.buffer = [
            (x.to(device), y.to(device), k.to(device), s.to(device)) for x, y, k, s in mine
        ]
        return state["step"]


def average_of(discovery: Discovery) -> AveragedModel:
    """Return the moving average of a shift block, ``phi' = ema phi' + (1 - ema) phi``."""
    decay = discovery.config.optimizer.ema
    return AveragedModel(discovery.shift_block, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _on_cpu(buffer: list[Pair]) -> list[Pair]:
    return [(x.cpu(), y.cpu(), k.cpu(), s.cpu()) for x, y, k, s in buffer]
