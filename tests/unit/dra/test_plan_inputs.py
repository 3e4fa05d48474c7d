"""What a plan is made from: devices of the host as they are now, devices in pods as they were."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from nri_dranet.claims.allocation import parse_claim
from nri_dranet.claims.model import DeviceKey
from nri_dranet.claims.plan import DeviceKind, DeviceLimits, DevicePlan, HostState, PodState
from nri_dranet.dra import plan_inputs
from nri_dranet.dra.plan_inputs import PlanInputs
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Feature
from nri_dranet.netlink.model import Link

LINK = Link(index=7, name="eth1", mtu=1500)
LIMITS = DeviceLimits(virtual_function=True, pf_mtu=1400, lower=Link(index=2, name="eth0"), fixed_features={"a": True})


class Kernel:
    """Stands for the host's sockets."""

    def __init__(self) -> None:
        self.features_of: Any = lambda _: {"rx-lro": Feature("rx-lro", changeable=False, active=False, wanted=False)}

    def link(self, *, index: int) -> Link:
        """Return the interface below."""
        return Link(index=index, name="lower")

    def features(self, index: int) -> dict[str, Feature]:
        """Return the features of an interface."""
        found: dict[str, Feature] = self.features_of(index)
        return found

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return a kernel that has eth1."""
    made = Kernel()
    monkeypatch.setattr(plan_inputs._Eyes, "open", classmethod(lambda cls: cls(made, made)))
    monkeypatch.setattr(plan_inputs, "take_snapshot", lambda *_, **__: HostState(link=LINK))
    return made


def inputs(*, held: DevicePlan | None = None) -> PlanInputs:
    """Return the inputs of a node with a virtual function, which is in a pod where a plan says so."""
    records = [SimpleNamespace(held=True, plan=SimpleNamespace(devices=(held,)))] if held else []
    known = SimpleNamespace(name="eth1", link=LINK, pci_address=None, rdma=None, refused="", entry=dict)
    hardware = SimpleNamespace(is_virtual_function=lambda _: True, pf_mtu=lambda _: 1400)
    return PlanInputs(
        SimpleNamespace(device=lambda _: known),
        SimpleNamespace(of_device=lambda _: records),
        hardware,  # type: ignore[arg-type]
        bpf_root="/nowhere",
    )


def read(found: PlanInputs, parameters: Any = None) -> Any:
    """Read eth1 for a claim with a configuration."""
    devices: dict[str, Any] = {"results": [{"request": "r", "driver": "d", "pool": "p", "device": "eth1"}]}
    if parameters is not None:
        devices["config"] = [{"source": "FromClaim", "opaque": {"driver": "d", "parameters": parameters}}]
    meta = {"namespace": "ns", "name": "c", "uid": "u"}
    claim = parse_claim({"metadata": meta, "status": {"allocation": {"devices": devices}}})
    (described,) = found.read(claim, claim.results)[0].values()
    return described


def test_limits_are_read_on_the_host(kernel: Kernel) -> None:
    """Features that cannot be changed are asked for where a configuration sets any."""
    del kernel
    assert read(inputs()).limits == DeviceLimits(virtual_function=True, pf_mtu=1400)
    wanted = {"ethtool": {"features": {"lro": False}}}
    assert read(inputs(), wanted).limits.fixed_features == {"rx-lro": False}


@pytest.mark.parametrize(("number", "told"), [(errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_a_device_that_tells_no_features_is_not_one_that_cannot_be_read(
    kernel: Kernel, number: int, told: bool
) -> None:
    """Only the word that there are none is taken for an answer."""

    def fails(_: int) -> Any:
        raise NetlinkError(number, "get features")

    kernel.features_of = fails
    wanted = {"ethtool": {"features": {"lro": False}}}
    if told:
        assert read(inputs(), wanted).limits.fixed_features == {}
        return
    with pytest.raises(NetlinkError):
        read(inputs(), wanted)


def test_a_device_in_a_pod_has_the_limits_that_were_recorded(kernel: Kernel) -> None:
    """The plan of the next allocation is checked as the former one was."""
    del kernel
    plan = DevicePlan(
        key=DeviceKey("p", "eth1"),
        request="r",
        kind=DeviceKind.INTERFACE,
        host=HostState(link=LINK),
        pod=PodState(name="net1", pinned_bpf_links=(5,)),
        limits=LIMITS,
    )
    found = read(inputs(held=plan))
    assert (found.link, found.limits, found.pinned_bpf_links) == (LINK, LIMITS, (5,))


def test_the_parent_of_a_child_in_a_pod_is_on_the_host(kernel: Kernel) -> None:
    """A shared device stays, so that it is described as it is now."""
    del kernel
    plan = DevicePlan(key=DeviceKey("p", "eth1", "s1"), request="r", kind=DeviceKind.CHILD, limits=LIMITS)
    assert read(inputs(held=plan)).limits == DeviceLimits(virtual_function=True, pf_mtu=1400)
