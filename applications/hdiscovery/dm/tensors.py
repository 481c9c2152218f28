"""Files of tensors, complete or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file; an older file is replaced only when the new file is complete.

    The file gets the permissions of any other file that the user makes. Safetensors itself would
    let nobody but the owner read it.

    Args:
        path: The file; its folder has to be there.
        tensors: What goes in, by name.
        metadata: Text beside the tensors, by name.

    Returns:
        ``path``.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.touch()
    permissions = partial.stat().st_mode
    given = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(given, partial, metadata=None if metadata is None else dict(metadata))
    partial.chmod(permissions)
    return partial.replace(path)
