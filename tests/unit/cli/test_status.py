"""The table of devices: what it shows of each claim, its forms, how it follows changes, and how it fails."""

from __future__ import annotations

import argparse
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from nri_dranet.cli import kubectl, main, status
from nri_dranet.cli.status import Printer, age, kubeconfig_of, rows
from nri_dranet.kube import listwatch
from nri_dranet.testing.apiserver import ApiServerStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DRIVER = "dra.net"
NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
HOURS_AGO = (datetime.now(UTC) - timedelta(hours=5, minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, value: str = "True", reason: str = "NetworkReady", message: str = "") -> dict[str, Any]:
    """Return a condition that is five hours old."""
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": HOURS_AGO}


def entry(device: str, *conditions: dict[str, Any], pool: str = "node-a", **more: Any) -> dict[str, Any]:
    """Return an entry of status.devices."""
    return {"driver": DRIVER, "pool": pool, "device": device, "conditions": list(conditions), **more}


def claim(
    name: str,
    *entries: dict[str, Any],
    namespace: str = "default",
    pods: tuple[str, ...] = ("pod-1",),
    allocated: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    """Return a claim; ``allocated`` are requests and devices on node-a."""
    results = [{"request": request, "driver": DRIVER, "pool": "node-a", "device": each} for request, each in allocated]
    return {
        "metadata": {"namespace": namespace, "name": name},
        "status": {
            "allocation": {"devices": {"results": results}},
            "reservedFor": [{"resource": "pods", "name": pod, "uid": pod} for pod in pods],
            "devices": list(entries),
        },
    }


FULL = claim(
    "c",
    entry(
        "eth1",
        condition("NetworkReady", "False", "NoCarrier", "interface net1 has no carrier"),
        condition("Ready", reason="NetworkDeviceReady"),
        networkData={
            "interfaceName": "net1",
            "hardwareAddress": "02:00:00:00:00:01",
            "ips": ["192.0.2.1/24", "2001:db8::1/64"],
        },
    ),
    allocated=(("nic", "eth1"),),
)


# ---- rows


def test_a_row_has_all_that_the_claim_says() -> None:
    """The conditions in the order in which they build upon each other, not as the API lists them."""
    (row,) = rows([FULL], DRIVER)
    assert (row.node, row.namespace, row.claim, row.device) == ("node-a", "default", "c", "eth1")
    assert row.pods == ("pod-1",)
    assert row.requests == ("nic",)
    assert (row.interface, row.hardware_address) == ("net1", "02:00:00:00:00:01")
    assert row.addresses == ("192.0.2.1/24", "2001:db8::1/64")
    assert [each.type for each in row.conditions] == ["Ready", "NetworkReady"]


def test_rows_stand_in_a_stable_order() -> None:
    """By node, namespace, pod, claim and device, in whatever order the claims come."""
    claims = [
        claim("z", entry("eth2", pool="node-b")),
        claim("b", entry("eth2"), entry("eth1")),
        claim("a", entry("eth3"), pods=("pod-0",)),
        claim("a", entry("eth4"), namespace="apps"),
    ]
    found = [(row.node, row.namespace, row.claim, row.device) for row in rows(claims, DRIVER)]
    assert found == [
        ("node-a", "apps", "a", "eth4"),
        ("node-a", "default", "a", "eth3"),
        ("node-a", "default", "b", "eth1"),
        ("node-a", "default", "b", "eth2"),
        ("node-b", "default", "z", "eth2"),
    ]
    assert rows(reversed(claims), DRIVER) == rows(claims, DRIVER)


def test_other_drivers_are_not_shown() -> None:
    """Neither their entries nor their allocations."""
    other = {**entry("gpu0"), "driver": "gpu.example.com"}
    assert rows([claim("c", other)], DRIVER) == []
    assert [row.device for row in rows([claim("c", other)], "gpu.example.com")] == ["gpu0"]


def test_an_allocated_device_that_its_node_does_not_report_is_shown() -> None:
    """This is what a dead daemon looks like."""
    (row,) = rows([claim("c", allocated=(("nic", "eth1"),))], DRIVER)
    assert not row.reported
    assert row.conditions == ()


@pytest.mark.parametrize("raw", [{}, {"metadata": {}}, {"status": {}}, {"metadata": {"name": "c"}, "status": None}])
def test_a_claim_without_anything_has_no_rows(raw: dict[str, Any]) -> None:
    """Most claims of a cluster belong to others, or wait."""
    assert rows([raw], DRIVER) == []


def test_shares_of_a_device_are_rows_of_their_own() -> None:
    """The key of an entry has the share ID in it (KEP-5075)."""
    shares = [entry("eth1", shareID="b"), entry("eth1", shareID="a")]
    assert [row.share_id for row in rows([claim("c", *shares)], DRIVER)] == ["a", "b"]


def test_consumers_that_are_no_pods_say_what_they_are() -> None:
    """A claim may be reserved for a PodGroup (KEP-5729)."""
    raw = claim("c", entry("eth1"), pods=())
    raw["status"]["reservedFor"] = [{"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "u"}]
    assert rows([raw], DRIVER)[0].pods == ("podgroups/g",)


# ---- printing


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the printed lines, cut at the gaps between the columns."""
    return [[cell for cell in line.split("   ") if cell.strip()] for line in capsys.readouterr().out.splitlines()]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a device: conditions with reason and age."""
    Printer("", watching=False).first(rows([FULL], DRIVER))
    head, line = ([cell.strip() for cell in each] for each in lines(capsys))
    assert head == list(status.COLUMNS)
    assert line == [
        "node-a",
        "default",
        "pod-1",
        "c",
        "eth1",
        "net1",
        "192.0.2.1/24,2001:db8::1/64",
        "Ready=True (NetworkDeviceReady, 5h), NetworkReady=False (NoCarrier, 5h)",
    ]


def test_the_wide_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Request, hardware address and messages too."""
    Printer("wide", watching=False).first(rows([FULL], DRIVER))
    head, line = ([cell.strip() for cell in each] for each in lines(capsys))
    assert head == list(status.WIDE_COLUMNS)
    assert dict(zip(head, line, strict=True))["REQUEST"] == "nic"
    assert dict(zip(head, line, strict=True))["HARDWARE ADDRESS"] == "02:00:00:00:00:01"
    assert line[-1] == "interface net1 has no carrier"


def test_what_is_not_there_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has all columns, so that other programs can cut them."""
    Printer("", watching=False).first(rows([claim("c", allocated=(("nic", "eth1"),), pods=())], DRIVER))
    _, line = ([cell.strip() for cell in each] for each in lines(capsys))
    assert line == ["node-a", "default", "-", "c", "eth1", "-", "-", "not reported by the node yet"]


def test_nothing_to_show_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """On the error stream: the output is a table without lines."""
    Printer("", watching=False).first([])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no device" in shown.err


def test_a_terminal_gets_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever writes a condition could put an escape sequence into it."""
    raw = claim("c", entry("eth1", condition("Ready", message="\x1b[2Jgone\nnode-x   forged")))
    Printer("wide", watching=False).first(rows([raw], DRIVER))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One document, with the field names of the API; null for what is not there."""
    Printer("json", watching=False).first(rows([FULL, claim("d", entry("eth2", shareID="s"))], DRIVER))
    first, second = json.loads(capsys.readouterr().out)["devices"]
    assert first == {
        "node": "node-a",
        "namespace": "default",
        "claim": "c",
        "pods": ["pod-1"],
        "device": "eth1",
        "requests": ["nic"],
        "interfaceName": "net1",
        "hardwareAddress": "02:00:00:00:00:01",
        "ips": ["192.0.2.1/24", "2001:db8::1/64"],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "NetworkDeviceReady",
                "message": "",
                "lastTransitionTime": HOURS_AGO,
            },
            {
                "type": "NetworkReady",
                "status": "False",
                "reason": "NoCarrier",
                "message": "interface net1 has no carrier",
                "lastTransitionTime": HOURS_AGO,
            },
        ],
    }
    assert (second["shareID"], second["interfaceName"]) == ("s", None)


def test_yaml_says_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Two forms of one thing."""
    Printer("json", watching=False).first(rows([FULL], DRIVER))
    as_json = json.loads(capsys.readouterr().out)
    Printer("yaml", watching=False).first(rows([FULL], DRIVER))
    assert yaml.safe_load(capsys.readouterr().out) == as_json


@pytest.mark.parametrize("form", ["", "wide"])
def test_while_watching_only_changes_are_printed(capsys: pytest.CaptureFixture[str], form: str) -> None:
    """The same again prints nothing; what vanishes is said to be gone."""
    printer = Printer(form, watching=True)
    printer.first(rows([FULL, claim("d", entry("eth2"))], DRIVER))
    capsys.readouterr()
    printer.now(rows([FULL, claim("d", entry("eth2"))], DRIVER))
    assert capsys.readouterr().out == ""
    printer.now(rows([FULL, claim("d", entry("eth2", condition("Ready")))], DRIVER))
    (line,) = capsys.readouterr().out.splitlines()
    assert "eth2" in line
    assert "Ready=True" in line
    printer.now(rows([FULL], DRIVER))
    (line,) = capsys.readouterr().out.splitlines()
    assert "eth2" in line
    assert "gone" in line


def test_the_head_of_the_table_comes_with_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    """There was nothing when the watch began."""
    printer = Printer("", watching=True)
    printer.first([])
    capsys.readouterr()
    printer.now(rows([FULL], DRIVER))
    assert capsys.readouterr().out.startswith("NODE")


def test_while_watching_data_comes_device_by_device(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of JSON, or a document of YAML, for each."""
    printer = Printer("json", watching=True)
    printer.first(rows([FULL], DRIVER))
    printer.now([])
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert "gone" not in first
    assert last == {**first, "gone": True}
    printer = Printer("yaml", watching=True)
    printer.first(rows([FULL], DRIVER))
    printer.now([])
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == [first, last]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (172_799, "47h"),
        (172_800, "2d"),
    ],
)
def test_an_age_is_short(seconds: int, expected: str) -> None:
    """As kubectl writes it; a clock that runs ahead makes nothing younger than now."""
    assert age((NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ"), NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-02T12:00:00"])
def test_what_is_no_time_has_no_age(text: str) -> None:
    """The reason stands alone then."""
    assert age(text, NOW) == ""


# ---- the command


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServerStandIn]:
    """Return an API server with an allocated claim; its kubeconfig is ``tmp_path / "kubeconfig"``."""
    with ApiServerStandIn() as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        add_claim(server, "c")
        yield server


def add_claim(server: ApiServerStandIn, name: str) -> None:
    """Create a claim and allocate a device to it."""
    body = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": DRIVER}}]}},
    }
    server.create("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims", body)
    results = [{"request": "nic", "driver": DRIVER, "pool": "node-a", "device": f"eth-{name}"}]
    server.allocate("default", name, results=results, config=[], node="node-a")


def call(tmp_path: Path, *words: str) -> int:
    """Run the command against the API server."""
    return main(["status", f"--kubeconfig={tmp_path / 'kubeconfig'}", *words])


@pytest.mark.parametrize("words", [(), ("-A",), ("-n", "default"), ("-n", "other", "-A")])
@pytest.mark.usefixtures("api")
def test_it_lists_all_namespaces_or_one(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """All by default."""
    assert call(tmp_path, *words) == 0
    assert "eth-c" in capsys.readouterr().out


@pytest.mark.usefixtures("api")
def test_another_namespace_or_driver_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That is no failure."""
    assert call(tmp_path, "-n", "other") == 0
    assert call(tmp_path, "--driver-name=other.example.com") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("api")
def test_kubectl_runs_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plugin has the same command."""
    assert kubectl.main(["status", f"--kubeconfig={tmp_path / 'kubeconfig'}", "-o", "json"]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert device["device"] == "eth-c"


def test_it_follows_changes_until_it_is_interrupted(
    api: ApiServerStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A claim comes and another goes; Ctrl-C ends it with the shell's code for that."""
    add_claim(api, "d")
    follow = listwatch.watch
    path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/d"

    def interrupted(*args: Any, **options: Any) -> Iterator[listwatch.WatchEvent]:
        patience = threading.Timer(20, options["closer"].close)
        patience.start()
        events = follow(*args, **options)
        yield next(events)
        add_claim(api, "e")
        deleted = False
        for event in events:
            yield event
            allocated = [each for each in (event.object, *event.objects) if each.get("status", {}).get("allocation")]
            if not deleted and any(each["metadata"]["name"] == "e" for each in allocated):
                api.delete(path)
                deleted = True
            elif deleted and event.type in (listwatch.DELETED, listwatch.SYNC):
                patience.cancel()
                options["closer"].close()
                raise KeyboardInterrupt

    monkeypatch.setattr(listwatch, "watch", interrupted)
    assert call(tmp_path, "--watch") == 130
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in shown] == ["DEVICE", "eth-c", "eth-d", "eth-e", "eth-d"]
    assert shown[-1].endswith("gone")


@pytest.mark.parametrize(
    ("code", "reason", "words", "said"),
    [
        (403, "Forbidden", (), ["may not list resourceclaims", "-n NAMESPACE"]),
        (403, "Forbidden", ("-n", "default"), ["may not list resourceclaims", "in namespace default"]),
        (404, "NotFound", (), ["resource.k8s.io/v1", "1.34"]),
        (500, "InternalError", (), ["500"]),
    ],
)
def test_a_refusal_is_told_in_words(  # noqa: PLR0917 - a table beside the fixtures
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    api: ApiServerStandIn,
    code: int,
    reason: str,
    words: tuple[str, ...],
    said: list[str],
) -> None:
    """What it means, what to do, and what the server said; exit code 1."""
    from nri_dranet.kube.client import ApiError, KubeClient  # noqa: PLC0415 - the command imports them late too

    assert api.url

    def refuse(*_args: Any, **_options: Any) -> dict[str, Any]:
        raise ApiError(code, reason, "the server's words")

    monkeypatch.setattr(KubeClient, "get", refuse)
    assert call(tmp_path, *words) == 1
    shown = capsys.readouterr().err
    for each in [*said, "the server's words"]:
        assert each in shown


def test_a_server_that_is_away_and_a_kubeconfig_that_is_missing_are_told(
    api: ApiServerStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the address, and with the path."""
    url = api.url
    api.stop()
    assert call(tmp_path) == 1
    assert f"{url} does not answer" in capsys.readouterr().err
    assert main(["status", "--kubeconfig=/nowhere/config"]) == 1
    assert "/nowhere/config does not exist" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_failure(
    api: ApiServerStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``| head``: the pipe is broken when the table is printed."""
    assert api.url
    done = []

    def broken(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Printer, "first", broken)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: done.append(descriptors))
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    assert call(tmp_path) == 0
    ((null, target),) = done
    os.close(null)
    assert target == 1


@pytest.mark.parametrize("words", [("-o", "xml"), ("--driver-name", "UPPER"), ("surplus",)])
def test_wrong_arguments_end_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is asked."""
    with pytest.raises(SystemExit) as ended:
        main(["status", *words])
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_flags_are_kubectls() -> None:
    """Short and long, and all namespaces by default."""
    parser = argparse.ArgumentParser()
    status.add_arguments(parser)
    found = parser.parse_args(["-n", "x", "-o", "wide", "-w"])
    assert (found.namespace, found.output, found.watch, found.all_namespaces) == ("x", "wide", True, False)
    assert parser.parse_args([]).namespace == ""


def test_the_kubeconfig_is_found_as_kubectl_finds_it(tmp_path: Path) -> None:
    """The flag, the environment (the first file that is there), the home folder, else the pod's service account."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert kubeconfig_of("", {}, tmp_path) == ""
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    assert kubeconfig_of("", {}, tmp_path) == str(tmp_path / ".kube" / "config")
    second.touch()
    assert kubeconfig_of("", {"KUBECONFIG": f"{first}:{second}"}, tmp_path) == str(second)
    assert kubeconfig_of("", {"KUBECONFIG": str(first)}, tmp_path) == str(first)
    assert kubeconfig_of("asked", {"KUBECONFIG": str(first)}, tmp_path) == "asked"
