"""The exchange with the kernel, against a scripted one: what the real one does rarely."""

from __future__ import annotations

import errno
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.netlink import links, routing, transport
from nri_dranet.netlink.codec import NLM_F_ACK, NLM_F_DUMP, DecodeError, NetlinkError, Request
from nri_dranet.netlink.sockets import LinkCache, RtnlSocket
from nri_dranet.netlink.transport import DUMP_ATTEMPTS, KernelSocket

if TYPE_CHECKING:
    from collections.abc import Callable

DUMP = Request(18, NLM_F_DUMP, bytes(16), "list things")
CHANGE = Request(19, 0, b"abc", "change a thing")
DONE = struct.pack("=i", 0)


def link_body(index: int, name: str) -> bytes:
    """Give the body of a link message."""
    raw = name.encode() + b"\0"
    return struct.pack("=BxHiIIHH", 0, 1, index, 0, 0, 4 + len(raw), 3) + raw + bytes(-len(raw) % 4)


def test_requests_go_out_in_one_call_and_are_told_apart(kernel: Any, ack: Callable[..., bytes]) -> None:
    """Padded, with sequence numbers in a row and an acknowledgement asked for; answers may come in any order."""
    kernel.answer = lambda found: [
        ack(found[1][2], errno.EEXIST, "taken") + ack(found[0][2]),
        ack(found[2][2] + 77, errno.EINVAL),
        ack(found[2][2]),
    ]
    with KernelSocket(0) as made:
        answers = made.exchange([CHANGE, CHANGE, CHANGE])
    assert [answer.error and str(answer.error) for answer in answers] == [
        None,
        "change a thing: File exists (EEXIST): taken",
        None,
    ]
    (call,) = kernel.received
    assert [(kind, flags, body) for kind, flags, _, body in call] == [(19, 1 | NLM_F_ACK, b"abc")] * 3
    assert [sequence - call[0][2] for _, _, sequence, _ in call] == [0, 1, 2]


def test_a_batch_is_cut_by_what_its_answers_cost() -> None:
    """Changes cost little, reads more, and a dump no more than its end; one request is always sent."""
    read = links.get_link(index=1)
    cut = [len(part) for part in transport._parts([CHANGE] * 5 + [read] * 3 + [DUMP], 10_000)]
    assert cut == [5, 1, 1, 1, 1]
    assert [len(part) for part in transport._parts([read] * 2, 1)] == [1, 1]
    assert list(transport._parts([], 1)) == []
    assert [len(part) for part in transport._parts([CHANGE] * 20_000, 64 << 20)] == [20_000]


def test_f23_an_interrupted_dump_is_asked_for_again(kernel: Any, message: Callable[..., bytes]) -> None:
    """What came with the mark is thrown away, also where the mark stands on the end alone."""
    bodies = iter([("old", 0x10, 0), ("older", 0, 0x10), ("new", 0, 0)])

    def answer(found: list[tuple[int, int, int, bytes]]) -> list[bytes]:
        name, first, last = next(bodies)
        sequence = found[0][2]
        return [message(16, 2 | first, sequence, link_body(1, name)), message(3, 2 | last, sequence, DONE)]

    kernel.answer = answer
    with RtnlSocket() as made:
        assert [link.name for link in made.links()] == ["new"]
        assert made.send_calls == 3


def test_only_the_dump_of_a_batch_is_asked_for_again(
    kernel: Any, message: Callable[..., bytes], ack: Callable[..., bytes]
) -> None:
    """Changes are never made twice."""

    def answer(found: list[tuple[int, int, int, bytes]]) -> list[bytes]:
        marked = 0x10 if len(found) == 2 else 0
        acks = [ack(found[0][2])] if len(found) == 2 else []
        return [*acks, message(3, 2 | marked, found[-1][2], DONE)]

    kernel.answer = answer
    with KernelSocket(0) as made:
        made.exchange([CHANGE, DUMP])
    assert [[kind for kind, *_ in call] for call in kernel.received] == [[19, 18], [18]]


def test_a_dump_that_is_always_interrupted_is_an_error(kernel: Any, message: Callable[..., bytes]) -> None:
    """It ends, and says what happened."""
    kernel.answer = lambda found: [message(3, 0x12, found[0][2], DONE)]
    with RtnlSocket() as made:
        with pytest.raises(NetlinkError, match=r"list links: .*interrupted by changes 10 times in a row") as caught:
            made.links()
        assert caught.value.errno == errno.EINTR
        assert made.send_calls == DUMP_ATTEMPTS


def test_no_answer_is_a_timeout_that_names_the_request(kernel: Any, ack: Callable[..., bytes]) -> None:
    """The first open request is named; the socket stays usable, and late answers are thrown away."""
    kernel.answer = lambda found: [ack(found[0][2])]
    other = Request(19, 0, b"", "change another thing")
    with KernelSocket(0) as made:
        with pytest.raises(TimeoutError, match="change another thing: the kernel did not answer in time"):
            made.exchange([CHANGE, other], timeout=0.05)
        late = kernel.received[0][1][2]
        kernel.end.send(ack(late, errno.EPERM))
        assert made.exchange([CHANGE])[0].error is None


def test_a_late_answer_between_send_and_receive_is_not_taken_for_ours(
    kernel: Any, ack: Callable[..., bytes], message: Callable[..., bytes]
) -> None:
    """Foreign sequence numbers and messages without meaning are passed over."""
    kernel.answer = lambda found: [
        ack(found[0][2] - 1, errno.EPERM),
        message(1, 0, found[0][2]),
        ack(found[0][2]) + ack(found[0][2], errno.EPERM),
    ]
    with KernelSocket(0) as made:
        assert made.exchange([CHANGE])[0].error is None


def test_a_message_larger_than_the_buffer_is_asked_for_again(kernel: Any, message: Callable[..., bytes]) -> None:
    """The buffer grows to what is needed."""
    body = link_body(7, "big") + bytes(150_000)

    def answer(found: list[tuple[int, int, int, bytes]]) -> list[bytes]:
        large = struct.pack("=HH", 60_004, 200) + bytes(60_000)
        return [message(16, 2, found[0][2], link_body(7, "big") + large * 3), message(3, 2, found[0][2], DONE)]

    kernel.answer = answer
    transport._buffer.grow(64 << 10)
    with RtnlSocket() as made:
        assert [link.index for link in made.links()] == [7]
        assert made.send_calls == 2
    assert len(transport._buffer.data) > len(body)
    transport._buffer.grow(64 << 10)


def test_only_what_was_cut_off_is_asked_for_again(
    kernel: Any, message: Callable[..., bytes], ack: Callable[..., bytes]
) -> None:
    """A change in the same batch is not made twice."""

    def answer(found: list[tuple[int, int, int, bytes]]) -> list[bytes]:
        replies = []
        for kind, _, sequence, _ in found:
            if kind == 18:
                replies.append(message(16, 0, sequence, link_body(7, "big") + bytes(70_000)))
            replies.append(ack(sequence))
        return replies

    kernel.answer = answer
    transport._buffer.grow(64 << 10)
    with KernelSocket(0) as made:
        answers = made.exchange([CHANGE, links.get_link(index=7), CHANGE])
    assert [len(answer.messages) for answer in answers] == [0, 1, 0]
    assert [[kind for kind, *_ in call] for call in kernel.received] == [[19, 18, 19], [18]]
    transport._buffer.grow(64 << 10)


def test_a_cut_message_of_nobody_is_passed_over(
    kernel: Any, message: Callable[..., bytes], ack: Callable[..., bytes]
) -> None:
    """A late part of an earlier dump does no harm."""
    kernel.answer = lambda found: [message(16, 2, found[0][2] + 9, bytes(70_000)), ack(found[0][2])]
    transport._buffer.grow(64 << 10)
    with KernelSocket(0) as made:
        assert made.exchange([CHANGE])[0].error is None
    transport._buffer.grow(64 << 10)


def test_links_that_did_not_change_are_the_same_objects(kernel: Any, message: Callable[..., bytes]) -> None:
    """With a cache; what is gone is forgotten."""
    names = iter([["a", "b"], ["a", "c"], ["b"]])
    kernel.answer = lambda found: [
        *(message(16, 2, found[0][2], link_body(ord(name), name)) for name in next(names)),
        message(3, 2, found[0][2], DONE),
    ]
    cache = LinkCache()
    with RtnlSocket() as made:
        first, second, third = (made.links(cache) for _ in range(3))
    assert second[0] is first[0]
    assert [link.name for link in second] == ["a", "c"]
    assert third[0] == first[1]
    assert third[0] is not first[1]
    assert len(cache.links) == 1


def test_a_message_without_measure_is_refused(
    kernel: Any, message: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has a bound."""
    monkeypatch.setattr(transport, "_BUFFER_LIMIT", 70_000)
    transport._buffer.grow(64 << 10)
    kernel.answer = lambda found: [message(16, 2, found[0][2], bytes(80_000))]
    with RtnlSocket() as made, pytest.raises(NetlinkError, match="a message of 80016 bytes") as caught:
        made.links()
    assert caught.value.errno == errno.EMSGSIZE


def test_lost_data_are_an_error(kernel: Any, message: Callable[..., bytes]) -> None:
    """NLMSG_OVERRUN ends the request."""
    kernel.answer = lambda found: [message(4, 0, found[0][2])]
    with KernelSocket(0) as made:
        answer = made.exchange([CHANGE])[0]
    assert answer.error is not None
    assert answer.error.errno == errno.EOVERFLOW


def test_garbage_is_a_decode_error(kernel: Any) -> None:
    """A cut message is told, and the socket goes on."""
    kernel.answer = lambda _: [b"\xff" * 21]
    with KernelSocket(0) as made, pytest.raises(DecodeError):
        made.exchange([CHANGE])


def test_a_failing_dump_ends_with_its_error(kernel: Any, message: Callable[..., bytes]) -> None:
    """The number in NLMSG_DONE counts."""
    kernel.answer = lambda found: [message(3, 2, found[0][2], struct.pack("=i", -errno.EPERM))]
    with RtnlSocket() as made, pytest.raises(NetlinkError) as caught:
        made.addresses()
    assert caught.value.errno == errno.EPERM


def test_a_call_that_fails_as_a_whole_names_the_first_request(kernel: Any) -> None:
    """The peer is gone."""
    made = KernelSocket(0)
    made._socket.shutdown(2)
    with pytest.raises(NetlinkError, match="change a thing") as caught:
        made.exchange([CHANGE])
    assert caught.value.errno == errno.EPIPE
    made.close()
    del kernel


def test_a_socket_that_breaks_while_reading_is_an_error(
    kernel: Any, ack: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted reads are repeated; another error names the request that was open."""
    numbers = iter([errno.EINTR, errno.EINTR])
    real = transport._recv_now

    def recv(*words: Any) -> int:
        number = next(numbers, 0)
        if not number:
            return int(real(*words))
        monkeypatch.setattr("ctypes.get_errno", lambda: number)
        return -1

    monkeypatch.setattr(transport, "_recv_now", recv)
    kernel.answer = lambda found: [ack(found[0][2])]
    with KernelSocket(0) as made:
        assert made.fileno() == made._fd
        assert made.exchange([CHANGE])[0].error is None
        numbers = iter([errno.EBADF])
        with pytest.raises(NetlinkError, match="change a thing: Bad file descriptor") as caught:
            made.exchange([CHANGE])
        assert caught.value.errno == errno.EBADF


def test_a_socket_that_breaks_while_draining_is_an_error(kernel: Any) -> None:
    """Lost messages do not matter there, other errors do."""

    class Broken:
        def __init__(self, *numbers: int) -> None:
            self.numbers = list(numbers)

        def recv(self, *_: int) -> bytes:
            raise OSError(self.numbers.pop(0), "broken")

    made = KernelSocket(0)
    real = made._socket
    made._socket = Broken(errno.ENOBUFS, errno.EINTR, errno.EBADF)  # type: ignore[assignment]
    with pytest.raises(OSError, match="broken") as caught:
        made._drain()
    assert caught.value.errno == errno.EBADF
    real.close()
    del kernel


def test_sequence_numbers_start_again(kernel: Any, ack: Callable[..., bytes]) -> None:
    """Before they would reach the sign bit."""
    kernel.answer = lambda found: [ack(sequence) for _, _, sequence, _ in found]
    with KernelSocket(0) as made:
        made._sequence = 0x7FFF_FFFE
        made.exchange([CHANGE, CHANGE, CHANGE])
        made.exchange([CHANGE])
    assert [[sequence for _, _, sequence, _ in call] for call in kernel.received] == [[1, 2, 3], [4]]


def test_other_errors_of_a_link_request_are_raised(kernel: Any, ack: Callable[..., bytes]) -> None:
    """Only ENODEV means that there is no such link."""
    kernel.answer = lambda found: [ack(found[0][2], errno.EPERM)]
    with RtnlSocket() as made:
        for call in (lambda: made.link(index=1), lambda: made.conf(1), lambda: made.routes(table=7)):
            with pytest.raises(NetlinkError) as caught:
                call()
            assert caught.value.errno == errno.EPERM
    kernel.answer = lambda found: [ack(found[0][2], errno.ENODEV)]


def test_slices_let_other_threads_run(
    kernel: Any, message: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between slices of links the GIL is given up."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    kernel.answer = lambda found: [
        b"".join(message(16, 2, found[0][2], link_body(number + 1, f"l{number}")) for number in range(100)),
        message(3, 2, found[0][2], DONE),
    ]
    with RtnlSocket() as made:
        assert len(list(made.iter_links())) == 100
    assert slept == [0] * 3


def test_replies_of_foreign_families_are_left_out(kernel: Any, message: Callable[..., bytes]) -> None:
    """A dump of all families holds multicast routes too."""
    kernel.answer = lambda found: [
        message(routing.RTM_NEWROUTE, 2, found[0][2], struct.pack("=BBBBBBBBI", 128, 0, 0, 0, 0, 0, 0, 5, 0)),
        message(routing.RTM_NEWROUTE, 2, found[0][2], struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 0, 1, 0)),
        message(links.RTM_NEWLINK, 2, found[0][2], struct.pack("=BxHiII", 7, 1, 1, 0, 0)),
        message(999, 2, found[0][2], b""),
        message(3, 2, found[0][2], DONE),
    ]
    with RtnlSocket() as made:
        assert [route.destination for route in made.routes()] == ["0.0.0.0/0"]
