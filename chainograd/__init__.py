"""Exact gradients through long chains of steps, in the memory of a few steps."""

from chainograd.chain import CheckpointedChain
from chainograd.errors import (
    CapturedTensorError,
    ChainError,
    ChangedTensorError,
    ReplayError,
    StoreError,
)
from chainograd.metering import Reading, meter
from chainograd.plans.budget import Budget, within
from chainograd.plans.costs import BlockCost, GraphCost, StepCost
from chainograd.plans.levels import Level
from chainograd.plans.plan import Plan
from chainograd.plans.planners import keep_last
from chainograd.plans.revolve import binomial
from chainograd.preflight.findings import Finding, Findings
from chainograd.report.steps import Report, StepReport
from chainograd.storage.store import Store
from chainograd.truncation.cotangents import clamped, clipped, scaled
from chainograd.truncation.grad_steps import random_suffix
from chainograd.truncation.last_step import LastStepAgain
from chainograd.truncation.modules import ScaledInput, StoppedOutput

__version__ = "0.1.0"

__all__ = [
    "BlockCost",
    "Budget",
    "CapturedTensorError",
    "ChainError",
    "ChangedTensorError",
    "CheckpointedChain",
    "Finding",
    "Findings",
    "GraphCost",
    "LastStepAgain",
    "Level",
    "Plan",
    "Reading",
    "ReplayError",
    "Report",
    "ScaledInput",
    "StepCost",
    "StepReport",
    "StoppedOutput",
    "Store",
    "StoreError",
    "binomial",
    "clamped",
    "clipped",
    "keep_last",
    "meter",
    "random_suffix",
    "scaled",
    "within",
]
