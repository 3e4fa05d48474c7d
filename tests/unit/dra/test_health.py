"""The health of devices as kubelet hears it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.dra.health import Health, HealthService, Status
from nri_dranet.dra.registration import PluginServer
from nri_dranet.pb import dra_health_v1_pb2
from nri_dranet.testing.kubelet import KubeletStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

ETH1, ETH2 = ("node", "eth1"), ("node", "eth2")


@pytest.fixture
def follow(loop: Any, root: Path) -> Iterator[Callable[..., KubeletStandIn]]:
    """Give a function that lets a kubelet follow a health service."""
    made: list[KubeletStandIn] = []

    def start(service: HealthService, versions: Sequence[str] = ("v1", "v1alpha1")) -> KubeletStandIn:
        loop.serve(PluginServer("dra.net", root, [], health=service))
        made.append(KubeletStandIn(root / "plugins_registry", driver="dra.net", health_versions=versions))
        made[-1].start()
        return made[-1]

    yield start
    for kubelet in made:
        kubelet.stop()


@pytest.mark.parametrize("version", ["v1", "v1alpha1"])
def test_kubelet_hears_every_change(follow: Callable[..., KubeletStandIn], version: str) -> None:
    """The full set comes at once, and again after each change; a device that is left out is forgotten."""
    service = HealthService()
    service.set({ETH1: Health(Status.HEALTHY), ETH2: Health(Status.HEALTHY)})
    kubelet = follow(service, [version])
    assert kubelet.wait_registered().health == version
    kubelet.wait_health(lambda found: found.keys() == {ETH1, ETH2})
    service.set({ETH1: Health(Status.UNHEALTHY, "no carrier")})
    found = kubelet.wait_health(lambda found: found.keys() == {ETH1})
    assert (found[ETH1].status, found[ETH1].message) == ("Unhealthy", "no carrier")


def test_nothing_is_said_before_something_is_known(follow: Callable[..., KubeletStandIn]) -> None:
    """The stream is open and silent until the first set; an empty set is said."""
    service = HealthService(lease=0.3)
    kubelet = follow(service)
    kubelet.wait_registered()
    assert kubelet.health_messages == 0
    service.set({})
    kubelet.wait_health(lambda _found: kubelet.health_messages == 1)


def test_what_does_not_change_is_said_again_in_time(follow: Callable[..., KubeletStandIn]) -> None:
    """Within a lease the set comes several times."""
    service = HealthService(lease=0.3)
    service.set({ETH1: Health(Status.HEALTHY)})
    kubelet = follow(service)
    kubelet.wait_health(lambda _found: kubelet.health_messages >= 3)
    assert kubelet.health()[ETH1].status == "Healthy"


def test_the_end_of_the_stream_clears_what_kubelet_knows(follow: Callable[..., KubeletStandIn]) -> None:
    """A closed service ends the streams that run and those that begin."""
    service = HealthService()
    service.set({ETH1: Health(Status.HEALTHY)})
    kubelet = follow(service)
    kubelet.wait_health(lambda found: ETH1 in found)
    service.close()
    kubelet.wait_health(lambda found: not found)
    kubelet.restart()
    kubelet.wait_registered()
    kubelet.wait_health(lambda found: not found)


def test_the_time_of_a_device_is_that_of_its_last_change() -> None:
    """Repeating the same health does not move its time, and a long message is cut as kubelet cuts it."""
    times = iter([100.0, 200.0, 300.0])
    service = HealthService(clock=lambda: next(times))
    service.set({ETH1: Health(Status.HEALTHY), ETH2: Health(Status.HEALTHY)})
    service.set({ETH1: Health(Status.HEALTHY), ETH2: Health(Status.UNHEALTHY, "x" * 2000)})
    service.set({ETH1: Health(Status.HEALTHY), ETH2: Health(Status.UNHEALTHY, "x" * 2000)})
    assert service._devices is not None
    message = service._message(dra_health_v1_pb2, service._devices)
    assert [(each.device.device_name, each.last_updated_time) for each in message.devices] == [
        ("eth1", 100),
        ("eth2", 200),
    ]
    assert [each.health_check_timeout_seconds for each in message.devices] == [30, 30]
    assert len(message.devices[1].message) == 1024
