"""One thing at a time: what the model does for all who use the page, each in turn."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Tell = Callable[[Any], None]
"""Called by a job with its news, at every step, which is where it can be stopped."""


class Stopped(ValueError):
    """A job that took too long, or that nobody waits for any more."""


class Worker:
    """A thread that does jobs one after another, each for as many seconds as are allowed.

    They would only slow each other down, and their memory would add up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._thread = ThreadPoolExecutor(1, "model")
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop what is being done, at its next step, and do nothing any more."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def do(self, job: Callable[[Tell], Any]) -> Iterator[Any]:
        """The news of a job as they come; the last is what it returns. Whoever closes the iterator stops the job.

        Raises Stopped after too long a time, and what the job raises.
        """
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = threading.Event()

        def work() -> Any:
            end = time.monotonic() + self.seconds

            def tell(item: Any) -> None:
                if left.is_set() or self._closed.is_set():
                    raise Stopped("nobody waits for this any more")
                if time.monotonic() > end:
                    raise Stopped(
                        f"stopped, as it took more than {self.seconds:g} seconds: ask for fewer steps or variants, or "
                        "take a smaller picture"
                    )
                news.put(item)

            return job(tell)

        done = self._thread.submit(work)
        done.add_done_callback(lambda _: news.put(done))
        try:
            while (item := news.get()) is not done:
                yield item
            yield done.result()
        finally:
            left.set()
            done.cancel()
