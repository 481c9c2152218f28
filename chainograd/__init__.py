"""Gradients through long chains of steps, in the memory of a few."""

from chainograd.budget import within
from chainograd.chain import CheckpointedChain
from chainograd.cotangents import clamped, clipped, scaled
from chainograd.errors import (
    CapturedTensorError,
    ChainError,
    ChangedTensorError,
    ReplayError,
    StoreError,
)
from chainograd.findings import Finding, Findings
from chainograd.metering import Reading, meter
from chainograd.plan import Plan, StepCost
from chainograd.planners import binomial, keep_last
from chainograd.reporting import Report, StepReport
from chainograd.stores import Store
from chainograd.truncation import LastStepAgain, ScaledInput, StoppedOutput, random_suffix

__version__ = "0.1.0"

__all__ = [
    "CapturedTensorError",
    "ChainError",
    "ChangedTensorError",
    "CheckpointedChain",
    "Finding",
    "Findings",
    "LastStepAgain",
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
