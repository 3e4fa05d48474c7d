"""The auditor finds every difference between a claim's status and the pod, and none where there is none."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from hack.audit import audit, audit_all, audit_at_rest

if TYPE_CHECKING:
    from collections.abc import Callable

LINK: dict[str, Any] = {
    "ifname": "net1",
    "address": "02:00:00:00:00:01",
    "flags": ["BROADCAST", "UP", "LOWER_UP"],
    "addr_info": [
        {"local": "192.0.2.1", "prefixlen": 24},
        {"local": "fe80::ff:fe00:1", "prefixlen": 64},
        {"local": "fe80::1234", "prefixlen": 64, "protocol": "kernel_ll"},
        # An ipvlan's.
        {"local": "fe80::200:0:200:1", "prefixlen": 64},
    ],
}
DEVICE = {"driver": "dra.net", "pool": "node", "device": "eth1"}
CLAIM: dict[str, Any] = {
    "metadata": {"name": "c"},
    "status": {
        "allocation": {"devices": {"results": [{"request": "nic", **DEVICE}]}},
        "devices": [
            {
                **DEVICE,
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "NetworkDeviceReady"},
                    {"type": "NetworkReady", "status": "True", "reason": "NetworkReady"},
                ],
                "networkData": {
                    "interfaceName": "net1",
                    "hardwareAddress": "02:00:00:00:00:01",
                    "ips": ["192.0.2.1/24"],
                },
            },
            {"driver": "gpu.example.com", "pool": "node", "device": "gpu-0", "conditions": []},
        ],
    },
}


def test_a_status_that_is_right_passes() -> None:
    """With another driver's entry beside it, which is not ours to judge."""
    assert audit(CLAIM, [LINK]) == []
    assert audit_all([CLAIM], [LINK, {**LINK, "ifname": "lo"}]) == []


def entry(claim: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of the device."""
    found: dict[str, Any] = claim["status"]["devices"][0]
    return found


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda claim, _: claim["status"]["devices"].clear(), "nothing is said"),
        (lambda claim, _: claim["status"]["allocation"]["devices"]["results"].clear(), "not allocated"),
        (lambda _, link: link.update(ifname="other"), "is not in the pod"),
        (lambda _, link: link.update(address="02:00:00:00:00:02"), "hardwareAddress"),
        (lambda _, link: link["addr_info"].clear(), "ips"),
        (lambda _, link: link["addr_info"].append({"local": "10.0.0.1", "prefixlen": 8}), "ips"),
        (lambda _, link: link["addr_info"].append({"local": "fe80::9", "prefixlen": 64}), "ips"),
        (lambda _, link: link["flags"].append("NO-CARRIER"), "NetworkReady=True"),
        (lambda _, link: link["flags"].remove("UP"), "NetworkReady=True"),
        (
            lambda claim, _: entry(claim)["conditions"][1].update(status="False", reason="NoCarrier"),
            "NetworkReady=False",
        ),
        (lambda claim, _: entry(claim)["conditions"][0].update(status="False", reason="Detached"), "in no pod"),
        (lambda claim, _: entry(claim).pop("networkData"), "is not in the pod"),
    ],
)
def test_every_difference_is_named(alter: Callable[[Any, Any], None], words: str) -> None:
    """In words that say what is written and what there is."""
    claim, link = copy.deepcopy(CLAIM), copy.deepcopy(LINK)
    alter(claim, link)
    assert any(words in why for why in audit(claim, [link])), audit(claim, [link])


def test_without_a_pod_nothing_is_ready() -> None:
    """A device that was given back has no networkData and is not ready."""
    assert [why.split(": ")[1].split(" ")[0] for why in audit(CLAIM, None)] == ["networkData", "Ready=True,"]
    back = copy.deepcopy(CLAIM)
    entry(back).pop("networkData")
    entry(back)["conditions"][0].update(status="False", reason="Detached")
    assert audit(back, None) == []


def test_an_interface_that_nobody_speaks_of_is_named() -> None:
    """A device in the pod that no status has."""
    assert audit(CLAIM, [LINK, {**LINK, "ifname": "net2"}]) == ["interface net2 is in the pod, and no device has it"]


def test_at_rest_one_pod_has_the_claim_or_none_and_it_says_so() -> None:
    """Whichever it is; interfaces of others do not matter, and a claim of which nothing is said is passed over."""
    other = {**LINK, "ifname": "eth0", "address": "02:00:00:00:00:09"}
    silent = {"metadata": {"name": "s"}, "status": {}}
    assert audit_at_rest([CLAIM, silent], [[other], [other, LINK]]) == []
    assert audit_at_rest([CLAIM], [[other]]) != []
    assert audit_at_rest([CLAIM], []) != []


def test_at_rest_an_interface_in_a_pod_is_said_by_a_claim() -> None:
    """A claim that says to have nothing in a pod hides no device there; what the pod made itself is nobody's."""
    back = copy.deepcopy(CLAIM)
    entry(back).pop("networkData")
    entry(back)["conditions"][0].update(status="False", reason="Detached")
    assert audit_at_rest([back], [[LINK]]) == ["interface net1 is in a pod, and no claim says so"]
    assert audit_at_rest([back], [[{**LINK, "linkinfo": {"info_kind": "bridge"}}]]) == []
    assert audit_at_rest([back], [[LINK]], foreign=["net1"]) == []
    assert audit_at_rest([CLAIM], [[{**LINK, "address": "02:00:00:00:00:05"}]]) != []
