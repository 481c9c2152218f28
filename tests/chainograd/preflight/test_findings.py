"""A finding is one line, with its step and its place."""

import torch
import torch.nn.functional as F

from chainograd import CheckpointedChain, Finding
from tests.chainograd.preflight.provoked import M


def test_findings_print_as_a_line_each_with_their_step_and_place():
    finding = Finding("noise", 3, "step.py:7", "Draws.")

    assert str(finding) == "noise (step 3, step.py:7): Draws."
    assert str(Finding("refused", None, None, "No.")) == "refused: No."
    w = torch.ones(8, requires_grad=True)
    findings = CheckpointedChain(lambda x, i: F.dropout(w * x.detach()), M).check(torch.ones(8))
    assert str(findings).splitlines() == [str(finding) for finding in findings]
    assert len(findings) == 2
