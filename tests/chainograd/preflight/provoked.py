"""Runs a preflight and returns what it found."""

import sys
from pathlib import Path

import torch

from chainograd import CheckpointedChain

M = 20


def line(mark):
    """Return ``file:line`` of the line in the caller's file that ends in a comment."""
    file = sys._getframe(1).f_code.co_filename
    lines = Path(file).read_text().splitlines()
    (number,) = [n for n, text in enumerate(lines, 1) if text.endswith(f"  # {mark}")]
    return f"{file}:{number}"


def kinds(step, x=None, *, loss=None, num_steps=M, args=(), **options):
    x = torch.randn(4, 8) if x is None else x
    findings = CheckpointedChain(step, num_steps, **options).check(x, *args, loss=loss)
    return [finding.kind for finding in findings]


def only(step, x=None, **kwargs):
    x = torch.randn(4, 8) if x is None else x
    (finding,) = CheckpointedChain(step, M).check(x, **kwargs)
    assert "\n" not in str(finding)
    return finding


def squares(x):
    return x.square().sum()
