"""A netlink socket to the kernel: requests out in one call, all answers in. Of every netlink protocol.

The kernel works on requests inside ``send`` and has queued the acknowledgements when it returns; only the parts of a
dump are made while they are read. Source of the facts: ``net/netlink/af_netlink.c``, netlink(7).
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nri_dranet.netlink import codec
from nri_dranet.netlink.codec import Message, NetlinkError, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from nri_dranet.netlink.namespaces import NetNs

SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12

_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

# Limits of what the kernel may queue, no memory taken beforehand: 32 MiB are the acknowledgements of 20,000 requests.
# Events are held to less: whoever is root in a pod can cause as many as he likes, and lost ones are only looked up.
_RECEIVE_LIMIT: Final = 32 << 20
_EVENT_LIMIT: Final = 4 << 20
_SEND_LIMIT: Final = 8 << 20
# What an acknowledgement and an object cost of the receive limit, the kernel's bookkeeping included.
_ACK_COST: Final = 1536
_OBJECT_COST: Final = 8 << 10

# The kernel fills 32 KiB of a dump at once; only a link with very many virtual functions is larger.
_BUFFER: Final = 64 << 10
_BUFFER_LIMIT: Final = 16 << 20

# A dump is interrupted when what it lists changes meanwhile. Under a storm of changes it must end some time.
DUMP_ATTEMPTS: Final = 10

DEFAULT_TIMEOUT: Final = 10.0

_recv_now = ctypes.PyDLL(None, use_errno=True).recv
_recv_now.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_recv_now.restype = ctypes.c_ssize_t

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_TRUNC


class _Buffer(threading.local):
    """The receive buffer of a thread: sockets are many, threads are few."""

    def __init__(self) -> None:
        self.grow(_BUFFER)

    def grow(self, size: int) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.data))


_buffer = _Buffer()


@dataclass(slots=True)
class Answer:
    """What came for one request: its error, if any, and the messages."""

    request: Request
    error: NetlinkError | None = None
    messages: list[Message] = field(default_factory=list)
    done: bool = False
    again: bool = False
    """It is not whole, and must be asked for once more."""


def open_socket(protocol: int, netns: NetNs | None, *, strict: bool, groups: Sequence[int] = ()) -> socket.socket:
    """Make and set up a netlink socket, inside a namespace where one is given.

    One without groups is closed to everybody but the kernel.

    Raises:
        OSError: the protocol does not exist in this kernel (EPROTONOSUPPORT), or entering is not permitted.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    if netns is None:
        made = socket.socket(socket.AF_NETLINK, kind, protocol)
    else:
        made = netns.socket(socket.AF_NETLINK, kind, protocol)
    try:
        for forced, plain, size in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF, _EVENT_LIMIT if groups else _RECEIVE_LIMIT),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF, _SEND_LIMIT),
        ):
            try:
                made.setsockopt(socket.SOL_SOCKET, forced, size)
            except PermissionError:
                # In a user namespace: as much as the system grants everybody.
                made.setsockopt(socket.SOL_SOCKET, plain, size)
        made.setsockopt(SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        made.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        if strict:
            made.setsockopt(SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        if not groups:
            made.connect((0, 0))
    except BaseException:
        made.close()
        raise
    return made


class KernelSocket:
    """Requests and answers of one netlink protocol in one namespace. Threads may share it; one exchange runs at a time.

    Args:
        protocol: NETLINK_* number.
        netns: where the socket is made; None: where the calling thread is.
        strict: the kernel checks requests fully and filters dumps itself.

    Raises:
        OSError: the socket cannot be made (EPROTONOSUPPORT: this kernel does not have the protocol).
    """

    def __init__(self, protocol: int, netns: NetNs | None = None, *, strict: bool = True) -> None:
        self._socket = open_socket(protocol, netns, strict=strict)
        self._fd = self._socket.fileno()
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._sequence = int(time.monotonic() * 1000) & 0x3FFF_FFFF
        self._stale = False
        self._receive_limit = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.send_calls = 0

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def exchange(self, requests: Sequence[Request], *, timeout: float = DEFAULT_TIMEOUT) -> list[Answer]:
        """Send requests with one call and read all answers. The kernel goes on with the next when one fails.

        A dump may stand last, and is asked for again while the kernel says that it was interrupted. More than one call
        is needed only where a user namespace limits the receive queue (some hundred requests).

        Args:
            requests: what to send, in order.
            timeout: seconds to wait for answers. The time that the kernel spends inside the call is not limited by it:
                nothing can call back a thread that waits for a lock of the kernel.

        Raises:
            ValueError: a dump stands before the last place, or the socket is closed.
            TimeoutError: no answer in time; the text names the request. The socket stays usable.
            NetlinkError: the call as a whole failed (the label is the first request's), or a dump was interrupted
                ``DUMP_ATTEMPTS`` times in a row (EINTR).
        """
        if any(request.dump for request in requests[:-1]):
            raise ValueError("a dump may only stand last in a batch")
        deadline = time.monotonic() + timeout
        with self._lock:
            answers: list[Answer] = []
            for part in _parts(requests, self._receive_limit):
                answers += self._attempt(part, deadline)
            for _ in range(DUMP_ATTEMPTS - 1):
                places = [place for place, answer in enumerate(answers) if answer.again]
                if not places:
                    return answers
                repeated = self._attempt([answers[place].request for place in places], deadline)
                for place, answer in zip(places, repeated, strict=True):
                    answers[place] = answer
            broken = next((answer for answer in answers if answer.again), None)
            if broken:
                why = f"interrupted by changes {DUMP_ATTEMPTS} times in a row"
                raise NetlinkError(errno.EINTR, broken.request.label, why)
        return answers

    def _attempt(self, requests: Sequence[Request], deadline: float) -> list[Answer]:
        if self._fd != self._socket.fileno():
            raise ValueError("the netlink socket is closed")
        if self._stale:
            self._drain()
        first = self._sequence + 1
        self._sequence = (self._sequence + len(requests)) & 0x7FFF_FFFF
        if self._sequence < first:
            first, self._sequence = 1, len(requests)
        data = b"".join([request.encode(first + place) for place, request in enumerate(requests)])
        self.send_calls += 1
        self._stale = True
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, requests[0].label) from error
        answers = [Answer(request) for request in requests]
        self._collect(answers, first, deadline)
        return answers

    def _collect(self, answers: list[Answer], first: int, deadline: float) -> None:
        waiting = len(answers)
        # While no dump runs, reading takes a microsecond and never waits, so that the GIL is better kept.
        keep_gil = not answers[-1].request.dump
        while waiting:
            chunk, whole = self._receive(answers, deadline, keep_gil=keep_gil)
            if whole:
                for message in codec.messages(chunk):
                    place = message.sequence - first
                    if 0 <= place < len(answers):
                        waiting -= _take(answers[place], message)
                continue
            place = codec.u32(chunk[8:12]) - first
            if 0 <= place < len(answers) and not answers[place].done:
                # Only what was asked for is ever so large, never the answer to a change: asking again is safe.
                answers[place].again = True
                if answers[place].request.dump:
                    # Its end may have been in what was cut off. What may still come is drained before the next request.
                    return
        self._stale = False

    def _receive(self, answers: list[Answer], deadline: float, *, keep_gil: bool) -> tuple[bytes, bool]:
        """Give what one call reads, and whether it was whole; if not, the buffer has grown."""
        buffer = _buffer
        while True:
            size = len(buffer.data)
            try:
                if keep_gil:
                    count = _recv_now(self._fd, buffer.address, size, _FLAGS)
                    number = ctypes.get_errno() if count < 0 else 0
                else:
                    count, number = self._socket.recv_into(buffer.data, size, _FLAGS), 0
            except OSError as error:
                count, number = -1, error.errno or errno.EIO
            if count > size:
                if count > _BUFFER_LIMIT:
                    raise NetlinkError(errno.EMSGSIZE, _open_label(answers), f"a message of {count} bytes")
                start = bytes(buffer.view[: codec.HEADER_SIZE])
                buffer.grow(count + (-count % 4096))
                return start, False
            if count > 0:
                return bytes(buffer.view[:count]), True
            if number == errno.EINTR:
                continue
            if number not in {errno.EAGAIN, 0}:
                raise NetlinkError(number, _open_label(answers), "answers were lost" if number == errno.ENOBUFS else "")
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._poll.poll(remaining * 1000):
                raise TimeoutError(f"{_open_label(answers)}: the kernel did not answer in time")

    def _drain(self) -> None:
        # Answers that nobody waits for any more, the rest of a dump among them: while it runs, no other can be started.
        # A dump that never ends cannot be told from one; the bound is more than the largest system has.
        for _ in range(10_000):
            try:
                if not self._socket.recv(_BUFFER, socket.MSG_DONTWAIT):
                    break
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in {errno.ENOBUFS, errno.EINTR}:
                    raise
        self._stale = False


def _parts(requests: Sequence[Request], limit: int) -> Iterator[Sequence[Request]]:
    """Cut a batch so that the answers to each part fit the receive queue."""
    start = cost = 0
    for place, request in enumerate(requests):
        # The two low bits of a rtnetlink type: new, delete, get, set. A dump is made as it is read.
        more = _ACK_COST + (_OBJECT_COST if request.type & 3 == _GET and not request.dump else 0)
        if cost + more > limit and place > start:
            yield requests[start:place]
            start, cost = place, 0
        cost += more
    if start < len(requests):
        yield requests[start:]


_GET: Final = 2


def _take(answer: Answer, message: Message) -> bool:
    """Give a message to its answer; tell whether this ended it."""
    if message.flags & codec.NLM_F_DUMP_INTR and answer.request.dump:
        answer.again = True
    if message.type == codec.NLMSG_NOOP or answer.done:
        return False
    if message.type in {codec.NLMSG_ERROR, codec.NLMSG_DONE}:
        answer.error = codec.error_of(message, answer.request.label)
        answer.done = True
        return True
    if message.type == codec.NLMSG_OVERRUN:
        answer.error = NetlinkError(errno.EOVERFLOW, answer.request.label, "data were lost")
        answer.done = True
        return True
    answer.messages.append(message)
    return False


def _open_label(answers: list[Answer]) -> str:
    return next((answer.request.label for answer in answers if not answer.done), "netlink")
