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
from chainograd.plan import Plan, StepCost
from chainograd.planners import binomial, keep_last, within
from chainograd.reporting import Report, StepReport
from chainograd.stores import Store

__version__ = "0.1.0"

__all__ = [
    "CapturedTensorError",
    "ChainError",
    "ChangedTensorError",
    "CheckpointedChain",
    "Plan",
    "Reading",
    "ReplayError",
    "Report",
    "StepCost",
    "StepReport",
    "Store",
    "StoreError",
    "binomial",
    "keep_last",
    "meter",
    "within",
]
