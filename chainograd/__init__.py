"""Gradients through long chains of steps, in the memory of a few."""

from chainograd.chain import CheckpointedChain
from chainograd.errors import (
    CapturedTensorError,
    ChainError,
    ChangedTensorError,
    ReplayError,
    StoreError,
)
from chainograd.metering import Reading, meter
from chainograd.plans.budget import within
from chainograd.plans.plan import Plan, StepCost
from chainograd.plans.planners import binomial, keep_last
from chainograd.preflight.findings import Finding, Findings
from chainograd.report.steps import Report, StepReport
from chainograd.storage.store import Store
from chainograd.truncation.cotangents import clamped, clipped, scaled
from chainograd.truncation.modules import LastStepAgain, ScaledInput, StoppedOutput, random_suffix

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
