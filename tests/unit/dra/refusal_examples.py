"""Examples of configurations that are refused: each gives what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nri_dranet.api.errors import ConfigError
from nri_dranet.api.resolve import ConfigSource, resolve
from nri_dranet.dra.plan_model import NodeFacts, PlanError
from tests.unit.dra.test_planner import Node

if TYPE_CHECKING:
    from collections.abc import Callable


def document(*documents: Any) -> Callable[[], list[str]]:
    """Return an example: these documents."""

    def example() -> list[str]:
        try:
            resolve([ConfigSource(f"source {number}", each) for number, each in enumerate(documents)])
        except ConfigError as error:
            return [each.message for each in error.errors]
        return []

    return example


def interface(**fields: Any) -> Callable[[], list[str]]:
    """Return an example: a document with these fields of the interface."""
    return document({"interface": fields})


def claim(
    *configs: Any,
    host: dict[str, Any] | None = None,
    name: str = "eth1",
    on: NodeFacts | None = None,
    **facts: Any,
) -> Callable[[], list[str]]:
    """Return an example: a device for each configuration, the first one with these facts, on a node with its own."""

    def example() -> list[str]:
        node = Node()
        node.facts = on or node.facts
        for number, parameters in enumerate(configs):
            request = f"req{number}"
            if number == 0:
                node.device(name, request, host=host, **facts)
            else:
                node.device(f"eth{number + 1}", request)
            if parameters is not None:
                node.config(parameters, request)
        return planned(node)

    return example


def children(*configs: Any) -> Callable[[], list[str]]:
    """Return an example: a share of one shared device for each configuration of its sub-interface."""

    def example() -> list[str]:
        node = Node()
        for number, child in enumerate(configs):
            node.configs.append(
                {
                    "source": "FromClaim",
                    "requests": [f"req{number}"],
                    "opaque": {
                        "driver": "dra.net",
                        "parameters": {"interface": {"name": f"net{number}", "subInterface": child}},
                    },
                }
            )
            if number == 0:
                node.device("eth1", "req0", shared=True)
                node.results[0]["shareID"] = "s0"
            else:
                node.allocate("eth1", f"req{number}", shareID=f"s{number}")
        return planned(node)

    return example


def planned(node: Node) -> list[str]:
    """Return what a claim is refused for."""
    try:
        node.plan()
    except PlanError as error:
        return [each.message for each in error.errors]
    return []


def unknown_device() -> list[str]:
    """Allocate a device that is not on the node."""
    node = Node()
    node.allocate("eth9")
    return planned(node)


def unread_interface() -> list[str]:
    """Have a device whose interface could not be read."""
    node = Node()
    node.device("eth1")
    node.hosts.clear()
    return planned(node)


def old_share() -> list[str]:
    """Have a share of a device that is not shared any more."""
    node = Node()
    node.device("eth1")
    node.results[0]["shareID"] = "s"
    return planned(node)


def nested(levels: int) -> Any:
    """Return lists in lists."""
    return [] if levels == 0 else [nested(levels - 1)]


def net(address: str = "10.0.0.5/24", **fields: Any) -> dict[str, Any]:
    """Return a configuration of an interface with an address."""
    return {"interface": {"addresses": [address], **fields}}


def route(**fields: Any) -> Callable[[], list[str]]:
    """Return an example: one route."""
    return document({"routes": [fields]})
