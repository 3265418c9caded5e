"""Prefetch batches in a thread while the model computes."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterator

from xplstm.training._data import Found, Place, Source, copy_arrays


@contextlib.contextmanager
def ahead(source: Source, count: int, epochs: int | None) -> Iterator[Callable[[Place], Found]]:
    """Yield the function that returns each batch; a thread prefetches up to `count` batches.

    The thread stops before epoch number `epochs`. It starts with the first call and ends with the block.
    """
    if count == 0:
        yield source.batch
        return
    reader = _Reader(source, count, epochs)
    try:
        yield reader.batch
    finally:
        reader.close()


class _Reader:
    """A thread that reads the batches in order."""

    def __init__(self, source: Source, count: int, epochs: int | None) -> None:
        self._source, self._epochs = source, epochs
        self._free = threading.Semaphore(count)
        self._found: queue.SimpleQueue[tuple[Place, Found | BaseException]] = queue.SimpleQueue()
        self._closed = False
        self._thread: threading.Thread | None = None

    def batch(self, place: Place) -> Found:
        """Return the batch at `place`, which must be the next one; raise the error of the thread, if any."""
        if self._thread is None:
            context = contextvars.copy_context()  # keep the caller's choice of backend
            self._thread = threading.Thread(target=context.run, args=(self._read, place), daemon=True)
            self._thread.start()
        read, found = self._found.get()
        self._free.release()
        if isinstance(found, BaseException):
            raise found
        assert read == place
        return found

    def close(self) -> None:
        """End the thread after its current batch."""
        self._closed = True
        self._free.release()
        if self._thread is not None:
            self._thread.join()

    def _read(self, place: Place) -> None:
        """Read until the end of the data, an error or `close`."""
        while place.epoch != self._epochs:
            self._free.acquire()
            if self._closed:
                return
            try:
                batch = self._source.batch(place)
                batch = batch._replace(inputs=copy_arrays(batch.inputs), targets=copy_arrays(batch.targets))
            except BaseException as error:
                self._found.put((place, error))
                return
            self._found.put((place, batch))
            place = place.next(batch.is_last)
