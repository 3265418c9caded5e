"""Groups of processes that train together and exchange arrays."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from xplstm import _values


class Group(Protocol):
    """Interface of a group of processes that `Shards` needs.

    Every process of a group must call the same methods in the same order.

    Attributes
    ----------
    rank : int
        Number of this process, in ``[0, size)``.
    size : int
        Number of processes.
    """

    @property
    def rank(self) -> int:
        """Number of this process."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Send an array to another process, and receive one of the same size and dtype.

        Parameters
        ----------
        array : numpy.ndarray, shape (n,)
            Contiguous array of any dtype; it must not be modified.
        peer : int
            Rank of the other process, in ``[0, size)``.

        Returns
        -------
        numpy.ndarray, shape (n,)
            Array of the other process.

        Raises
        ------
        Exception
            Any exception, if the other process cannot be reached or does not answer.
        """
        ...

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes, in rank order, on every process.

        Parameters
        ----------
        data : bytes
            Bytes of this process, of any length.

        Returns
        -------
        list of bytes
            One element for each rank.

        Raises
        ------
        Exception
            As for `exchange`.
        """
        ...


class LocalGroup:
    """One process of a group on one machine; use `local_group` to create a group.

    Parameters
    ----------
    rank : int
        Number of this process, in ``[0, size)``.
    links : list of socket
        One socket for each rank; the entry at `rank` is None.
    timeout : float
        Seconds to wait for an answer, above 0.

    Examples
    --------
    See `local_group`.
    """

    def __init__(self, rank: int, links: list[socket.socket | None], timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, len(links), timeout
        self._links = links
        self._family: Iterable[LocalGroup] = ()
        self._process = os.getpid()

    def exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Exchange an array with another process: see `Group`."""
        return np.frombuffer(self._swap(array, peer), array.dtype)

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes: see `Group`."""
        rounds = range(1 << (self.size - 1).bit_length())
        parts = {self.rank ^ step: b"" for step in rounds if self.rank ^ step < self.size}
        for peer in parts:  # in round `step` the ranks r and r ^ step exchange their data
            parts[peer] = data if peer == self.rank else bytes(self._swap(data, peer))
        return [parts[rank] for rank in sorted(parts)]

    def close(self) -> None:
        """Close the connections, so that the other processes notice the loss of this one."""
        for link in self._links:
            if link is not None:
                link.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle this group without the other groups of its process."""
        return self.__dict__ | {"_family": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle this group in a process that was not forked; a socket does not pickle its timeout."""
        self.__dict__.update(state)
        for link in self._links:
            if link is not None:
                link.settimeout(self.timeout)

    def _swap(self, data: Any, peer: int) -> bytearray:
        """Exchange bytes with another process; the lower rank sends first."""
        self._close_inherited()
        link = self._links[peer]
        assert link is not None
        try:
            if self.rank < peer:
                _send(link, data)
            received = _receive(link)
            if self.rank > peer:
                _send(link, data)
        except TimeoutError as error:
            self.close()
            msg = f"no answer within timeout={self.timeout} s"
            raise TimeoutError(msg) from error
        except OSError:
            self.close()  # unblock the processes that wait for this one
            raise
        return received

    def _close_inherited(self) -> None:
        """Close inherited links after a fork; a peer notices a loss only when all copies are closed."""
        if os.getpid() != self._process:
            for other in self._family:
                if other is not self:
                    other.close()
            self._family, self._process = (), os.getpid()


def local_group(size: int, *, timeout: float = 600.0) -> list[LocalGroup]:
    """Create a group of processes on this machine, connected by socket pairs.

    Parameters
    ----------
    size : int
        Number of processes, at least 1.
    timeout : float, optional
        Seconds, above 0, after which a process without an answer counts as lost. The time must be longer
        than one update, one validation and one write of the checkpoint.

    Returns
    -------
    list of LocalGroup
        One group object for each process, to pass to ``multiprocessing.Process`` of any start method. The
        parent process must call ``close()`` on all of them after it has started the processes. Otherwise a
        lost process is noticed only after `timeout`.

    Raises
    ------
    ArgumentError, DTypeError
        If `size` or `timeout` is outside its range or not a number.

    Examples
    --------
    >>> import threading
    >>> import numpy as np
    >>> from xplstm import training
    >>> first, second = training.local_group(2)
    >>> other = threading.Thread(target=lambda: second.exchange(np.asarray([2.0]), 0))
    >>> other.start()
    >>> first.exchange(np.asarray([1.0]), 1)
    array([2.])
    >>> other.join()
    >>> first.close()
    >>> second.close()
    """
    size, timeout = _values.size("size", size), _values.positive("timeout", timeout)
    links: list[list[socket.socket | None]] = [[None] * size for _ in range(size)]
    for low in range(size):
        for high in range(low + 1, size):
            pair = socket.socketpair()
            for link in pair:
                link.settimeout(timeout)
            links[low][high], links[high][low] = pair
    groups = [LocalGroup(rank, own, timeout) for rank, own in enumerate(links)]
    for group in groups:
        group._family = groups
    return groups


class MPIGroup:
    """Group of the processes of an MPI communicator; needs the package mpi4py.

    MPI has no timeout, so the group waits for a process that hangs. A launcher such as ``mpiexec`` ends all
    processes when one process is lost.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        Communicator; ``MPI.COMM_WORLD`` if omitted.

    Raises
    ------
    ImportError
        If mpi4py or an MPI library is missing.

    Examples
    --------
    Started with ``mpiexec -n 4 python train.py``::

        parallel = training.Shards(training.MPIGroup(), 16)
    """

    def __init__(self, comm: Any = None) -> None:
        if comm is None:
            try:
                from mpi4py import MPI
            except ImportError as error:
                msg = "MPIGroup needs the package mpi4py and an MPI library: pip install 'xplstm[mpi]'"
                raise ImportError(msg) from error
            comm = MPI.COMM_WORLD
        self._comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Exchange an array with another process: see `Group`."""
        other = np.empty_like(array)
        self._comm.Sendrecv(array, dest=peer, recvbuf=other, source=peer)
        return other

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Return the sum over all processes, added in the order of the MPI library."""
        total = np.empty_like(array)
        self._comm.Allreduce(array, total)
        return total

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes: see `Group`."""
        sizes = np.empty(self.size, dtype=np.int64)
        self._comm.Allgather(np.asarray([len(data)], dtype=np.int64), sizes)
        every = np.empty(sizes.sum(), dtype=np.uint8)
        self._comm.Allgatherv(np.frombuffer(data, dtype=np.uint8), (every, sizes))
        return [part.tobytes() for part in np.split(every, np.cumsum(sizes)[:-1])]


class TorchGroup:
    """Group of the processes of ``torch.distributed``, with the backend gloo.

    ``torch.distributed.init_process_group`` sets the timeout.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        Process group; the default group if omitted.

    Raises
    ------
    ImportError
        If PyTorch is missing.
    ValueError
        PyTorch's error, if ``torch.distributed`` is not initialised.

    Examples
    --------
    Started with ``torchrun --nproc-per-node 4 train.py``::

        torch.distributed.init_process_group("gloo")
        parallel = training.Shards(training.TorchGroup(), 16)
    """

    def __init__(self, group: Any = None) -> None:
        try:
            import torch
        except ImportError as error:
            msg = "TorchGroup needs the package torch: see https://pytorch.org for how to install it"
            raise ImportError(msg) from error
        import torch.distributed as dist

        self._torch, self._dist, self._group = torch, dist, group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)

    def exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Exchange an array with another process: see `Group`."""
        other = np.empty_like(array)
        ours, theirs = self._torch.from_numpy(array), self._torch.from_numpy(other)
        place = peer if self._group is None else self._dist.get_global_rank(self._group, peer)
        sent = self._dist.isend(ours, place, self._group)
        received = self._dist.irecv(theirs, place, self._group)
        for work in (received, sent):
            work.wait()
        return other

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Return the sum over all processes, added in the order of the backend."""
        total = array.copy()
        self._dist.all_reduce(self._torch.from_numpy(total), group=self._group)
        return total

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes: see `Group`."""
        return _gather_padded(data, self._all_gather)

    def _all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of all ranks, which have one shape."""
        every = [np.empty_like(array) for _ in range(self.size)]
        tensors = [self._torch.from_numpy(a) for a in every]
        self._dist.all_gather(tensors, self._torch.from_numpy(array), self._group)
        return every


class NCCLGroup:
    """Group of the processes of ``cupyx.distributed``, with one GPU each, over NCCL.

    The tests run this class with a substitute for CuPy that has the same signatures. It has never run on a
    GPU.

    Parameters
    ----------
    comm : cupyx.distributed.NCCLBackend
        Result of ``cupyx.distributed.init_process_group(size, rank)``. NCCL has no timeout by default.
    size : int
        Number of processes, at least 1; ``comm`` does not publish it.

    Raises
    ------
    ImportError
        If CuPy is missing.
    ArgumentError, DTypeError
        If `size` is less than 1 or not an integer.

    Examples
    --------
    In each of four processes with its own GPU::

        comm = cupyx.distributed.init_process_group(4, rank)
        parallel = training.Shards(training.NCCLGroup(comm, 4), 16)
    """

    def __init__(self, comm: Any, size: int) -> None:
        import cupy

        self._cupy, self._comm = cupy, comm
        self.rank, self.size = int(comm.rank), _values.size("size", size)

    def exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Exchange an array with another process: see `Group`."""
        ours = self._cupy.asarray(array)
        theirs = self._cupy.empty_like(ours)
        self._comm.send_recv(ours, theirs, peer)
        return np.asarray(theirs.get())

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Return the sum over all processes, added in the order of NCCL."""
        ours = self._cupy.asarray(array)
        total = self._cupy.empty_like(ours)
        self._comm.all_reduce(ours, total, "sum")
        return np.asarray(total.get())

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all processes: see `Group`."""
        return _gather_padded(data, self._all_gather)

    def _all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of all ranks, which have one shape (n,)."""
        ours = self._cupy.asarray(array)
        every = self._cupy.empty((self.size, array.size), dtype=array.dtype)
        self._comm.all_gather(ours, every, array.size)
        return list(every.get())


def _gather_padded(data: bytes, all_gather: Callable[[np.ndarray], list[np.ndarray]]) -> list[bytes]:
    """Gather the bytes of every rank with a function that gathers arrays of equal shape."""
    sizes = [int(size[0]) for size in all_gather(np.asarray([len(data)], dtype=np.int64))]
    padded = np.zeros(max(sizes), dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return [part[:size].tobytes() for part, size in zip(all_gather(padded), sizes, strict=True)]


_LENGTH = 8  # bytes of the length prefix of a message


def _send(link: socket.socket, data: Any) -> None:
    """Send bytes with a length prefix."""
    link.sendall(memoryview(data).nbytes.to_bytes(_LENGTH, "little"))
    link.sendall(data)


def _receive(link: socket.socket) -> bytearray:
    """Return the bytes of one message."""
    length = bytearray(_LENGTH)
    _fill(link, length)
    received = bytearray(int.from_bytes(length, "little"))
    _fill(link, received)
    return received


def _fill(link: socket.socket, buffer: bytearray) -> None:
    """Receive bytes until the buffer is full."""
    left = memoryview(buffer)
    while left:
        count = link.recv_into(left)
        if not count:
            msg = "the other process closed the connection"
            raise ConnectionError(msg)
        left = left[count:]
