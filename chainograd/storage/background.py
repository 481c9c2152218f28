"""A thread that does one thing after another, and that may be given things to do by finalizers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# Note [Finalizers]
# A finalizer runs wherever the collector strikes, even inside a lock that this very thread holds:
# it must not take a lock or wait. `queue.SimpleQueue.put` is made for that; an executor's `submit`
# is not, and was seen to hang.

Job = tuple[Callable[..., Any], tuple[Any, ...], "Future[Any] | None"]


class Background:
    """A thread and its queue. It ends when it is told to, or with the interpreter."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[..., Any], *args: Any) -> Future[Any]:
        """Let the thread do something; return the future of its result."""
        future: Future[Any] = Future()
        self._jobs.put((job, args, future))
        return future

    def later(self, job: Callable[..., Any], *args: Any) -> None:
        """Let the thread do something that nobody waits for. A finalizer may call this."""
        self._jobs.put((job, args, None))

    def end(self) -> None:
        """Let the thread end when all is done. A finalizer may call this."""
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        function, args, future = job
        try:
            result = function(*args)
            if future is not None:
                future.set_result(result)
        except BaseException as error:
            if future is not None:
                future.set_exception(error)
        del job, function, args, future  # or they would live until the next one comes
