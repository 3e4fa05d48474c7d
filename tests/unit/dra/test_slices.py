"""What the publisher writes, against the stand-in for the API server."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.dra.slices import Bucket, SlicePublisher, _missing
from nri_dranet.kube.client import KubeClient
from nri_dranet.telemetry import metrics
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
NODE = "/api/v1/nodes/n1"

Device = dict[str, Any]


def device(name: str, **attributes: int) -> Device:
    """Return a device with some numbers."""
    return {"name": name, "attributes": {f"dra.net/{key}": {"int": value} for key, value in attributes.items()}}


def many(count: int) -> list[Device]:
    """Return devices ``d0000`` and so on."""
    return [device(f"d{number:04d}", mtu=1500) for number in range(count)]


class Pool:
    """A publisher, its server, and what shall be published."""

    def __init__(self, server: ApiServerStandIn, client: KubeClient, **options: Any) -> None:
        self.server = server
        self.devices: list[Device] = []
        self.nodes: list[Any] = []
        self.said: list[tuple[str, str]] = []
        options = {"interval": 0.0, **options}
        self.publisher = SlicePublisher(
            client,
            "dra.net",
            "n1",
            collect=lambda: list(self.devices),
            on_node=self.nodes.append,
            event=lambda *words: self.said.append(words),
            **options,
        )

    def slices(self) -> list[dict[str, Any]]:
        """Return the slices of the server by name."""
        return sorted(self.server.objects(SLICES), key=lambda item: str(item["metadata"]["name"]))

    def published(self) -> list[str]:
        """Return the names of all devices that are published."""
        return sorted(each["name"] for item in self.slices() for each in item["spec"].get("devices") or [])

    def writes(self) -> list[str]:
        """Return the requests that changed something, and forget them."""
        found = [request.method for request in self.server.requests if request.method != "GET"]
        self.server.requests.clear()
        return found

    def shape(self) -> list[tuple[int, int, int]]:
        """Return (generation, count, devices) of each slice."""
        return [
            (
                item["spec"]["pool"]["generation"],
                item["spec"]["pool"]["resourceSliceCount"],
                len(item["spec"].get("devices") or []),
            )
            for item in self.slices()
        ]

    def settle(self) -> None:
        """Wait until everything is published and nothing is left to do."""
        until(lambda: self.publisher.settled)

    def publish(self, devices: list[Device]) -> None:
        """Publish other devices."""
        self.devices = devices
        self.publisher.refresh()
        wanted = sorted(json.dumps(one, sort_keys=True) for one in devices)

        def there() -> bool:
            found = [one for item in self.slices() for one in item["spec"].get("devices") or []]
            return sorted(json.dumps(one, sort_keys=True) for one in found) == wanted

        until(there)
        self.settle()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[ApiServerStandIn]:
    """A server with the node."""
    with ApiServerStandIn() as found:
        found.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
        yield found


@pytest.fixture
def client(server: ApiServerStandIn, tmp_path: Path) -> KubeClient:
    """A client of the server."""
    return KubeClient.load(str(server.write_kubeconfig(tmp_path / "kubeconfig")))


@contextmanager
def running(server: ApiServerStandIn, client: KubeClient, devices: list[Device], **options: Any) -> Iterator[Pool]:
    """A publisher that runs and has published."""
    pool = Pool(server, client, **options)
    pool.devices = devices
    pool.publisher.start()
    try:
        pool.settle()
        pool.writes()
        yield pool
    finally:
        pool.publisher.stop()


def test_first_slice(server: ApiServerStandIn, client: KubeClient) -> None:
    """The pool is named after the node, owned by it, and the node was shown to who asked."""
    with running(server, client, [device("eth1", mtu=1500)]) as pool:
        (item,) = pool.slices()
        assert item["metadata"]["name"] == "n1-dra.net-0"
        assert item["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "name": "n1",
                "uid": server.get(NODE)["metadata"]["uid"],
                "controller": True,
            }
        ]
        assert item["spec"] == {
            "driver": "dra.net",
            "nodeName": "n1",
            "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1},
            "devices": [device("eth1", mtu=1500)],
        }
        assert pool.nodes[0]["metadata"]["name"] == "n1"


def test_empty_pool(server: ApiServerStandIn, client: KubeClient) -> None:
    """A node without devices has one empty slice, so that it can be told from one without driver."""
    with running(server, client, []) as pool:
        assert pool.shape() == [(1, 1, 0)]


@pytest.mark.parametrize(("count", "expected"), [(128, [128]), (129, [128, 1]), (1000, [128] * 7 + [104])])
def test_many_devices(server: ApiServerStandIn, client: KubeClient, count: int, expected: list[int]) -> None:
    """Every device of a large node is in a valid slice, of one generation and the right count."""
    with running(server, client, many(count)) as pool:
        assert pool.shape() == [(1, len(expected), size) for size in expected]


def test_one_change_one_write(server: ApiServerStandIn, client: KubeClient) -> None:
    """One changed, one new, one removed device: one write each, and no new generation."""
    with running(server, client, many(300)) as pool:
        generation = pool.shape()[0][0]
        changed = many(300)
        changed[150] = device("d0150", mtu=9000)
        pool.publish(changed)
        assert pool.writes() == ["PUT"]
        pool.publish([*changed, device("zzz", mtu=1)])
        assert pool.writes() == ["PUT"]
        pool.publish(changed)
        assert pool.writes() == ["PUT"]
        assert {each[0] for each in pool.shape()} == {generation}


def test_nothing_changes_nothing_is_written(server: ApiServerStandIn, client: KubeClient) -> None:
    """A refresh without a change makes no request at all."""
    with running(server, client, many(10)) as pool:
        for _ in range(5):
            pool.publisher.refresh()
            pool.settle()
        assert pool.writes() == []


def test_two_slices_change_with_a_new_generation(server: ApiServerStandIn, client: KubeClient) -> None:
    """When more than one slice changes, all are written with the next generation: nobody sees a mixture."""
    with running(server, client, many(300)) as pool:
        changed = many(300)
        changed[0], changed[299] = device("d0000", mtu=9000), device("d0299", mtu=9000)
        pool.publish(changed)
        assert pool.writes() == ["PUT"] * 3
        assert pool.shape() == [(2, 3, 128), (2, 3, 128), (2, 3, 44)]


def test_grow_and_shrink(server: ApiServerStandIn, client: KubeClient) -> None:
    """A new slice and a slice less change the count in all of them, in a new generation."""
    with running(server, client, many(128)) as pool:
        pool.publish(many(129))
        assert pool.shape() == [(2, 2, 128), (2, 2, 1)]
        assert sorted(pool.writes()) == ["POST", "PUT"]
        pool.publish(many(128))
        assert pool.shape() == [(3, 1, 128)]
        assert sorted(pool.writes()) == ["DELETE", "PUT"]


def test_deleted_slices_come_back(server: ApiServerStandIn, client: KubeClient) -> None:
    """Slices that kubelet deleted are written again at once, also with an empty bucket, in a new generation."""
    with running(server, client, many(200), interval=3600.0, burst=1) as pool:
        for item in pool.slices():
            server.delete(f"{SLICES}/{item['metadata']['name']}")
        until(lambda: len(pool.published()) == 200)
        pool.settle()
        assert all(generation > 1 and count == 2 for generation, count, _ in pool.shape())


def test_node_made_anew(server: ApiServerStandIn, client: KubeClient) -> None:
    """After the Node was replaced by one of the same name the slices belong to the new one."""
    with running(server, client, many(1)) as pool:
        server.delete(NODE)
        uid = server.create("/api/v1/nodes", {"metadata": {"name": "n1"}})["metadata"]["uid"]
        server.delete(f"{SLICES}/n1-dra.net-0")
        until(lambda: [item["metadata"]["ownerReferences"][0]["uid"] for item in pool.slices()] == [uid])


def test_foreign_edit_is_undone(server: ApiServerStandIn, client: KubeClient) -> None:
    """A slice that somebody changed is set right."""
    with running(server, client, many(3)) as pool:
        server.merge(f"{SLICES}/n1-dra.net-0", {"spec": {"devices": [device("evil")]}})
        until(lambda: pool.published() == ["d0000", "d0001", "d0002"])


def test_only_own_slices_are_touched(server: ApiServerStandIn, client: KubeClient) -> None:
    """Slices of other drivers and nodes stay; ours of an earlier life, under whatever name, are replaced."""
    for name, driver, node in (("a", "other.io", "n1"), ("b", "dra.net", "n2"), ("old-name", "dra.net", "n1")):
        server.create(
            SLICES,
            {
                "metadata": {"name": name},
                "spec": {
                    "driver": driver,
                    "nodeName": node,
                    "pool": {"name": node, "generation": 7, "resourceSliceCount": 1},
                    "devices": [device("x")],
                },
            },
        )
    with running(server, client, many(1)) as pool:
        assert [item["metadata"]["name"] for item in pool.slices()] == ["a", "b", "n1-dra.net-0"]
        assert pool.slices()[2]["spec"]["pool"]["generation"] == 8


def test_second_life_writes_nothing(server: ApiServerStandIn, client: KubeClient) -> None:
    """A daemon that starts anew finds its slices as they should be, and devices stay in their slices."""
    with running(server, client, many(200)) as pool:
        pool.publish([one for one in many(201) if one["name"] != "d0005"])
        before = pool.slices()
        devices = pool.devices
    server.requests.clear()
    with running(server, client, devices) as pool:
        assert pool.slices() == before
        pool.publisher.refresh()
        pool.settle()
    assert not [request for request in server.requests if request.method != "GET"]


def test_torn_generation_is_mended(server: ApiServerStandIn, client: KubeClient) -> None:
    """A daemon that died between two writes leaves two generations; the next writes all slices with a third."""
    with running(server, client, many(200)):
        pass
    server.merge(f"{SLICES}/n1-dra.net-1", {"spec": {"pool": {"generation": 2}}})
    with running(server, client, many(200)) as pool:
        assert pool.shape() == [(3, 2, 128), (3, 2, 72)]


def test_refused_device_is_left_out(
    server: ApiServerStandIn, client: KubeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that the server does not take is named and left out, the others are published; once right it is in."""
    bad: Device = {"name": "bad", "attributes": {"dra.net/x": {"string": "x" * 65}}}
    with running(server, client, [device("a", mtu=1), bad, device("c", mtu=1)]) as pool:
        assert pool.published() == ["a", "c"]
        record = next(record for record in caplog.records if "refuses a device" in record.getMessage())
        assert record.levelname == "ERROR"
        ((reason, text),) = pool.said
        assert reason == "DeviceRefused"
        assert text.startswith("device bad is not published, the API server refuses it")
        assert metrics.REFUSED_DEVICES._value.get() == 1
        pool.publish([device("a", mtu=1), device("bad", mtu=1), device("c", mtu=1)])
        assert metrics.REFUSED_DEVICES._value.get() == 0


def test_refused_device_is_tried_again(
    server: ApiServerStandIn, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have got its feature gate meanwhile: after a while the device is tried as it is."""
    monkeypatch.setattr("nri_dranet.dra.slices._REFUSED_SECONDS", 0.2)
    message = "ResourceSlice is invalid: spec.devices[0].attributes: Invalid value"
    server.fail_next(3, 422, where="resourceslices", method="POST", message=message)
    with running(server, client, [device("a", mtu=1)]) as pool:
        until(lambda: pool.published() == ["a"])
        pool.settle()
        assert metrics.REFUSED_DEVICES._value.get() == 0
        assert pool.said[0][0] == "DeviceRefused"


def test_conflicts_and_errors_are_retried(server: ApiServerStandIn, client: KubeClient) -> None:
    """A conflict, a server in trouble and a slice that is there already end with the right slices."""
    with running(server, client, many(1)) as pool:
        server.fail_next(1, 409, where="resourceslices", method="PUT")
        pool.publish(many(2))
        server.fail_next(2, 503, where="resourceslices", method="PUT")
        pool.publish(many(3))
        server.fail_next(1, 409, where="resourceslices", method="POST")
        server.delete(f"{SLICES}/n1-dra.net-0")
        until(lambda: len(pool.published()) == 3)


def test_outage(server: ApiServerStandIn, client: KubeClient) -> None:
    """While the server is away the problem is told; afterwards what is wanted by then is published."""
    with running(server, client, many(1)) as pool:
        server.pause()
        pool.devices = many(5)
        pool.publisher.refresh()
        until(lambda: "127.0.0.1" in pool.publisher.problem)
        pool.devices = many(4)
        server.resume()
        until(lambda: len(pool.published()) == 4, 20)
        pool.settle()


def test_start_without_server(server: ApiServerStandIn, client: KubeClient) -> None:
    """A daemon that starts while the server is away publishes when it is back."""
    server.pause()
    pool = Pool(server, client)
    pool.devices = many(2)
    pool.publisher.start()
    try:
        until(lambda: "127.0.0.1" in pool.publisher.problem)
        server.resume()
        until(lambda: len(pool.published()) == 2, 20)
    finally:
        pool.publisher.stop()


def test_flapping_is_held_back_but_not_a_withdrawal(server: ApiServerStandIn, client: KubeClient) -> None:
    """With an empty bucket a changed attribute waits, a device that must go does not, and both are right at the end."""
    with running(server, client, many(2), interval=3600.0, burst=2) as pool:
        pool.publish([device("d0000", mtu=1), device("d0001", mtu=1500)])
        pool.writes()
        pool.devices = [device("d0000", mtu=2), device("d0001", mtu=1500)]
        pool.publisher.refresh()
        until(lambda: pool.publisher._not_before > 0)
        assert pool.writes() == []
        pool.devices = [device("d0000", mtu=2)]
        pool.publisher.refresh()
        until(lambda: pool.published() == ["d0000"])
        assert pool.slices()[0]["spec"]["devices"] == [device("d0000", mtu=2)]


def test_a_device_that_needs_a_slice_more_waits_for_the_bucket(server: ApiServerStandIn, client: KubeClient) -> None:
    """A node with 128 devices and one that flaps writes no more than another one; what goes is withdrawn at once."""
    with running(server, client, many(128), interval=3600.0, burst=2) as pool:
        pool.publish(many(129))
        pool.publish(many(128))
        pool.writes()
        pool.devices = many(129)
        pool.publisher.refresh()
        until(lambda: pool.publisher._not_before > 0)
        assert pool.writes() == []
        assert pool.shape() == [(3, 1, 128)]


@pytest.mark.parametrize("before", [0, 1, 128, 129, 1000])
@pytest.mark.parametrize("after", [0, 1, 128, 129, 1000])
def test_from_any_size_to_any_other(server: ApiServerStandIn, client: KubeClient, before: int, after: int) -> None:
    """One write where one slice changes and none comes or goes; else each slice once, and each surplus deleted."""
    slices = [max(1, -(-count // 128)) for count in (before, after)]
    with running(server, client, many(before)) as pool:
        pool.publish(many(after))
        assert pool.published() == [one["name"] for one in many(after)]
        writes = pool.writes()
        if before == after:
            assert writes == []
        elif slices == [1, 1]:
            assert writes == ["PUT"]
        else:
            kept, new, gone = min(slices), max(0, slices[1] - slices[0]), max(0, slices[0] - slices[1])
            assert sorted(writes) == ["DELETE"] * gone + ["POST"] * new + ["PUT"] * kept
        assert {(generation, count) for generation, count, _ in pool.shape()} == {
            (1 if before == after or slices == [1, 1] else 2, slices[1])
        }


def test_collect_fails(server: ApiServerStandIn, client: KubeClient) -> None:
    """A failure inside is told and tried again, and the slices stay."""
    with running(server, client, many(2)) as pool:
        right = pool.devices
        pool.devices = [{"attributes": {}}]
        pool.publisher.refresh()
        until(lambda: "unexpectedly" in pool.publisher.problem)
        assert pool.published() == ["d0000", "d0001"]
        pool.devices = right
        pool.settle()


def test_dropped_field_is_told_once_and_no_loop(
    server: ApiServerStandIn, client: KubeClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that a server without its feature drops is told once, and is not written again and again."""
    replace = client.replace

    def dropping(path: str, body: Any, *words: Any, **more: Any) -> dict[str, Any]:
        plain = json.loads(body)
        for each in plain["spec"]["devices"]:
            each.pop("bindsToNode", None)
        return replace(path, plain, *words, **more)

    monkeypatch.setattr(client, "replace", dropping)
    with running(server, client, many(1)) as pool:
        for mtu in (1, 2):
            pool.devices = [{**device("d0000", mtu=mtu), "bindsToNode": True}]
            pool.publisher.refresh()
            until(lambda mtu=mtu: pool.slices()[0]["spec"]["devices"] == [device("d0000", mtu=mtu)])  # type: ignore[misc]  # mypy sees no type for a default
            pool.settle()
            pool.publisher.refresh()
            pool.settle()
        assert pool.writes() == ["PUT", "PUT"]
        assert [reason for reason, _ in pool.said] == ["SliceFieldDropped"]
        assert "drops the field bindsToNode of device d0000" in pool.said[0][1]
    assert len([record for record in caplog.records if "dropped a field" in record.getMessage()]) == 1
    assert metrics.SLICE_FIELDS_DROPPED.labels("bindsToNode")._value.get() == 1


def test_what_counts_as_dropped() -> None:
    """A field with a value, an attribute, and the kind of an attribute's value; what the server adds is none."""
    entry = {
        "name": "a",
        "taints": [{"key": "k"}],
        "bindsToNode": False,
        "attributes": {"dra.net/x": {"int": 1}, "dra.net/y": {"ints": [1]}, "dra.net/z": {"bool": True}},
    }
    kept = {
        "name": "a",
        "taints": [{"key": "k", "timeAdded": "t"}],
        "attributes": {"dra.net/x": {"int": 1}, "dra.net/y": {}},
    }
    assert _missing(entry, kept) == ["dra.net/y", "dra.net/z"]
    assert sorted(_missing(entry, {"name": "a"})) == ["attributes", "taints"]
    assert _missing(entry, entry) == []


def test_slice_that_cannot_be_deleted_yet(server: ApiServerStandIn, client: KubeClient) -> None:
    """A surplus slice whose deletion fails is deleted later."""
    with running(server, client, many(129)) as pool:
        server.fail_next(1, 503, where="resourceslices", method="DELETE")
        pool.publish(many(3))
        assert len(pool.slices()) == 1


def test_watch_is_lost(server: ApiServerStandIn, client: KubeClient) -> None:
    """Slices that are deleted while the watch is broken and its position too old come back."""
    with running(server, client, many(1)) as pool:
        server.pause()
        server.delete(f"{SLICES}/n1-dra.net-0")
        server.compact()
        server.resume()
        until(lambda: pool.published() == ["d0000"], 20)


def test_long_names(server: ApiServerStandIn, client: KubeClient) -> None:
    """The name of a slice fits whatever the node is called, and says its number."""
    publisher = SlicePublisher(client, "dra.net", "n" * 253, collect=list)
    assert len(publisher._slice_name(123)) <= 253
    assert publisher._slice_number(publisher._slice_name(123)) == 123
    assert publisher._slice_number("n1-dra.net-x") is None
    assert server.url


def test_bucket() -> None:
    """The bucket lets a burst through, then one write an interval; without an interval it lets all through."""
    now = [0.0]
    bucket = Bucket(2.0, 2, clock=lambda: now[0])
    for _ in range(2):
        assert bucket.wait_seconds() == 0
        bucket.take()
    assert bucket.wait_seconds() == 2.0
    now[0] = 2.0
    assert bucket.wait_seconds() == 0
    free = Bucket(0.0, 1, clock=lambda: now[0])
    free.take()
    assert free.wait_seconds() == 0
