"""Which changes of a status are Events: once each, with the conditions' reasons, and a word when all is well again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import ClaimFacts, DeviceFacts, ObservedInterface, ObservedRdma, Phase
from nri_dranet.claims.model import ClaimRef, PodRef
from nri_dranet.status.conditions import device_status
from nri_dranet.status.desired import key_of
from nri_dranet.status.news import Failing, News, news, pods_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nri_dranet.status.writer import StatusWriter

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REF = ClaimRef("default", "c1", "u")
POD = PodRef("default", "p", "pu")


def shown(**more: Any) -> ObservedInterface:
    """Return an interface in a pod."""
    return ObservedInterface(name="net1", hardware_address="02:00:00:00:00:01", **more)


class Story:
    """A claim whose devices go through several states; ``told`` are the news of each."""

    def __init__(self) -> None:
        """Begin with a claim of which nothing is said."""
        self.before: Mapping[Any, Any] = {}
        self.failing: Failing = {}

    def told(self, *devices: DeviceFacts) -> list[tuple[str, bool]]:
        """Let the devices be so; return reason and kind of what is told."""
        return [(each.reason, each.warning) for each in self.news(*devices)]

    def news(self, *devices: DeviceFacts) -> list[News]:
        """Let the devices be so; return what is told."""
        entries = [device_status(each, "dra.net", None, NOW) for each in devices]
        found = news(ClaimFacts(ref=REF, devices=devices), self.before, entries, self.failing)
        self.before = {key_of(entry): entry for entry in entries}
        return found


@pytest.fixture
def story() -> Story:
    """Begin a story."""
    return Story()


def test_an_ordinary_life_is_no_news(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """Prepared, attached, given back, for the next pod again: nothing failed, so nothing is told."""
    for phase in (Phase.PREPARED, Phase.ATTACHED, Phase.DETACHED, Phase.ATTACHED, Phase.DETACHED):
        assert story.told(make_device(phase)) == []


@pytest.mark.parametrize("phase", [Phase.PREPARE_FAILED, Phase.ATTACH_FAILED])
def test_of_a_failure_that_is_told_at_each_try_only_the_end_is_news(
    story: Story, make_device: Callable[..., DeviceFacts], phase: Phase
) -> None:
    """Prepare and hook tell it themselves. That it worked in the end is told here, also after a time of waiting."""
    assert story.told(make_device(phase, reason="NameInUse", message="m")) == []
    assert story.told(make_device(Phase.PREPARED)) == []
    (ready,) = story.news(make_device())
    assert (ready.reason, ready.warning) == ("NetworkDeviceReady", False)
    assert ready.message == "device eth1: Ready is True again; it was False with reason NameInUse"
    assert story.told(make_device()) == []


def test_what_the_kernel_shows_is_told_once_and_its_end_too(
    story: Story, make_device: Callable[..., DeviceFacts]
) -> None:
    """With the condition's reason and message; a change of the address is no news."""
    story.told(make_device(interface=shown()))
    (lost,) = story.news(make_device(interface=shown(carrier=False)))
    assert lost == News("NoCarrier", "interface net1 has no carrier: look at cable, switch port or peer", warning=True)
    assert story.told(make_device(interface=shown(carrier=False, addresses=("10.0.0.1/24",)))) == []
    assert story.told(make_device(interface=shown(up=False))) == [("LinkDown", True)]
    assert story.told(make_device(interface=shown())) == [("NetworkReady", False)]


def test_a_device_that_vanished_is_one_warning(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """Two conditions say the same: that is one thing that happened, and one that is over."""
    story.told(make_device())
    assert story.told(make_device(Phase.LOST)) == [("DeviceMissing", True)]
    assert story.told(make_device()) == [("NetworkDeviceReady", False)]


def test_an_rdma_port(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """Its condition is told like the others."""
    port = {state: ObservedRdma(link="mlx5_0", in_pod=True, port_state=state) for state in ("ACTIVE", "DOWN")}
    story.told(make_device(exclusive_rdma=True, rdma=port["ACTIVE"]))
    assert story.told(make_device(exclusive_rdma=True, rdma=port["DOWN"])) == [("RDMAPortDown", True)]
    assert story.told(make_device(exclusive_rdma=True, rdma=port["ACTIVE"])) == [("RDMALinkReady", False)]


def test_a_look_that_failed_hides_no_recovery(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """Unknown in between: the failure that was told before has its end told."""
    story.told(make_device())
    story.told(make_device(interface=shown(carrier=False)))
    assert story.told(make_device(Phase.UNKNOWN)) == []
    assert story.told(make_device(interface=shown())) == [("NetworkReady", False)]


def test_the_end_of_the_pod_ends_the_matter(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """The next pod's good start is no recovery of what the former pod had."""
    story.told(make_device(interface=shown(carrier=False)))
    assert story.told(make_device(Phase.DETACHED)) == []
    assert story.told(make_device(interface=shown())) == []


def test_a_device_that_was_stuck_is_told_to_be_back(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """A detach that failed was told; that the device came home in the end is told too."""
    story.told(make_device())
    assert story.told(make_device(Phase.DETACHED, reason="DeviceNotReturned", message="m")) == []
    assert story.news(make_device(Phase.DETACHED)) == [News("Detached", "device eth1 is back on the node", False)]


def test_a_new_life_knows_from_the_claim_what_was_wrong(make_device: Callable[..., DeviceFacts]) -> None:
    """What is as before is not told again, and its end is told."""
    former = device_status(make_device(interface=shown(carrier=False)), "dra.net", None, NOW)
    story = Story()
    story.before = {key_of(former): former}
    assert story.told(make_device(interface=shown(carrier=False))) == []
    assert story.told(make_device(interface=shown())) == [("NetworkReady", False)]


def test_devices_are_told_apart(story: Story, make_device: Callable[..., DeviceFacts]) -> None:
    """One of two devices vanishes."""
    story.told(make_device(), make_device(name="eth2"))
    (lost,) = story.news(make_device(), make_device(Phase.LOST, name="eth2"))
    assert "eth2" in lost.message


def test_pods_are_those_that_the_claim_is_reserved_for_and_its_holder() -> None:
    """Each once; a PodGroup is no pod (KEP-5729)."""
    claim = {
        "status": {
            "reservedFor": [
                {"resource": "pods", "name": "p", "uid": "pu"},
                {"resource": "pods", "name": "q", "uid": "qu"},
                {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "gu"},
            ]
        }
    }
    found = [POD, PodRef("default", "q", "qu")]
    assert pods_of(ClaimFacts(ref=REF, pod=POD), claim) == found
    assert pods_of(ClaimFacts(ref=REF), claim) == found
    assert pods_of(ClaimFacts(ref=REF, pod=POD), {}) == [POD]


def test_the_writer_tells_claim_and_pod_when_it_is_written(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    make_writer: Callable[..., StatusWriter],
    until: Callable[[Callable[[], Any]], None],
    told: Any,
) -> None:
    """In order, each once, and a restarted writer goes on where the former one stopped."""
    ref = claims.make()
    claims.api.reserve("default", "c1", pod="p", uid="pu")
    writer = make_writer()
    for number, each in enumerate((shown(), shown(carrier=False), shown(carrier=False), shown())):
        if number == 2:
            writer.stop()
            writer = make_writer()
        writer.submit(facts(ref, interface=each))
        until(lambda: writer.pending == 0)  # noqa: B023 - called at once
    lost = ("NoCarrier", "interface net1 has no carrier: look at cable, switch port or peer", True)
    well = ("NetworkReady", "device eth1: NetworkReady is True again; it was False with reason NoCarrier", False)
    assert told.events == [(subject, *each) for each in (lost, well) for subject in (ref, POD)]
