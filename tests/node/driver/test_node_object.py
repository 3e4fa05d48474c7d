"""What the Node's object says, in the daemon that runs: the filter of this node, and addresses that come late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nri_dranet.testing.stage import Stage

NODE = "/api/v1/nodes/node"


def annotate(stage: Stage, text: str | None) -> None:
    """Set the annotation; None takes it away."""
    stage.api.merge(NODE, {"metadata": {"annotations": {"dra.net/filter": text}}})


def events(stage: Stage, reason: str) -> list[dict[str, Any]]:
    """Return the Events on the Node with a reason."""
    return [
        event
        for event in stage.api.objects("/api/v1/events")
        if event["reason"] == reason and event["involvedObject"]["kind"] == "Node"
    ]


def metric(stage: Stage, line: str) -> bool:
    """Tell whether the daemon's metrics have a line."""
    return line in stage.http("/metrics")[1].splitlines()


def test_a_node_has_its_own_filter(stage: Stage, nic: str) -> None:
    """The annotation takes effect at once, and so does its end."""
    annotate(stage, f"name != '{nic}'")
    stage.wait_for(lambda: nic not in stage.devices(), "left out")
    assert f"{nic}p" in stage.devices()
    annotate(stage, None)
    stage.wait_for(lambda: nic in stage.devices(), "published again")


def test_a_filter_that_is_none_takes_no_device_away(stage: Stage, nic: str) -> None:
    """The last good one counts; the Node has an Event with the position, the metrics and the log say it."""
    annotate(stage, f"name == '{nic}'")
    stage.wait_for(lambda: list(stage.devices()) == [nic], "the annotation's devices alone")
    annotate(stage, f"name = '{nic}'")
    (event,) = stage.wait_for(lambda: events(stage, "FilterRefused"), "an Event on the Node")
    assert f"annotation dra.net/filter: \"name = '{nic}'\" is no CEL expression" in event["message"]
    assert "1:6" in event["message"]
    assert f"filtered by \"name == '{nic}'\" as before" in event["message"]
    assert metric(stage, 'nri_dranet_filter_override{state="refused"} 1.0')
    assert metric(stage, 'nri_dranet_filter_override{state="used"} 1.0')
    assert "the Node's annotation is no filter" in stage.log.read_text()
    assert list(stage.devices()) == [nic]


def test_the_annotation_counts_before_anything_is_published(make_stage: Any, nic: str) -> None:
    """A daemon that starts never offers what the node's own filter leaves out."""
    stage = make_stage()
    annotate(stage, f"name != '{nic}'")
    offered: list[str] = []
    stage.start_daemon()
    stage.wait_for(lambda: offered.extend(stage.devices()) or f"{nic}p" in offered, "published")  # type: ignore[func-returns-value]
    stage.wait_ready()
    assert nic not in {*offered, *stage.devices()}


def test_an_address_of_the_node_that_comes_late_protects_its_interface(stage: Stage, nic: str) -> None:
    """Cloud controllers write a Node's addresses after its kubelet has begun."""
    stage.api.merge(f"{NODE}/status", {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]}})
    stage.wait_for(lambda: nic not in stage.devices(), "withdrawn")
    assert f"{nic}p" in stage.devices()
