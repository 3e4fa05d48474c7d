"""Attaches against a scripted kernel: VRF, races and refusals that a test machine cannot show."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

from nri_dranet.attach import transaction
from nri_dranet.attach.errors import AttachError
from nri_dranet.attach.locate import is_device, spare_name
from nri_dranet.attach.transaction import Transaction
from nri_dranet.claims.plan import DeviceKind, SubInterface, VrfPlan
from nri_dranet.netlink.codec import NetlinkError

if TYPE_CHECKING:
    from nri_dranet.netlink.model import Link
    from nri_dranet.netlink.sockets import RtnlSocket


class NoNamespace:
    """Stands where a namespace is only handed on."""

    fd = 9


Run = Callable[[Any, Any, Any], Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Attach one plan; the way home is noted, not gone."""

    class Home:
        def __init__(self, host: Any, *_: object, **__: object) -> None:
            self.host = host

        def give_back(self, plan: Any, index: int) -> tuple[bool, list[str]]:
            self.host.done.append(f"home {plan.label} {index}")
            return True, []

        def remove_vrf(self, vrf: VrfPlan) -> list[str]:
            self.host.done.append(f"remove VRF {vrf.name}")
            return []

    monkeypatch.setattr(transaction, "Homeward", Home)

    def attach(plan: Any, host: Any, pod: Any) -> Any:
        sockets = (cast("RtnlSocket", host), cast("Any", NoNamespace()), cast("RtnlSocket", pod))
        work = Transaction(*sockets, cast("Any", NoNamespace()), deadline=time.monotonic() + 60)
        return work.run([plan])

    return attach


def _read_back(make: Any, index: int = 7) -> tuple[str, Link]:
    return (f"read link {index}", make.link(name="net1", index=index, flags=1))


VRF = VrfPlan(name="blue", table=1001)


def test_vrf_is_made_before_the_addresses(make: Any, run: Run, kernel: Any) -> None:
    """A VRF that is not there is made with its table; the interface is its port before it has addresses."""
    host = kernel(("read link 7", make.link()))
    vrf = make.link(name="blue", index=20, kind="vrf", vrf_table=1001)
    pod = kernel(("read link 7", None), ("read link blue", errno.ENODEV), ("read link blue", vrf), _read_back(make))
    run(make.plan(vrf=VRF), host, pod)
    made, enslaved = pod.done.index("make vrf blue"), pod.done.index("change link 7")
    assert made < enslaved < pod.done.index("set link 7 up")


def test_vrf_that_is_there(make: Any, run: Run, kernel: Any) -> None:
    """Devices share a VRF with the same table."""
    host = kernel(("read link 7", make.link()))
    vrf = make.link(name="blue", index=20, kind="vrf", vrf_table=1001)
    pod = kernel(("read link 7", None), ("read link blue", vrf), _read_back(make))
    run(make.plan(vrf=VRF), host, pod)
    assert "make vrf blue" not in pod.done


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"kind": "vrf", "vrf_table": 7}, ("VRFTableDiffers", "has table 7")),
        ({"kind": "bridge"}, ("NameInUse", "no VRF")),
    ],
)
def test_vrf_that_is_another(
    make: Any, run: Run, kernel: Any, there: dict[str, Any], expected: tuple[str, str]
) -> None:
    """A VRF with another table, or another interface of its name, is refused before anything moves."""
    host = kernel(("read link 7", make.link()))
    pod = kernel(("read link 7", None), ("read link blue", make.link(name="blue", index=20, **there)))
    reason, words = expected
    with pytest.raises(AttachError, match=words) as caught:
        run(make.plan(vrf=VRF), host, pod)
    assert caught.value.reason == reason
    assert not any(label.startswith("move") for label in host.done)


def test_vrf_that_was_made_is_removed(make: Any, run: Run, kernel: Any) -> None:
    """When the attach fails later, the VRF that it made goes too, after the device."""
    host = kernel(("read link 7", make.link()))
    vrf = make.link(name="blue", index=20, kind="vrf", vrf_table=1001)
    pod = kernel(
        ("read link 7", None), ("read link blue", errno.ENODEV), ("read link blue", vrf), ("set link 7 up", errno.EIO)
    )
    with pytest.raises(AttachError) as caught:
        run(make.plan(vrf=VRF), host, pod)
    assert caught.value.reason == "LinkUpFailed"
    assert host.done[-2:] == ["home n0 7", "remove VRF blue"]


def test_vrf_that_the_kernel_refuses(make: Any, run: Run, kernel: Any) -> None:
    """A kernel without VRF says so."""
    host = kernel(("read link 7", make.link()))
    pod = kernel(("read link 7", None), ("make vrf blue", errno.EOPNOTSUPP))
    with pytest.raises(AttachError, match="Operation not supported: no") as caught:
        run(make.plan(vrf=VRF), host, pod)
    assert caught.value.reason == "VRFRefused"


def test_index_taken_between_look_and_move(make: Any, run: Run, kernel: Any) -> None:
    """The index is taken meanwhile: the kernel chooses one, and everything is done with that."""
    move = "move link 7 to another namespace as net1"
    host = kernel(("read link 7", make.link()), (move, errno.EBUSY))
    pod = kernel(
        ("read link net1", errno.ENODEV),
        ("read link 7", errno.ENODEV),
        ("read link net1", make.link(name="net1", index=31)),
        _read_back(make, 31),
    )
    (fact,) = run(make.plan(), host, pod)
    assert host.done.count(move) == 2
    assert fact.interface.index == 31
    assert "set link 31 up" in pod.done
    assert "set link 7 up" not in pod.done


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EEXIST, "NameInUse"),
        (errno.ENODEV, "DeviceGone"),
        (errno.EINVAL, "MoveFailed"),
    ],
)
def test_refused_move(make: Any, run: Run, kernel: Any, number: int, reason: str) -> None:
    """A refused move has the kernel's words, and the device is looked for."""
    host = kernel(("read link 7", make.link()), ("move link 7 to another namespace as net1", number))
    with pytest.raises(AttachError, match=r"cannot move into the pod as net1.*: no") as caught:
        run(make.plan(), host, kernel())
    assert caught.value.reason == reason
    assert host.done[-1] == "home n0 0"


CHILD = SubInterface(kind="macvlan", mode="bridge")


def test_a_child_whose_name_the_node_has(make: Any, run: Run, kernel: Any) -> None:
    """A kernel that looks for the name on the node refuses it: the child is made under another one and renamed."""
    plan = make.plan(kind=DeviceKind.CHILD, sub_interface=CHILD)
    spare = spare_name(plan)
    host = kernel(("read link 7", make.link()), ("make macvlan net1", errno.EEXIST))
    made = {"index": 31, "kind": "macvlan", "lower": 7, "lower_netnsid": 0}
    pod = kernel(
        ("read link net1", errno.ENODEV),
        ("read link net1", errno.ENODEV),
        (f"read link {spare}", make.link(name=spare, **made)),
        ("read link net1", make.link(name="net1", **made)),
        _read_back(make, 31),
    )
    (fact,) = run(plan, host, pod)
    assert f"make macvlan {spare}" in host.done
    assert "rename link 31 to net1" in pod.done
    assert fact.interface.name == "net1"
    assert is_device(plan, make.link(name=spare, **made), in_pod=True)


@pytest.mark.parametrize("in_pod", [True, False])
def test_a_child_that_is_there_already(make: Any, run: Run, kernel: Any, in_pod: bool) -> None:
    """The name is the pod's, or it is not the name but, for one, a VLAN that the parent has."""
    again, reason = (0, "NameInUse") if in_pod else (errno.EEXIST, "ChildRefused")
    plan = make.plan(kind=DeviceKind.CHILD, sub_interface=CHILD)
    host = kernel(
        ("read link 7", make.link()),
        ("make macvlan net1", errno.EEXIST),
        (f"make macvlan {spare_name(plan)}", again or None),
    )
    there = make.link(name="net1", index=31) if in_pod else errno.ENODEV
    pod = kernel(("read link net1", errno.ENODEV), ("read link net1", there))
    with pytest.raises(AttachError) as caught:
        run(plan, host, pod)
    assert caught.value.reason == reason


def test_device_vanishes_after_the_move(make: Any, run: Run, kernel: Any) -> None:
    """A device that is gone right after its move, or while it is configured, is gone; both are told."""
    move = "move link 7 to another namespace as net1"
    with pytest.raises(AttachError, match="left the pod again") as caught:
        run(make.plan(), kernel(("read link 7", make.link()), (move, errno.EBUSY)), kernel())
    assert caught.value.reason == "MoveFailed"
    with pytest.raises(AttachError, match="vanished") as caught:
        run(make.plan(), kernel(("read link 7", make.link())), kernel())
    assert caught.value.reason == "DeviceGone"


def test_address_that_the_kernel_does_not_keep(make: Any, run: Run, kernel: Any) -> None:
    """An address that is not there when read back is a failure, whatever the kernel said to its adding."""
    host = kernel(("read link 7", make.link()))
    pod = kernel(("read link 7", None), ("add address 10.0.0.5/24", errno.EEXIST), _read_back(make))
    with pytest.raises(AttachError, match=r"did not keep 10\.0\.0\.5/24") as caught:
        run(make.plan(addresses=(make.address("10.0.0.5/24"),)), host, pod)
    assert caught.value.reason == "AddressRefused"


def test_what_cannot_be_undone_is_told(make: Any, run: Run, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of an attach ends with what its undo left, also when the undo itself fails."""

    class Stuck:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def give_back(self, plan: Any, index: int) -> tuple[bool, list[str]]:
            raise NetlinkError(errno.EIO, f"bring {plan.label} home from {index}")

    monkeypatch.setattr(transaction, "Homeward", Stuck)
    host = kernel(("read link 7", make.link()))
    with pytest.raises(AttachError, match="could not be undone fully: n0: bring n0 home from 7"):
        run(make.plan(), host, kernel(("read link 7", None), ("set link 7 up", errno.EIO)))


def test_value_that_does_not_fit(make: Any, run: Run, kernel: Any) -> None:
    """A plan with a value that no kernel field holds is an error of the attach, and nothing moves."""
    host = kernel(("read link 7", make.link()))
    with pytest.raises(AttachError, match="does not fit") as caught:
        run(make.plan(mtu=2**33), host, kernel())
    assert caught.value.reason == "AttachFailed"
    assert not any(label.startswith("move") for label in host.done)
