"""Requests and responses: golden bytes, both sides back to back, and what the Go server does with broken ones."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nri_dranet.pb import nri_pb2, ttrpc_pb2
from nri_dranet.ttrpc.connection import (
    MAX_ERROR_TEXT,
    MAX_UNANSWERED,
    Client,
    Code,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    Server,
    Status,
)
from nri_dranet.ttrpc.frames import (
    MAX_DATA,
    MAX_STREAM,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    Frame,
    FrameReader,
    FrameType,
    LocalProtocolError,
    encode,
)
from nri_dranet.ttrpc.mux import PLUGIN_CONNECTION, RUNTIME_CONNECTION, cut

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

REGISTER = bytes.fromhex(
    "0000003b 00000001 01 00 0a1c6e72692e706b672e6170692e7631616c706861312e52756e74696d65"
    "120e5265676973746572506c7567696e 1a0b0a0570796e657412023130"
)


def request(stream: int, *, service: str = "s", method: str = "m", payload: bytes = b"", flags: int = 0) -> bytes:
    """Return a request frame."""
    message = ttrpc_pb2.Request(service=service, method=method, payload=payload)
    return encode(Frame(stream, FrameType.REQUEST, message.SerializeToString(), flags))


def refusal(server: Server, data: Buffer) -> tuple[int, int, str]:
    """Return stream, code and text of the one refusal that the bytes bring, as the caller reads them."""
    (event,) = server.receive(data)
    assert isinstance(event, RequestRefused)
    (frame,) = FrameReader().receive(event.answer)
    assert isinstance(frame, Frame)
    assert (frame.stream, frame.type) == (event.stream, FrameType.RESPONSE)
    status = ttrpc_pb2.Response.FromString(frame.data).status
    assert Status(status.code, status.message) == event.status
    return event.stream, status.code, status.message


def test_register_plugin_has_the_golden_bytes() -> None:
    """RegisterPlugin of the first stream is, byte for byte, what the Go channel accepts."""
    body = nri_pb2.RegisterPluginRequest(plugin_name="pynet", plugin_idx="10").SerializeToString()
    stream, message = Client().call("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin", body)
    assert (stream, message) == (1, REGISTER)
    assert cut(RUNTIME_CONNECTION, message) == [bytes.fromhex("00000002 00000045") + REGISTER]


def test_the_answer_to_configure_has_the_golden_bytes() -> None:
    """The events stand in field 2 of ConfigureResponse, in a Response without status."""
    server = Server()
    server.receive(request(1))
    message = server.respond(1, nri_pb2.ConfigureResponse(events=7).SerializeToString())
    assert cut(PLUGIN_CONNECTION, message) == [
        bytes.fromhex("00000001 0000000e 00000004 00000001 02 00 12021007"),
    ]


def test_an_unimplemented_method_has_the_golden_bytes() -> None:
    """Code 12 and the method's name: NRI 0.12 falls back to StateChange on exactly that code."""
    server = Server()
    server.receive(request(3))
    message = server.fail(3, Status(Code.UNIMPLEMENTED, "method StateChange"))
    assert cut(PLUGIN_CONNECTION, message) == [
        bytes.fromhex("00000001 00000022 00000018 00000003 02 00 0a16 080c 12126d6574686f642053746174654368616e6765"),
    ]


@settings(deadline=None)
@given(
    calls=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=200), st.booleans()), max_size=8),
    step=st.integers(1, 64),
)
def test_client_and_server_understand_each_other(calls: list[tuple[str, bytes, bool]], step: int) -> None:
    """Calls and answers, good and bad, get through in pieces of any size."""
    client, server = Client(), Server()
    for method, payload, good in calls:
        stream, message = client.call("svc", method, payload, timeout=2)
        events = [e for at in range(0, len(message), step) for e in server.receive(message[at : at + step])]
        assert events == [RequestReceived(stream, "svc", method, payload, 2.0)]
        status = Status(7, method)
        answer = server.respond(stream, payload) if good else server.fail(stream, status)
        found = [e for at in range(0, len(answer), step) for e in client.receive(answer[at : at + step])]
        expected = ResponseReceived(stream, payload, None) if good else ResponseReceived(stream, b"", status)
        assert found == [expected]
        with pytest.raises(LocalProtocolError, match="no unanswered call"):
            server.respond(stream, b"")


def test_answers_may_come_in_any_order() -> None:
    """Each answer finds its call by the stream."""
    client, server = Client(), Server()
    streams = []
    for method in ("a", "b"):
        stream, message = client.call("s", method, b"")
        server.receive(message)
        streams.append(stream)
    assert streams == [1, 3]
    answers = server.respond(3, b"B") + server.respond(1, b"A")
    assert client.receive(answers) == [ResponseReceived(3, b"B", None), ResponseReceived(1, b"A", None)]


def test_no_timeout_and_a_negative_one_mean_none() -> None:
    """timeout_nano absent, or below zero, tells nothing about the time that is left."""
    server = Server()
    (first,) = server.receive(Client().call("s", "m", b"")[1])
    body = ttrpc_pb2.Request(service="s", method="m", timeout_nano=-5).SerializeToString()
    (second,) = server.receive(encode(Frame(3, FrameType.REQUEST, body)))
    assert isinstance(first, RequestReceived)
    assert isinstance(second, RequestReceived)
    assert (first.timeout, second.timeout) == (None, None)


def test_metadata_is_passed_over() -> None:
    """Tracing keys that newer runtimes add do not disturb."""
    body = ttrpc_pb2.Request(service="s", method="m", metadata=[ttrpc_pb2.KeyValue(key="traceparent", value="x")])
    (event,) = Server().receive(encode(Frame(1, FrameType.REQUEST, body.SerializeToString())))
    assert event == RequestReceived(1, "s", "m", b"", None)


def test_server_refuses_an_even_stream() -> None:
    """Even ids belong to the server: code 3 on that stream."""
    assert refusal(Server(), request(2)) == (2, Code.INVALID_ARGUMENT, "stream id must be odd")


def test_server_refuses_a_stream_that_does_not_rise() -> None:
    """An id that was used, or a lower one, is refused with code 3; the next higher one works."""
    server = Server()
    server.receive(request(5))
    for stream in (5, 3):
        assert refusal(server, request(stream)) == (stream, Code.INVALID_ARGUMENT, "stream id must be above 5")
    assert isinstance(server.receive(request(7))[0], RequestReceived)


def test_server_refuses_data_for_an_unknown_stream() -> None:
    """Data where no call waits is refused with code 3."""
    frame = encode(Frame(9, FrameType.DATA, b"x"))
    assert refusal(Server(), frame) == (9, Code.INVALID_ARGUMENT, "data for a stream that takes none")


def test_server_passes_over_data_for_a_call_that_waits() -> None:
    """An answer to the data would be taken for the answer to the call, which would then have two."""
    server = Server()
    server.receive(request(1))
    assert server.receive(encode(Frame(1, FrameType.DATA, b"x", REMOTE_CLOSED))) == []
    assert server.respond(1, b"")


def test_server_refuses_an_undecodable_request() -> None:
    """Bytes that are no Request are refused with code 3."""
    frame = encode(Frame(1, FrameType.REQUEST, b"\xff"))
    assert refusal(Server(), frame) == (1, Code.INVALID_ARGUMENT, "request cannot be decoded")


def test_server_refuses_streaming_calls() -> None:
    """A call that goes on sending is not served; NRI has none."""
    answer = refusal(Server(), request(1, flags=REMOTE_OPEN))
    assert answer == (1, Code.UNIMPLEMENTED, "streaming calls are not served")


def test_server_refuses_a_request_that_is_too_long_and_goes_on() -> None:
    """Code 8 on that stream as soon as the header is read; what follows the long request is served."""
    server = Server()
    head = struct.pack(">IIBB", MAX_DATA + 1, 1, FrameType.REQUEST, 0)
    assert refusal(server, head) == (1, Code.RESOURCE_EXHAUSTED, "request of 4194305 bytes is too long")
    (event,) = server.receive(bytes(MAX_DATA + 1) + request(3))
    assert isinstance(event, RequestReceived)
    assert event.stream == 3


@pytest.mark.parametrize("kind", [FrameType.RESPONSE, 9])
def test_server_passes_over_what_is_no_call(kind: int) -> None:
    """Responses and unknown types, long ones too, are skipped and use up no stream ids."""
    server = Server()
    short = struct.pack(">IIBB", 1, 0xFFFF_FFFF, kind, 0) + b"x"
    long = struct.pack(">IIBB", MAX_DATA + 1, 0xFFFF_FFFF, kind, 0) + bytes(MAX_DATA + 1)
    (event,) = server.receive(short + long + request(1))
    assert isinstance(event, RequestReceived)


def test_server_bounds_the_unanswered_calls() -> None:
    """More calls than can be under way at once are refused with code 8 until one is answered."""
    server = Server()
    for index in range(MAX_UNANSWERED):
        server.receive(request(2 * index + 1))
    stream = 2 * MAX_UNANSWERED + 1
    assert refusal(server, request(stream)) == (stream, Code.RESOURCE_EXHAUSTED, "16 calls are unanswered")
    server.respond(1, b"")
    assert isinstance(server.receive(request(stream + 2))[0], RequestReceived)


def test_server_answers_once() -> None:
    """A second answer, and one to a call that never came, are a mistake of this program."""
    server = Server()
    server.receive(request(1))
    server.respond(1, b"")
    for stream in (1, 7):
        with pytest.raises(LocalProtocolError, match=f"stream {stream} has no unanswered call"):
            server.fail(stream, Status(2, "again"))


def test_an_answer_that_is_too_long_leaves_the_call_open() -> None:
    """After the refusal the call can still be failed, so that the caller need not wait."""
    server = Server()
    server.receive(request(1))
    with pytest.raises(LocalProtocolError, match="allowed are 4194304"):
        server.respond(1, bytes(MAX_DATA))
    assert server.fail(1, Status(Code.INTERNAL, "too long"))


def test_error_texts_are_made_fit_to_send() -> None:
    """A long text is cut, and characters that UTF-8 cannot carry are replaced."""
    client, server = Client(), Server()
    for text, expected in (("x" * 5000, "x" * MAX_ERROR_TEXT), ("name \udcff", "name ?")):
        stream, message = client.call("s", "m", b"")
        server.receive(message)
        (answer,) = client.receive(server.fail(stream, Status(2, text)))
        assert answer.status == Status(2, expected)


def test_client_refuses_a_request_that_is_too_long() -> None:
    """Nothing is sent and no stream id is used up."""
    client = Client()
    with pytest.raises(LocalProtocolError, match="allowed are 4194304"):
        client.call("s", "m", bytes(MAX_DATA))
    assert client.call("s", "m", b"")[0] == 1


def test_client_runs_out_of_streams() -> None:
    """Stream ids are never used twice: after the last the connection is used up."""
    client = Client()
    client._next = MAX_STREAM
    assert client.call("s", "m", b"")[0] == MAX_STREAM
    with pytest.raises(LocalProtocolError, match="no stream ids left"):
        client.call("s", "m", b"")


def test_a_timeout_is_never_sent_as_none() -> None:
    """A time that is as good as over still travels as one nanosecond, because zero means no limit."""
    _, message = Client().call("s", "m", b"", timeout=0.0)
    (frame,) = FrameReader().receive(message)
    assert isinstance(frame, Frame)
    assert ttrpc_pb2.Request.FromString(frame.data).timeout_nano == 1


def test_client_passes_over_what_nobody_waits_for() -> None:
    """Answers to abandoned or unknown calls and requests of the peer are dropped."""
    client = Client()
    stream, _ = client.call("s", "m", b"")
    answer = encode(Frame(stream, FrameType.RESPONSE, b""))
    assert client.receive(request(stream)) == []
    client.abandon(stream)
    assert client.receive(answer + encode(Frame(99, FrameType.RESPONSE, b""))) == []


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (encode(Frame(1, FrameType.DATA, b"x")), Code.INTERNAL, "data in answer to a unary call"),
        (encode(Frame(1, FrameType.RESPONSE, b"\xff")), Code.INTERNAL, "response cannot be decoded"),
        (struct.pack(">IIBB", MAX_DATA + 9, 1, 2, 0), Code.RESOURCE_EXHAUSTED, "response of 4194313 bytes is too long"),
    ],
)
def test_a_broken_answer_ends_its_call(data: bytes, code: Code, text: str) -> None:
    """What cannot be an answer fails that call alone, in words."""
    client = Client()
    client.call("s", "m", b"")
    assert client.receive(data) == [ResponseReceived(1, b"", Status(code, text))]


def test_a_status_of_code_zero_is_success() -> None:
    """A present status with code 0 means the same as none."""
    client = Client()
    client.call("s", "m", b"")
    body = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=0, message="fine"), payload=b"p").SerializeToString()
    assert client.receive(encode(Frame(1, FrameType.RESPONSE, body))) == [ResponseReceived(1, b"p", None)]


@settings(deadline=None)
@given(data=st.binary(max_size=500))
def test_no_bytes_make_either_side_fail(data: bytes) -> None:
    """Whatever a peer sends is answered, reported or passed over: nothing is raised."""
    client = Client()
    client.call("s", "m", b"")
    client.receive(data)
    Server().receive(data)
