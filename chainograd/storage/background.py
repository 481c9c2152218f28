"""A thread that runs jobs in order, and that accepts jobs from finalizers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# Note [Finalizers]
# A finalizer runs wherever the garbage collector starts, even while its own thread holds a lock. It
# must not take a lock or wait. `queue.SimpleQueue.put` is safe there; an executor's `submit` is
# not, and was seen to hang.

Job = tuple[Callable[..., Any], tuple[Any, ...], "Future[Any] | None"]


class Background:
    """A thread and its queue. The thread ends after `end`, or with the interpreter."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[..., Any], *args: Any) -> Future[Any]:
        """Queue a job, and return the future of its result."""
        future: Future[Any] = Future()
        self._jobs.put((job, args, future))
        return future

    def later(self, job: Callable[..., Any], *args: Any) -> None:
        """Queue a job whose result is not needed. A finalizer may call this."""
        self._jobs.put((job, args, None))

    def end(self) -> None:
        """End the thread after the queued jobs. A finalizer may call this."""
        self._jobs.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
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
        del job, function, args, future  # they would live until the next job
