"""Leases as Prepare asks for them, on real links: several at once, in a former pod, with a right missing."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import DeviceFacts, ObservedInterface, Phase
from nri_dranet.claims.model import ClaimRef, DeviceKey, PodRef
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, HostState, PodState
from nri_dranet.claims.record import ClaimRecord, Holder
from nri_dranet.dhcp.errors import DhcpError
from nri_dranet.dhcp.link import running
from nri_dranet.dhcp.message import Kind
from nri_dranet.dra.leasing import Leasing, host_index, wanting
from nri_dranet.dra.turns import Turns
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket
from nri_dranet.reconcile.namespaces import Namespaces
from tests.node.dhcp_server import DhcpServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nri_dranet.netlink.model import Link

UID = "12345678-1234-4234-8234-123456789abc"


def ip(*words: str) -> str:
    """Run ``ip`` and return what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def link(name: str) -> Link:
    """Return an interface as it is now."""
    with RtnlSocket() as socket:
        found = socket.link(name=name)
    assert found is not None
    return found


@pytest.fixture
def nics() -> Iterator[tuple[str, str]]:
    """Make two veth pairs, up, with a server's network at the other end of each."""
    names = ("lease0", "lease1")
    for i, name in enumerate(names):
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ip("addr", "add", f"10.{i + 80}.0.1/24", "dev", f"{name}p")
        for each in (f"{name}p", name):
            ip("link", "set", each, "up")
        for each in (f"{name}p", name):
            with running(link(each).index, deadline=time.monotonic() + 10):
                pass
    yield names
    for name in names:
        subprocess.run(["ip", "link", "del", f"{name}p"], check=False, capture_output=True)


@pytest.fixture
def servers(nics: tuple[str, str]) -> Iterator[list[DhcpServer]]:
    """Run a server at the other end of each."""
    with NetNs.current() as here:
        made = [
            DhcpServer(here, f"{name}p", address=f"10.{i + 80}.0.1/24", pool=[f"10.{i + 80}.0.5"])
            for i, name in enumerate(nics)
        ]
        with made[0], made[1]:
            yield made


@pytest.fixture
def leasing() -> Leasing:
    """Ask with little patience."""
    return Leasing(Namespaces(), Turns(), seconds=3)


def plan(*names: str) -> ClaimPlan:
    """Return a claim's plan that wants a lease for each device."""
    devices = tuple(
        DevicePlan(
            key=DeviceKey("node", name),
            request=name,
            kind=DeviceKind.INTERFACE,
            host=HostState(link=link(name)),
            pod=PodState(name=name, dhcp=True),
        )
        for name in names
    )
    return ClaimPlan(ref=ClaimRef("default", "c", UID), allocation_hash="h", devices=devices)


def test_all_devices_of_a_claim_are_asked_for_at_once(
    leasing: Leasing, nics: tuple[str, str], servers: list[DhcpServer]
) -> None:
    """Each has the lease of its own server, and an identifier of its own."""
    found = leasing.acquire(plan(*nics), None)
    assert {request: lease.address for (_, request), lease in found.items()} == {
        "lease0": "10.80.0.5/24",
        "lease1": "10.81.0.5/24",
    }
    assert len({lease.client_id for lease in found.values()}) == 2
    assert all(server.kinds() == [Kind.DISCOVER, Kind.REQUEST] for server in servers)


def test_one_without_a_lease_gives_all_back(leasing: Leasing, nics: tuple[str, str], servers: list[DhcpServer]) -> None:
    """The text names the device and what came; the other's lease goes back to its server."""
    servers[1].silent = {Kind.DISCOVER}
    with pytest.raises(
        DhcpError, match=r"device lease1, request lease1: no DHCP lease on interface lease1 .* no answer"
    ):
        leasing.acquire(plan(*nics), None)
    servers[0].wait_for(Kind.RELEASE)
    assert servers[0].released == ["10.80.0.5"]


def test_a_device_without_carrier_is_told(leasing: Leasing, nics: tuple[str, str]) -> None:
    """Cable, switch port or peer: that is looked for, and not a server."""
    ip("link", "set", f"{nics[0]}p", "down")
    with pytest.raises(DhcpError, match="device lease0, request lease0: interface lease0 has no carrier after"):
        leasing.acquire(plan(nics[0]), None)


def test_a_device_that_is_gone_is_told(leasing: Leasing, nics: tuple[str, str]) -> None:
    """The kernel's word for it, with the device's name."""
    made = plan(nics[0])
    ip("link", "del", nics[0])
    with pytest.raises(DhcpError, match=r"device lease0.*No such device"):
        leasing.acquire(made, None)
    with pytest.raises(DhcpError, match="device lease0 is not on the host"):
        host_index(made.devices[0])


def test_another_device_of_the_same_name_is_not_taken_for_it(nics: tuple[str, str]) -> None:
    """What has another kind or permanent address is not asked on."""
    made = plan(nics[0]).devices[0]
    assert host_index(made) == link(nics[0]).index
    ip("link", "del", nics[0])
    ip("link", "add", nics[0], "type", "bridge")
    try:
        with pytest.raises(DhcpError, match="is not on the host"):
            host_index(made)
    finally:
        ip("link", "del", nics[0])


def test_a_device_that_its_claims_former_pod_has_is_asked_on_there(
    leasing: Leasing, nics: tuple[str, str], servers: list[DhcpServer]
) -> None:
    """Its next pod's plan is made while it is still there."""
    name = nics[0]
    made = plan(name)
    sleeper = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        ip("link", "set", name, "netns", str(sleeper.pid))
        with NetNs.of_pid(sleeper.pid) as netns, RtnlSocket(netns) as pod:
            seen = pod.link(name=name)
            assert seen is not None
            pod.request(rtnl.set_link(seen.index, up=True))
            device = made.devices[0]
            interface = ObservedInterface(name=name, hardware_address=seen.address, index=seen.index)
            fact = DeviceFacts(key=device.key, request=name, phase=Phase.ATTACHED, interface=interface)
            holder = Holder(pod=PodRef("default", "p", "p1"), sandbox_id="s1", netns_path=f"/proc/{sleeper.pid}/ns/net")
            record = ClaimRecord(plan=made, holder=holder, facts=(fact,))
            (lease,) = leasing.acquire(made, record).values()
        assert lease.address == "10.80.0.5/24"
        with pytest.raises(DhcpError, match="it is still with pod default/p"):
            leasing.acquire(made, ClaimRecord(plan=made, holder=holder))
    finally:
        leasing._namespaces.close()
        sleeper.kill()
        sleeper.wait()
        if sleeper.stdout is not None:
            sleeper.stdout.close()
    assert [device.label for device in wanting(made)] == [name]
    # The other end may have come up a moment later.
    assert set(servers[0].kinds()) == {Kind.DISCOVER, Kind.REQUEST}


WITHOUT = """
import sys
from nri_dranet.dhcp.errors import DhcpError
from tests.node.dra import test_leasing as here
try:
    here.Leasing(here.Namespaces(), here.Turns(), seconds=1).acquire(here.plan("lease0"), None)
except DhcpError as error:
    print(error)
"""


def test_without_the_capability_it_is_said_what_is_missing(
    nics: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    """NET_ADMIN and SYS_ADMIN are not enough for a packet socket."""
    del nics
    root: Path = request.config.rootpath
    capabilities = "-all,+net_admin,+sys_admin"
    command: list[Any] = ["setpriv", f"--bounding-set={capabilities}", "--inh-caps=-all", sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert "DHCP needs the capability NET_RAW" in done.stdout
