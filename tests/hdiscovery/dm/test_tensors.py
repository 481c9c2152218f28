"""Files of tensors."""

import os
import stat

import torch
from hdiscovery.dm.tensors import save_tensors


def test_files_of_tensors_are_as_readable_as_any_other_file(tmp_path):
    before = os.umask(0o022)
    try:
        path = save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o644
