"""Nodes in files, which a thread writes and reads while the steps run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chainograd.errors import StoreError
from chainograd.state import State
from chainograd.storage.background import Background
from chainograd.storage.packing import Layout, refuse_unstorable, with_tensors, without_tensors


class DiskStorage:
    """Stores states as files in a new folder, which one thread writes and reads.

    Args:
        folder: Where to make the new folder.
        x_T: A state of the chain, to estimate the disk space.
        count: The most states that will be stored at once.

    Raises:
        StoreError: If the folder cannot be written to or has too little space, or if the state
            holds tensors that cannot be stored in files.
    """

    in_sight = False
    waiting = 2  # states that may wait for the thread; more would use memory instead of disk

    def __init__(self, folder: Path, x_T: State, count: int) -> None:
        refuse_unstorable(x_T, repr(str(folder)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            self.folder = Path(tempfile.mkdtemp(prefix="chainograd-", dir=folder))
        except OSError as error:
            raise StoreError(
                f"`store` {str(folder)!r} cannot be written to: {error}. {_WAY_OUT}"
            ) from error
        self.written = 0
        self.thread = Background("chainograd-store")
        self.pending: deque[Future[Any]] = deque()
        _folders[self.folder] = self.thread
        weakref.finalize(self, _remove, self.thread, self.folder).atexit = False
        self._refuse_full(folder, free, x_T, count)

    def _refuse_full(self, folder: Path, free: int, x_T: State, count: int) -> None:
        needed = count * sum(leaf.nbytes for leaf in x_T.tensors)
        if needed > free:
            raise StoreError(
                f"`store` {str(folder)!r} has {free:,} bytes free, but {count} states need "
                f"{needed:,}. {_WAY_OUT}"
            )

    def put(self, index: int, state: State) -> DiskState:
        """Queue a state for the thread, after waiting for the thread if it is too far behind.

        Raises:
            StoreError: If the state holds a tensor that cannot be stored in files.
        """
        refuse_unstorable(state, repr(str(self.folder.parent)))
        while len(self.pending) >= self.waiting:
            self._finish(self.pending.popleft())
        self.written += 1
        node = DiskState(state, self, self.folder / f"{self.written}-state-{index}")
        self.pending.append(node.writing)
        return node

    def settle(self) -> None:
        """Wait until all states are written.

        Raises:
            StoreError: If a state could not be written.
        """
        while self.pending:
            self._finish(self.pending.popleft())

    def close(self) -> None:
        """Remove the folder, and wait until it is removed."""
        _remove(self.thread, self.folder)
        self.thread.join()

    def _finish(self, writing: Future[Any]) -> None:
        try:
            writing.result()
        except OSError as error:
            raise StoreError(
                f"A state could not be written to `store` {str(self.folder.parent)!r}: {error}. "
                f"{_WAY_OUT}"
            ) from error


_WAY_OUT = (
    "Name another folder, or use `store='host'`, or keep fewer nodes with `plan=binomial(…)`."
)


class DiskState:
    """A state in a file.

    Attributes:
        writing: Done when the file is written.
        coming: The tensors that are being read, packed, and the future of their reading.
    """

    def __init__(self, state: State, storage: DiskStorage, path: Path) -> None:
        self.rest, self.storage, self.path = without_tensors(state), storage, path
        self.layouts = [Layout.of(tensor) for tensor in state.tensors]
        pairs = zip(self.layouts, state.tensors, strict=True)
        parts = [layout.packed(tensor).cpu().view(torch.uint8) for layout, tensor in pairs]
        self.writing = storage.thread.submit(_write, path, parts)
        self.coming: tuple[list[Tensor], Future[Any]] | None = None
        weakref.finalize(self, storage.thread.later, _unlink, path).atexit = False

    def prefetch(self) -> None:
        """Start reading the file."""
        if self.coming is None:
            packed = [layout.room(torch.device("cpu")) for layout in self.layouts]
            parts = [flat.view(torch.uint8) for flat in packed]
            self.coming = (packed, self.storage.thread.submit(_read, self.path, parts))

    def load(self) -> State:
        """Return the state, on its device.

        Raises:
            StoreError: If the file is missing or too short.
        """
        self.prefetch()
        assert self.coming is not None
        (packed, reading), self.coming = self.coming, None
        try:
            reading.result()
        except OSError as error:
            raise StoreError(
                f"A state could not be read back from {str(self.path)!r}: {error}. Keep the folder "
                "unchanged until the backward pass is over."
            ) from error
        pairs = zip(self.layouts, packed, strict=True)
        tensors = [layout.unpacked(flat.to(layout.device)) for layout, flat in pairs]
        return with_tensors(self.rest, tensors)


def _write(path: Path, parts: Sequence[Tensor]) -> None:
    with path.open("wb", buffering=0) as file:
        for part in parts:
            rest = part.numpy().data
            while len(rest):
                rest = rest[file.write(rest) :]


def _read(path: Path, parts: Sequence[Tensor]) -> None:
    with path.open("rb", buffering=0) as file:
        for part in parts:
            rest = part.numpy().data
            while len(rest):
                count = file.readinto(rest)
                if not count:
                    raise OSError("the file is shorter than when it was written")
                rest = rest[count:]


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


# Folders in use, which are removed when the interpreter ends.
_folders: dict[Path, Background] = {}


def _remove(thread: Background, folder: Path) -> None:
    thread.later(_remove_now, folder)
    thread.end()


def _remove_now(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _folders.pop(folder, None)


@atexit.register
def _remove_all() -> None:
    for folder, thread in list(_folders.items()):
        _remove(thread, folder)
        thread.join()
