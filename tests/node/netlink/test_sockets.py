"""Sockets on the real kernel: batches, dumps under change, events, what remains of a socket's namespace."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import AF_INET, NetlinkError
from nri_dranet.netlink.model import Address, Link, Neighbour, Route
from nri_dranet.netlink.sockets import Event, EventsLostError, RtnlMonitor, RtnlSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.netlink.namespaces import NetNs

V4 = Address(family=AF_INET, address="192.0.2.1", prefix_length=24)


def wait_for_events(monitor: RtnlMonitor, enough: Callable[[list[Event]], bool]) -> list[Event]:
    """Read events until there are enough, at most five seconds."""
    events: list[Event] = []
    poll = select.poll()
    poll.register(monitor.fileno(), select.POLLIN)
    while not enough(events):
        assert poll.poll(5000), f"no event any more, so far {events}"
        events += monitor.receive()
    return events


def test_a_batch_is_one_call(rtnl_socket: RtnlSocket) -> None:
    """Changes, a read and a dump go out together; an error in the middle stops nothing."""
    calls = rtnl_socket.send_calls
    replies = rtnl_socket.batch(
        [
            rtnl.new_link("veth", "eth0", index=10, peer="eth1"),
            rtnl.set_link(10, up=True),
            rtnl.add_address(V4, 10),
            rtnl.add_address(V4, 10),
            rtnl.add_route(Route(family=AF_INET, destination="203.0.113.0/24", gateway="192.0.2.254"), 10),
            rtnl.get_link(index=10),
            rtnl.dump_addresses(10, family=AF_INET),
        ]
    )
    assert rtnl_socket.send_calls == calls + 1
    assert [reply.error and reply.error.errno for reply in replies] == [
        None,
        None,
        None,
        errno.EEXIST,
        None,
        None,
        None,
    ]
    (link,) = replies[5].objects
    assert isinstance(link, Link)
    assert link.up
    (address,) = replies[6].objects
    assert isinstance(address, Address)
    assert address.address == "192.0.2.1"


def test_a_dump_before_the_last_place_is_refused(rtnl_socket: RtnlSocket) -> None:
    """The kernel runs one dump of a socket at a time."""
    with pytest.raises(ValueError, match="a dump may only stand last"):
        rtnl_socket.batch([rtnl.dump_links(), rtnl.get_link(index=1)])


def test_an_empty_batch_is_no_call(rtnl_socket: RtnlSocket) -> None:
    """Nothing is sent for nothing."""
    assert rtnl_socket.batch([]) == []
    assert rtnl_socket.send_calls == 0


def test_a_thousand_requests_are_one_call_and_all_answered(rtnl_socket: RtnlSocket) -> None:
    """The receive queue holds the acknowledgements of a large batch, failed ones with their text included."""
    replies = rtnl_socket.batch([rtnl.get_link(index=1), rtnl.new_link("nosuchkind", "x")] * 1000)
    assert rtnl_socket.send_calls == 1
    assert [reply.error is None for reply in replies] == [True, False] * 1000
    assert {reply.error.kernel_message for reply in replies[1::2] if reply.error} == {"Unknown device type"}


def test_a_small_receive_queue_splits_the_batch(rtnl_socket: RtnlSocket) -> None:
    """Where the system grants little (user namespaces) more calls are made, and nothing is lost."""
    rtnl_socket._receive_limit = 300 * 1536
    replies = rtnl_socket.batch([rtnl.new_link("nosuchkind", "x")] * 1000)
    assert rtnl_socket.send_calls == 4
    assert len(replies) == 1000
    assert all(reply.error for reply in replies)


def test_five_hundred_links_are_listed_once_each(rtnl_socket: RtnlSocket) -> None:
    """A dump of many parts is complete and has no link twice."""
    rtnl_socket.batch([rtnl.new_link("veth", f"v{number}", peer=f"w{number}") for number in range(250)])
    found = rtnl_socket.links()
    assert len(found) == len({link.index for link in found}) == 501
    assert {link.name for link in found} > {"lo", "v0", "w249"}
    calls = rtnl_socket.send_calls
    assert len(list(rtnl_socket.iter_links())) == 501
    assert rtnl_socket.send_calls == calls + 1


def test_dumps_are_whole_while_links_come_and_go(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """Links that stay are in every dump exactly once, whatever happens to others meanwhile."""
    rtnl_socket.batch([rtnl.new_link("veth", f"v{number}", peer=f"w{number}") for number in range(100)])
    stop = threading.Event()

    def churn() -> None:
        with RtnlSocket(netns) as other:
            while not stop.is_set():
                other.batch([rtnl.new_link("bridge", "come", index=5000), rtnl.delete_link(5000)])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        seen = 0
        for _ in range(10):
            try:
                names = [link.name for link in rtnl_socket.links()]
            except NetlinkError as error:
                # So many interruptions in a row are an answer too, and never a half list.
                assert error.errno == errno.EINTR  # noqa: PT017
                continue
            seen += 1
            assert len(names) == len(set(names))
            assert len([name for name in names if name not in {"lo", "come"}]) == 200
        assert seen
    finally:
        stop.set()
        thread.join()


def test_a_dump_that_nobody_waits_for_any_more_is_no_hindrance(rtnl_socket: RtnlSocket) -> None:
    """After a timeout in the middle of a dump the next one is whole: the kernel runs one dump of a socket at a time."""
    rtnl_socket.batch([rtnl.new_link("veth", f"v{number}", peer=f"w{number}") for number in range(100)])
    rtnl_socket._socket.send(rtnl.dump_links().encode(1))
    rtnl_socket._stale = True
    assert len(rtnl_socket.links()) == 201
    assert rtnl_socket._stale is False


def test_answers_that_were_lost_are_an_error(rtnl_socket: RtnlSocket) -> None:
    """With a queue that is too small the kernel drops acknowledgements; the socket goes on afterwards."""
    rtnl_socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with pytest.raises(NetlinkError, match="answers were lost") as caught:
        rtnl_socket.batch([rtnl.get_link(index=1)] * 100)
    assert caught.value.errno == errno.ENOBUFS
    assert rtnl_socket.link(index=1) is not None


def test_in_a_user_namespace_everything_works_with_what_is_granted() -> None:
    """Without the right to force buffer sizes a large batch is answered in full all the same."""
    program = (
        "from nri_dranet.netlink import rtnl\n"
        "from nri_dranet.netlink.sockets import RtnlMonitor, RtnlSocket\n"
        "made = RtnlSocket()\n"
        "RtnlMonitor().close()\n"
        "replies = made.batch([rtnl.get_link(index=1)] * 3000)\n"
        "print([reply.error for reply in replies if reply.error], len(replies), len(made.links()))\n"
        "made.close()\n"
    )
    words = ("unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", program)
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == "[] 3000 1\n"


def test_threads_share_a_socket(rtnl_socket: RtnlSocket) -> None:
    """Answers never reach the wrong thread."""
    rtnl_socket.batch([rtnl.new_link("bridge", f"br{number}", index=100 + number) for number in range(4)])
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(200):
            link = rtnl_socket.link(index=100 + number)
            if link is None or link.name != f"br{number}":
                wrong.append(f"{number}: {link}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_closed_socket_says_so(netns: NetNs) -> None:
    """Using it is a plain error, closing it twice none."""
    made = RtnlSocket(netns)
    made.close()
    made.close()
    with pytest.raises(ValueError, match="the netlink socket is closed"):
        made.links()


def test_without_strict_checks_dumps_are_not_filtered(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """The switch reaches the kernel: only a strict socket filters by link."""
    rtnl_socket.batch([rtnl.new_link("veth", "a", index=10, peer="b"), rtnl.set_link(10, up=True)])
    rtnl_socket.batch([rtnl.add_address(V4, 10), rtnl.set_link(1, up=True)])
    assert {one.index for one in rtnl_socket.addresses(10)} == {10}
    with RtnlSocket(netns, strict=False) as loose:
        assert {one.index for one in loose.addresses(10)} == {1, 10}


def test_nothing_reaches_a_request_socket_but_the_kernel(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """Another process cannot answer in the kernel's place."""
    port = rtnl_socket._socket.getsockname()[0]
    with netns.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as other, pytest.raises(ConnectionRefusedError):
        other.sendto(bytes(16), (port, 0))


def test_events_name_what_happened(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """Links, addresses, routes and neighbours come and go as events with the whole object."""
    groups = ("link", "ipv4-address", "ipv4-route", "neigh")
    with RtnlMonitor(netns, groups=groups) as monitor:
        assert monitor.receive() == []
        neighbour = Neighbour(family=AF_INET, address="192.0.2.9", hardware_address="02:00:00:00:00:01")
        rtnl_socket.batch(
            [
                rtnl.new_link("veth", "a", index=10, peer="b"),
                rtnl.set_link(10, up=True),
                rtnl.add_address(V4, 10),
                rtnl.add_neighbour(neighbour, 10),
                rtnl.delete_neighbour(neighbour, 10),
                rtnl.delete_address(V4, 10),
                rtnl.delete_link(10),
            ]
        )
        events = wait_for_events(
            monitor,
            lambda seen: any(one.kind == "link" and one.gone and one.object.index == 10 for one in seen),  # type: ignore[union-attr]
        )
        seen = {(event.kind, event.gone) for event in events}
        assert seen >= {("link", False), ("address", False), ("neighbour", False), ("address", True), ("link", True)}
        assert any(isinstance(event.object, Address) and event.object.address == "192.0.2.1" for event in events)


def test_an_event_tells_where_a_link_went(make_netns: Callable[[], NetNs]) -> None:
    """A move is an event with the new index and the number of the new namespace."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlMonitor(host) as monitor, RtnlMonitor(pod) as arriving:
        here.batch([rtnl.new_link("veth", "a", index=10, peer="b")])
        here.request(rtnl.set_link(10, netns_fd=pod.fd, name="eth0", new_index=77))
        events = wait_for_events(monitor, lambda seen: any(one.gone for one in seen))
        (gone,) = [one.object for one in events if one.gone]
        assert isinstance(gone, Link)
        assert (gone.index, gone.new_index, gone.new_netnsid) == (10, 77, here.nsid(pod.fd))
        events = wait_for_events(arriving, lambda seen: any(getattr(one.object, "name", "") == "eth0" for one in seen))
        assert {getattr(one.object, "index", 0) for one in events} == {77}


def test_leaving_a_bridge_is_not_taken_for_vanishing(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """The kernel announces it as RTM_DELLINK of the bridge family."""
    rtnl_socket.batch([rtnl.new_link("bridge", "br", index=9), rtnl.new_link("veth", "a", index=10, peer="b")])
    rtnl_socket.batch([rtnl.set_link(10, master=9)])
    with RtnlMonitor(netns) as monitor:
        rtnl_socket.batch([rtnl.set_link(10, master=0), rtnl.set_link(10, alias="last", up=True)])
        events = wait_for_events(monitor, lambda seen: any(getattr(one.object, "alias", "") == "last" for one in seen))
        assert not any(event.gone for event in events)


def test_f23_lost_events_are_reported_and_the_monitor_goes_on(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """ENOBUFS is an error of its own; what happens afterwards is heard again."""
    with RtnlMonitor(netns) as monitor:
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        rtnl_socket.batch([rtnl.new_link("bridge", f"br{number}") for number in range(50)])
        with pytest.raises(EventsLostError):
            monitor.receive()
        while monitor.receive():
            pass
        rtnl_socket.request(rtnl.set_link(1, alias="heard", up=True))
        wait_for_events(monitor, lambda seen: any(getattr(one.object, "alias", "") == "heard" for one in seen))


def test_events_of_other_processes_are_not_believed(netns: NetNs) -> None:
    """Who is root in the pod can send to the group, and is not listened to."""
    with RtnlMonitor(netns) as monitor, netns.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as forger:
        request = rtnl.set_link(1, alias="forged").encode(1)
        forger.bind((0, 0))
        forger.sendto(request, (0, 1))
        assert monitor.receive() == []


def test_unknown_groups_are_refused() -> None:
    """The names that exist are listed."""
    with pytest.raises(ValueError, match=r"unknown event groups lnik; known are link, neigh"):
        RtnlMonitor(groups=("lnik",))


def test_sockets_leave_no_descriptor_behind(netns: NetNs) -> None:
    """Sockets and monitors give back every descriptor, also when made a hundred times."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(100):
        with RtnlSocket(netns) as made, RtnlMonitor(netns):
            made.link(index=1)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
