"""Requests and responses of one ttrpc connection, without I/O: the server's side and the client's.

Feed a side the bytes that arrived with ``receive``: it returns events. Calls and answers are returned as bytes to
send, one whole message each. Unary calls only: NRI has no others.

What the peer does wrong within a stream is answered on that stream (server) or ends that call (client), as in Go. It
never ends the connection, and it never raises. A wrong use by this program raises ``LocalProtocolError``.

Source of the facts: containerd/ttrpc, ``server.go`` and ``client.go``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from nri_dranet.pb import ttrpc_pb2
from nri_dranet.ttrpc.frames import (
    MAX_STREAM,
    REMOTE_OPEN,
    Frame,
    FrameReader,
    FrameType,
    LocalProtocolError,
    Oversized,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # in typeshed from 3.12 on

# A container runtime has one call at a time under way. More than a few unanswered ones are a peer that has gone wild;
# each may hold four mebibytes.
MAX_UNANSWERED: Final = 16

# An error text goes into the runtime's log and into an Event of the pod. Longer ones are cut off by those anyway.
MAX_ERROR_TEXT: Final = 2048

_NANOSECONDS: Final = 1e9


class Code(enum.IntEnum):
    """The codes of gRPC that are used here."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended badly.

    Attributes:
        code: A code of gRPC; the peer may send one that ``Code`` does not list. Never 0.
        message: The text for people.
    """

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A call to answer with ``Server.respond`` or ``Server.fail``.

    Attributes:
        stream: What identifies the call.
        service: The full name of the service.
        method: The bare name of the method.
        payload: The encoded request message.
        timeout: Seconds that are left to the caller; None: not told.
    """

    stream: int
    service: str
    method: str
    payload: bytes
    timeout: float | None


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A call that broke the protocol. Send ``answer``; there is nothing more to do.

    Attributes:
        stream: The stream that was used.
        status: What was wrong.
        answer: The message to send to the peer.
    """

    stream: int
    status: Status
    answer: bytes


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The answer to a call.

    Attributes:
        stream: What ``Client.call`` returned.
        payload: The encoded response message, empty on failure.
        status: Why the call failed; None on success.
    """

    stream: int
    payload: bytes
    status: Status | None


class Server:
    """The side that is called.

    ``receive`` belongs to one thread. ``respond`` and ``fail`` may be called by others, once for each request.
    """

    __slots__ = ("_last", "_reader", "_unanswered")

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._last = 0
        self._unanswered: set[int] = set()

    def receive(self, data: Buffer) -> list[RequestReceived | RequestRefused]:
        """Take the next bytes of the connection.

        Args:
            data: What arrived; any number of bytes, cut anywhere.

        Returns:
            The calls that they completed, in order. Responses and unknown types, which a server has no use for, are
            passed over, and so are data for a call that waits: an answer to them would be taken for the call's own.
        """
        events: list[RequestReceived | RequestRefused] = []
        for frame in self._reader.receive(data):
            if frame.type == FrameType.REQUEST:
                events.append(self._request(frame))
            elif frame.type == FrameType.DATA and frame.stream not in self._unanswered:
                events.append(_refuse(frame.stream, Code.INVALID_ARGUMENT, "data for a stream that takes none"))
        return events

    def respond(self, stream: int, payload: bytes) -> bytes:
        """Answer a call.

        Args:
            stream: The call's.
            payload: The encoded response message.

        Returns:
            The message to send.

        Raises:
            LocalProtocolError: The stream has no unanswered call, or the answer is too long; in that case the
                call still waits and can be failed.
        """
        return self._answer(stream, ttrpc_pb2.Response(payload=payload))

    def fail(self, stream: int, status: Status) -> bytes:
        """Answer a call with an error.

        Args:
            stream: The call's.
            status: What went wrong. A long text is cut.

        Returns:
            The message to send.

        Raises:
            LocalProtocolError: The stream has no unanswered call.
        """
        return self._answer(stream, _failure(status))

    def _answer(self, stream: int, response: ttrpc_pb2.Response) -> bytes:
        if stream not in self._unanswered:
            raise LocalProtocolError(f"stream {stream} has no unanswered call")
        message = encode(Frame(stream, FrameType.RESPONSE, response.SerializeToString()))
        self._unanswered.discard(stream)
        return message

    def _request(self, frame: Frame | Oversized) -> RequestReceived | RequestRefused:
        stream = frame.stream
        if stream % 2 == 0:
            return _refuse(stream, Code.INVALID_ARGUMENT, "stream id must be odd")
        if stream <= self._last:
            return _refuse(stream, Code.INVALID_ARGUMENT, f"stream id must be above {self._last}")
        self._last = stream
        if isinstance(frame, Oversized):
            return _refuse(stream, Code.RESOURCE_EXHAUSTED, f"request of {frame.length} bytes is too long")
        if len(self._unanswered) >= MAX_UNANSWERED:
            return _refuse(stream, Code.RESOURCE_EXHAUSTED, f"{MAX_UNANSWERED} calls are unanswered")
        return self._call(frame)

    def _call(self, frame: Frame) -> RequestReceived | RequestRefused:
        stream = frame.stream
        if frame.flags & REMOTE_OPEN:
            return _refuse(stream, Code.UNIMPLEMENTED, "streaming calls are not served")
        try:
            request = ttrpc_pb2.Request.FromString(frame.data)
        except DecodeError:
            return _refuse(stream, Code.INVALID_ARGUMENT, "request cannot be decoded")
        self._unanswered.add(stream)
        timeout = request.timeout_nano / _NANOSECONDS if request.timeout_nano > 0 else None
        return RequestReceived(stream, request.service, request.method, request.payload, timeout)


class Client:
    """The side that calls. Not for several threads at once."""

    __slots__ = ("_next", "_pending", "_reader")

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._next = 1
        self._pending: set[int] = set()

    def call(self, service: str, method: str, payload: bytes, *, timeout: float | None = None) -> tuple[int, bytes]:
        """Begin a call.

        Stream ids must rise on the wire: send the messages in the order in which they were made.

        Args:
            service: The full name of the service.
            method: The bare name of the method.
            payload: The encoded request message.
            timeout: Seconds that the answer may take, told to the server. Nothing here measures it.

        Returns:
            What identifies the call, and the message to send.

        Raises:
            LocalProtocolError: The request is too long, or the connection has used up its stream ids.
        """
        if self._next > MAX_STREAM:
            raise LocalProtocolError("the connection has no stream ids left")
        request = ttrpc_pb2.Request(service=service, method=method, payload=payload)
        if timeout is not None:
            request.timeout_nano = max(1, int(timeout * _NANOSECONDS))
        stream = self._next
        message = encode(Frame(stream, FrameType.REQUEST, request.SerializeToString()))
        self._next += 2
        self._pending.add(stream)
        return stream, message

    def abandon(self, stream: int) -> None:
        """Wait no more for a call. A late answer is thrown away; the protocol has no word for cancelling.

        Args:
            stream: What ``call`` returned.
        """
        self._pending.discard(stream)

    def receive(self, data: Buffer) -> list[ResponseReceived]:
        """Take the next bytes of the connection.

        Args:
            data: What arrived; any number of bytes, cut anywhere.

        Returns:
            The answers that they completed, in order. Frames for calls that nobody waits for, and requests, are passed
            over.
        """
        events = []
        for frame in self._reader.receive(data):
            if frame.stream in self._pending and frame.type != FrameType.REQUEST:
                self._pending.discard(frame.stream)
                events.append(_response(frame))
        return events


def _response(frame: Frame | Oversized) -> ResponseReceived:
    if isinstance(frame, Oversized):
        status = Status(Code.RESOURCE_EXHAUSTED, f"response of {frame.length} bytes is too long")
        return ResponseReceived(frame.stream, b"", status)
    if frame.type == FrameType.DATA:
        return ResponseReceived(frame.stream, b"", Status(Code.INTERNAL, "data in answer to a unary call"))
    try:
        response = ttrpc_pb2.Response.FromString(frame.data)
    except DecodeError:
        return ResponseReceived(frame.stream, b"", Status(Code.INTERNAL, "response cannot be decoded"))
    if response.status.code != Code.OK:
        return ResponseReceived(frame.stream, b"", Status(response.status.code, response.status.message))
    return ResponseReceived(frame.stream, response.payload, None)


def _refuse(stream: int, code: Code, text: str) -> RequestRefused:
    status = Status(code, text)
    message = encode(Frame(stream, FrameType.RESPONSE, _failure(status).SerializeToString()))
    return RequestRefused(stream, status, message)


def _failure(status: Status) -> ttrpc_pb2.Response:
    # A surrogate (a file name that is not UTF-8, say) cannot be encoded; the error must get through all the same.
    text = status.message[:MAX_ERROR_TEXT].encode("utf-8", "replace").decode("utf-8")
    return ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=status.code, message=text))
