"""Links on the real kernel: make, read, change, move."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from nri_dranet.netlink import rtnl
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from nri_dranet.netlink.model import Link
    from nri_dranet.netlink.namespaces import NetNs

Ip = "Callable[..., list[dict[str, Any]]]"


def made(socket: RtnlSocket, *requests: Any) -> None:
    """Carry out requests of which none may fail."""
    assert [reply.error for reply in socket.batch(requests)] == [None] * len(requests)


def link_of(socket: RtnlSocket, name: str) -> Link:
    """Give a link that must be there."""
    found = socket.link(name=name)
    assert found is not None
    return found


def test_a_new_namespace_has_a_loopback_that_is_down(rtnl_socket: RtnlSocket) -> None:
    """A fresh namespace shows exactly its loopback."""
    (found,) = rtnl_socket.links()
    assert (found.index, found.name, found.type, found.up, found.kind) == (1, "lo", 772, False, "")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("veth", {"peer": "other"}),
        ("bridge", {}),
        ("ifb", {}),
        ("vxlan", {"vxlan_id": 42, "vxlan_port": 4789}),
    ],
)
def test_software_links_are_made_and_read(rtnl_socket: RtnlSocket, kind: str, more: dict[str, Any]) -> None:
    """Each kind that this kernel has can be made with index, address and MTU, and is read back so."""
    made(rtnl_socket, rtnl.new_link(kind, "one", index=77, address="02:00:5e:10:00:01", mtu=1400, up=True, **more))
    found = link_of(rtnl_socket, "one")
    assert (found.index, found.kind, found.mtu, found.address) == (77, kind, 1400, "02:00:5e:10:00:01")
    assert found.up
    made(rtnl_socket, rtnl.delete_link(77))
    assert rtnl_socket.link(index=77) is None


def test_a_tap_is_read_with_its_carrier(
    netns: NetNs, rtnl_socket: RtnlSocket, make_tap: Callable[[NetNs, str], int]
) -> None:
    """A tap whose descriptor is open has a carrier when up."""
    make_tap(netns, "tap7")
    made(rtnl_socket, rtnl.set_link(link_of(rtnl_socket, "tap7").index, up=True))
    found = link_of(rtnl_socket, "tap7")
    assert (found.kind, found.carrier) == ("tun", True)


def test_a_macvlan_is_made_in_another_namespace(make_netns: Callable[[], NetNs]) -> None:
    """The parent counts in the socket's namespace, the child appears in the other one and names its parent there."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlSocket(pod) as there:
        made(here, rtnl.new_link("veth", "parent", peer="end"))
        parent = link_of(here, "parent").index
        made(here, rtnl.new_link("macvlan", "child", netns_fd=pod.fd, lower=parent, mode="bridge"))
        child = link_of(there, "child")
        assert (child.kind, child.macvlan_mode, child.lower) == ("macvlan", 4, parent)
        assert child.lower_netnsid == there.nsid(host.fd)
        assert here.link(name="child") is None


def test_the_peer_of_a_veth_is_made_in_another_namespace(make_netns: Callable[[], NetNs]) -> None:
    """Both ends of a veth can be placed."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlSocket(pod) as there:
        made(here, rtnl.new_link("veth", "a", peer="b", peer_netns_fd=pod.fd))
        assert link_of(there, "b").lower == link_of(here, "a").index


def test_kinds_that_the_kernel_lacks_are_refused_with_its_words(rtnl_socket: RtnlSocket) -> None:
    """The kernel's extended acknowledgement is part of the error."""
    with pytest.raises(NetlinkError) as caught:
        rtnl_socket.request(rtnl.new_link("nosuchkind", "x"))
    assert caught.value.errno == errno.EOPNOTSUPP
    assert caught.value.kernel_message == "Unknown device type"
    assert str(caught.value) == "make nosuchkind x: Operation not supported (EOPNOTSUPP): Unknown device type"


def test_modes_are_checked_by_kind() -> None:
    """A mode that the kind does not have is refused before anything is sent."""
    with pytest.raises(ValueError, match="macvlan mode 'l2' is unknown; known are: private, vepa, bridge"):
        rtnl.new_link("macvlan", "x", lower=1, mode="l2")
    with pytest.raises(ValueError, match="veth mode 'bridge' is unknown; known are: none"):
        rtnl.new_link("veth", "x", mode="bridge")


def test_every_setting_is_taken_and_read_back(rtnl_socket: RtnlSocket) -> None:
    """All that ``set_link`` can change, in one message."""
    made(rtnl_socket, rtnl.new_link("veth", "a", peer="b"))
    index = link_of(rtnl_socket, "a").index
    made(
        rtnl_socket,
        rtnl.set_link(
            index,
            name="c",
            up=True,
            mtu=1334,
            address="02:00:5e:10:00:09",
            alias="the other one",
            txqlen=77,
            group=5,
            gso_max_size=40000,
            gro_max_size=50000,
            gso_ipv4_max_size=41000,
            gro_ipv4_max_size=51000,
            addr_gen_mode=1,
            ipv4_conf={"arp_ignore": 2, "arp_announce": 1, "forwarding": 1},
        ),
    )
    found = rtnl_socket.link_and_conf(index)
    assert found is not None
    link, conf = found
    assert (link.name, link.up, link.mtu, link.address, link.alias) == (
        "c",
        True,
        1334,
        "02:00:5e:10:00:09",
        "the other one",
    )
    assert (link.txqlen, link.group, link.addr_gen_mode) == (77, 5, 1)
    assert (link.gso_max_size, link.gro_max_size) == (40000, 50000)
    assert (link.gso_ipv4_max_size, link.gro_ipv4_max_size) == (41000, 51000)
    assert (conf.ipv4["arp_ignore"], conf.ipv4["arp_announce"], conf.ipv4["forwarding"]) == (2, 1, 1)
    made(rtnl_socket, rtnl.set_link(index, up=False, alias=""))
    link = link_of(rtnl_socket, "c")
    assert (link.up, link.alias) == (False, "")


def test_the_settings_are_those_of_the_files(netns: NetNs, rtnl_socket: RtnlSocket) -> None:
    """Each value that netlink gives stands in the file of its name, for both families."""
    made(rtnl_socket, rtnl.new_link("veth", "a", peer="b"))
    conf = rtnl_socket.conf(link_of(rtnl_socket, "a").index)
    assert conf is not None
    assert len(conf.ipv4) >= 30
    assert len(conf.ipv6) >= 45
    files = {}
    with netns.entered():
        for family, values in (("ipv4", conf.ipv4), ("ipv6", conf.ipv6)):
            for name in values:
                try:
                    with open(f"/proc/sys/net/{family}/conf/a/{name}") as file:  # noqa: PTH123
                        files[family, name] = file.read().strip()
                except FileNotFoundError:
                    continue
    assert len(files) > 60
    seen = {key: str(getattr(conf, key[0])[key[1]]) for key in files}
    # An unsigned one (ioam6_id_wide) comes as a number with sign.
    assert {key: value for key, value in seen.items() if value != "-1"} == {
        key: files[key] for key, value in seen.items() if value != "-1"
    }


def test_an_unknown_setting_is_refused() -> None:
    """A setting that the kernel has no number for is an error before anything is sent."""
    with pytest.raises(ValueError, match="ipv4 conf 'arp_ignroe' is unknown; known are forwarding,"):
        rtnl.set_link(1, ipv4_conf={"arp_ignroe": 1})


def test_a_port_joins_and_leaves_its_master(rtnl_socket: RtnlSocket) -> None:
    """``master`` enslaves and frees; the port's kind is read; the dump can be limited to the ports."""
    made(rtnl_socket, rtnl.new_link("bridge", "br"), rtnl.new_link("veth", "a", peer="b"))
    bridge, port = link_of(rtnl_socket, "br").index, link_of(rtnl_socket, "a").index
    made(rtnl_socket, rtnl.set_link(port, master=bridge))
    found = link_of(rtnl_socket, "a")
    assert (found.master, found.slave_kind) == (bridge, "bridge")
    (reply,) = rtnl_socket.batch([rtnl.dump_links(master=bridge)])
    assert [one.name for one in reply.objects if hasattr(one, "name")] == ["a"]
    (reply,) = rtnl_socket.batch([rtnl.dump_links(kind="bridge")])
    assert [one.name for one in reply.objects if hasattr(one, "name")] == ["br"]
    made(rtnl_socket, rtnl.set_link(port, master=0))
    assert link_of(rtnl_socket, "a").master == 0


def test_alternative_names(rtnl_socket: RtnlSocket) -> None:
    """They are added, found, refused when taken, and removed; they may be longer than a name."""
    made(rtnl_socket, rtnl.new_link("veth", "a", peer="b"))
    index = link_of(rtnl_socket, "a").index
    long_name = "a-name-that-is-far-too-long-for-a-name"
    made(rtnl_socket, rtnl.add_altname(index, "enp1s0"), rtnl.add_altname(index, long_name))
    assert link_of(rtnl_socket, "a").altnames == ("enp1s0", long_name)
    assert link_of(rtnl_socket, long_name).index == index
    assert link_of(rtnl_socket, "enp1s0").index == index
    with pytest.raises(NetlinkError) as caught:
        rtnl_socket.request(rtnl.add_altname(index, "b"))
    assert caught.value.errno == errno.EEXIST
    made(rtnl_socket, rtnl.delete_altname(index, "enp1s0"))
    assert link_of(rtnl_socket, "a").altnames == (long_name,)


def test_a_link_moves_under_a_new_name_and_index(make_netns: Callable[[], NetNs]) -> None:
    """One message moves, renames and numbers; all is gone in the old namespace, and comes back the same way."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlSocket(pod) as there:
        made(here, rtnl.new_link("veth", "a", peer="b"))
        index = link_of(here, "a").index
        made(here, rtnl.set_link(index, netns_fd=pod.fd, name="eth0", new_index=4321, mtu=1300, up=True))
        moved = link_of(there, "eth0")
        assert (moved.index, moved.mtu, moved.up) == (4321, 1300, True)
        assert here.link(name="a") is None
        made(there, rtnl.set_link(4321, netns_fd=host.fd, name="a"))
        assert here.link(name="a") is not None


def test_a_refused_value_leaves_the_link_moved(make_netns: Callable[[], NetNs]) -> None:
    """The kernel is not atomic: after a refused MTU the link is in the new namespace all the same, not renamed."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlSocket(pod) as there:
        made(here, rtnl.new_link("veth", "a", peer="b"))
        with pytest.raises(NetlinkError) as caught:
            here.request(rtnl.set_link(link_of(here, "a").index, netns_fd=pod.fd, name="eth0", mtu=70000))
        assert caught.value.errno == errno.EINVAL
        assert caught.value.label.startswith("move link")
        assert here.link(name="a") is None
        assert there.link(name="a") is not None


def test_a_name_taken_there_leaves_the_link_moved_under_its_old_name(make_netns: Callable[[], NetNs]) -> None:
    """The kernel moves under the old name where it can, and renames afterwards: a taken name is found too late."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlSocket(pod) as there:
        made(here, rtnl.new_link("veth", "a", peer="b"))
        made(there, rtnl.new_link("veth", "eth0", peer="x"))
        with pytest.raises(NetlinkError) as caught:
            here.request(rtnl.set_link(link_of(here, "a").index, netns_fd=pod.fd, name="eth0"))
        assert caught.value.errno == errno.EEXIST
        assert here.link(name="a") is None
        assert there.link(name="a") is not None


def test_an_old_name_taken_there_does_not_hinder_a_move_under_a_new_one(make_netns: Callable[[], NetNs]) -> None:
    """Only then the kernel uses the new name in the move itself, and a taken one keeps the link where it is."""
    host, pod = make_netns(), make_netns()
    with RtnlSocket(host) as here, RtnlSocket(pod) as there:
        made(here, rtnl.new_link("veth", "a", peer="b"))
        made(there, rtnl.new_link("veth", "a", peer="x"))
        index = link_of(here, "a").index
        with pytest.raises(NetlinkError) as caught:
            here.request(rtnl.set_link(index, netns_fd=pod.fd, name="x"))
        assert caught.value.errno == errno.EEXIST
        assert here.link(name="a") is not None
        made(here, rtnl.set_link(index, netns_fd=pod.fd, name="eth0"))
        assert there.link(name="eth0") is not None


def test_removing_xdp_from_a_link_without_any_is_no_error(rtnl_socket: RtnlSocket) -> None:
    """Descriptor -1 means: none from now on."""
    made(rtnl_socket, rtnl.new_link("veth", "a", peer="b"))
    index = link_of(rtnl_socket, "a").index
    made(rtnl_socket, rtnl.set_link(index, xdp_fd=-1))
    assert link_of(rtnl_socket, "a").xdp_program_id == 0


def test_links_read_as_pyroute2_reads_them(rtnl_socket: RtnlSocket) -> None:
    """The same bytes give the same values in another implementation."""
    made(
        rtnl_socket,
        rtnl.new_link("veth", "a", peer="b"),
        rtnl.new_link("bridge", "br"),
        rtnl.new_link("vxlan", "vx", vxlan_id=3, vxlan_port=4789),
        rtnl.add_altname(1, "loop"),
    )
    made(
        rtnl_socket, rtnl.set_link(link_of(rtnl_socket, "a").index, master=link_of(rtnl_socket, "br").index, alias="x")
    )
    (answer,) = rtnl_socket.exchange([rtnl.dump_links()])
    assert len(answer.messages) == 5
    for message in answer.messages:
        # The other implementation wants the header too.
        header = (len(message.body) + 16).to_bytes(4, "little") + bytes([16, 0, 2, 0]) + bytes(8)
        other = ifinfmsg(header + message.body)
        other.decode()
        ours = rtnl.parse_link(message.body)
        info = other.get_attr("IFLA_LINKINFO")
        assert (ours.index, ours.type, ours.flags) == (other["index"], other["ifi_type"], other["flags"])
        for field, name in (
            ("name", "IFLA_IFNAME"),
            ("mtu", "IFLA_MTU"),
            ("address", "IFLA_ADDRESS"),
            ("broadcast", "IFLA_BROADCAST"),
            ("txqlen", "IFLA_TXQLEN"),
            ("group", "IFLA_GROUP"),
            ("min_mtu", "IFLA_MIN_MTU"),
            ("max_mtu", "IFLA_MAX_MTU"),
            ("gso_max_size", "IFLA_GSO_MAX_SIZE"),
            ("gro_max_size", "IFLA_GRO_MAX_SIZE"),
            ("promiscuity", "IFLA_PROMISCUITY"),
        ):
            assert getattr(ours, field) == other.get_attr(name), field
        assert ours.operstate.replace("-", "") == other.get_attr("IFLA_OPERSTATE").lower().replace("_", "")
        assert ours.master == (other.get_attr("IFLA_MASTER") or 0)
        assert ours.lower == (other.get_attr("IFLA_LINK") or 0)
        assert ours.alias == (other.get_attr("IFLA_IFALIAS") or "")
        assert ours.kind == ((info.get_attr("IFLA_INFO_KIND") if info else None) or "")
        names = other.get_attr("IFLA_PROP_LIST")
        assert list(ours.altnames) == (names.get_attrs("IFLA_ALT_IFNAME") if names else [])
