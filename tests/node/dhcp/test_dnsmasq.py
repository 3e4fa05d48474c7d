"""The client against a server that others wrote: dnsmasq (Debian: dnsmasq-base, which `make test` installs)."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import pytest

from nri_dranet.dhcp import client
from nri_dranet.dhcp.lease import LeaseRoute
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import AF_INET
from nri_dranet.netlink.model import Address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nri_dranet.dhcp.lease import Lease
    from tests.node.dhcp.conftest import Wire

ID = b"\xff\0\0\0\1client"
FIXED_MAC = "02:00:00:00:00:77"


@dataclass(frozen=True)
class Dnsmasq:
    """The server: the file in which it keeps its leases, and what it says from now on."""

    leases: Path
    log: IO[str]


@pytest.fixture
def dnsmasq(wire: Wire, tmp_path: Path) -> Iterator[Dnsmasq]:
    """Run dnsmasq in the server's namespace."""
    file = tmp_path / "leases"
    process = subprocess.Popen(
        [
            "nsenter",
            f"--net=/proc/{os.getpid()}/fd/{wire.server.fd}",
            "dnsmasq",
            # Stays as it is: in a user namespace it could not become another user.
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=s0",
            "--bind-dynamic",
            "--dhcp-authoritative",
            "--no-ping",
            "--dhcp-range=10.99.0.50,10.99.0.59,255.255.255.0,2m",
            f"--dhcp-host={FIXED_MAC},10.99.0.200",
            "--dhcp-option=121,10.5.0.0/16,10.99.0.2,0.0.0.0/0,10.99.0.1",
            "--dhcp-option=119,a.example.org,b.example.org",
            "--dhcp-option=option:dns-server,10.99.0.53",
            "--dhcp-option=option:domain-name,example.org",
            "--dhcp-option=option:mtu,1400",
            "--dhcp-option=option:T1,45",
            f"--dhcp-leasefile={file}",
            "--pid-file",
            "--log-facility=-",
        ],
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(wire.server.fd,),
    )
    assert process.stderr is not None
    try:
        # It answers from then on.
        for line in process.stderr:
            if "sockets bound exclusively" in line:
                break
        else:
            pytest.fail("dnsmasq did not start")
        yield Dnsmasq(file, process.stderr)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def acquire(wire: Wire, mac: str = "", wanted: str = "") -> Lease:
    """Get a lease on the client's interface."""
    return client.acquire(
        wire.index,
        hardware_address=mac or wire.hardware_address,
        client_id=ID,
        deadline=time.monotonic() + 20,
        netns=wire.client,
        wanted=wanted,
    )


def test_a_lease_lives_from_its_first_to_its_last_message(wire: Wire, dnsmasq: Dnsmasq) -> None:
    """Obtained with all options, asked for again, prolonged in each way, and given back."""
    lease = acquire(wire)
    assert lease.address.startswith("10.99.0.5")
    assert lease.address.endswith("/24")
    assert (lease.server, lease.lifetime, lease.renewal, lease.rebinding) == ("10.99.0.1", 120, 45, 105)
    assert lease.routes == (
        LeaseRoute(destination="10.5.0.0/16", gateway="10.99.0.2"),
        LeaseRoute(destination="0.0.0.0/0", gateway="10.99.0.1"),
    )
    assert (lease.dns_servers, lease.domain) == (("10.99.0.53",), "example.org")
    assert (lease.search_domains, lease.mtu) == (("a.example.org", "b.example.org"), 1400)
    assert acquire(wire, wanted=lease.ip).address == lease.address

    again = client.renew(lease, wire.index, deadline=time.monotonic() + 10, netns=wire.client, configured=False)
    assert again.address == lease.address
    with wire.rtnl() as socket:
        socket.request(rtnl.add_address(Address(family=AF_INET, address=lease.ip, prefix_length=24), wire.index))
    again = client.renew(again, wire.index, deadline=time.monotonic() + 10, netns=wire.client)
    assert again.obtained > lease.obtained

    assert lease.ip in dnsmasq.leases.read_text()
    client.release(again, wire.index, netns=wire.client)
    assert any(f"DHCPRELEASE(s0) {lease.ip}" in line for line in dnsmasq.log)


def test_a_reservation_by_ethernet_address_holds(wire: Wire, dnsmasq: Dnsmasq) -> None:
    """The server knows the interface by the address that it will have in the pod, whatever the client identifier."""
    assert acquire(wire, mac=FIXED_MAC).address == "10.99.0.200/24"
    assert FIXED_MAC in dnsmasq.leases.read_text()
