"""BPF programs on real interfaces: found, removed, and gone in the pod of a claim that does not want them."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet import bpf
from nri_dranet.attach import queueing
from nri_dranet.attach.engine import Engine
from nri_dranet.attach.kept import KeptPrograms
from nri_dranet.attach.snapshot import take_snapshot
from nri_dranet.claims.model import ClaimRef, DeviceKey
from nri_dranet.claims.plan import ClaimPlan, DeviceKind, DevicePlan, PodState
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.sockets import RtnlSocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NUMBERS = itertools.count()

PROG_LOAD, PROG_ATTACH, LINK_CREATE = 5, 8, 28
SCHED_CLS, XDP = 3, 6
ATTACH_XDP, TCX_INGRESS, TCX_EGRESS = 37, 46, 47


def run(*words: str) -> str:
    """Run a program."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def load(kind: int, attach_type: int = 0) -> int:
    """Load a program of two instructions that lets everything pass; give its descriptor."""
    value = 2 if kind == XDP else -1
    code = struct.pack("=BBhi", 0xB7, 0, 0, value) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    request = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        2,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        b"pass",
        0,
        attach_type,
    )
    return bpf._bpf(PROG_LOAD, request)[0]


class Nic:
    """A veth ``n0`` in a namespace of its own, and one for a pod."""

    def __init__(self, host_name: str, host: NetNs, pod: NetNs) -> None:
        self.name = host_name
        self.host = host
        self.pod = pod
        run("ip", "-n", host_name, "link", "add", "n0", "type", "veth", "peer", "name", "n0p")
        with RtnlSocket(host) as socket:
            link = socket.link(name="n0")
        assert link is not None
        self.index = link.index
        self.open: list[int] = []

    def keep(self, descriptor: int) -> int:
        """Close a descriptor at the end of the test."""
        self.open.append(descriptor)
        return descriptor

    def link(self, kind: int, attach_type: int) -> int:
        """Attach a program by a BPF link that stays open; give its descriptor."""
        program = self.keep(load(kind, attach_type))
        request = struct.pack("=IIII", program, self.index, attach_type, 0)
        with self.host.entered():
            return self.keep(bpf._bpf(LINK_CREATE, request)[0])

    def attach_tcx(self, attach_type: int) -> None:
        """Attach a program without a link."""
        program = load(SCHED_CLS, attach_type)
        with self.host.entered():
            bpf._bpf(PROG_ATTACH, struct.pack("=IIII", self.index, program, attach_type, 0))
        os.close(program)

    def attach_xdp(self) -> None:
        """Attach an XDP program by netlink."""
        program = load(XDP, ATTACH_XDP)
        with RtnlSocket(self.host) as socket:
            socket.request(rtnl.set_link(self.index, xdp_fd=program))
        os.close(program)

    def xdp_program(self, netns: NetNs) -> int:
        """Give the ID of the XDP program of the interface, 0 without."""
        with RtnlSocket(netns) as socket:
            link = socket.link(index=self.index)
        assert link is not None
        return link.xdp_program_id

    def plan(self, **pod: Any) -> DevicePlan:
        """Plan the interface as ``net1``."""
        with RtnlSocket(self.host) as socket:
            snapshot = take_snapshot(socket, self.index)
        state = PodState(name="net1", **pod)
        key = DeviceKey(pool="node", device="n0")
        return DevicePlan(key=key, request="nic", kind=DeviceKind.INTERFACE, host=snapshot, pod=state)

    def attach(self, plan: DevicePlan) -> None:
        """Attach it."""
        engine = Engine(host_netns=self.host)
        try:
            engine.attach([plan], self.pod, deadline=time.monotonic() + 60)
        finally:
            engine.close()

    def detach(self, plan: DevicePlan, kept: KeptPrograms | None = None) -> tuple[str, ...]:
        """Bring it home with a new engine, as the next life of the daemon would; give what could not be restored."""
        engine = Engine(host_netns=self.host, kept=kept)
        try:
            (outcome,) = engine.detach([plan], self.pod, hints={})
        finally:
            engine.close()
        assert outcome.home
        return outcome.problems

    def filter(self, pin_path: Path, *place: str) -> None:
        """Run a new program, pinned at a path, as a filter of tc."""
        program = load(SCHED_CLS)
        pin(program, pin_path)
        os.close(program)
        with self.host.entered():
            run("tc", "filter", "add", "dev", "n0", *place, "bpf", "da", "object-pinned", str(pin_path))
        pin_path.unlink()

    def programs(self) -> list[tuple[str, int]]:
        """Give all programs of the interface on the host, in order, with those that filters run."""
        with RtnlSocket(self.host) as socket:
            state = take_snapshot(socket, self.index, ethtool=False)
        found = [(each.hook, each.program_id) for each in state.programs]
        return found + [("filter", program) for program in queueing.program_ids(state.traffic)]


@pytest.fixture
def nic() -> Iterator[Nic]:
    """An interface on a host."""
    mark = f"bpf{os.getpid()}x{next(_NUMBERS)}"
    names = (f"{mark}h", f"{mark}p")
    made: list[str] = []
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.append(name)
        with NetNs.open(f"/run/netns/{names[0]}") as host, NetNs.open(f"/run/netns/{names[1]}") as pod:
            found = Nic(names[0], host, pod)
            try:
                yield found
            finally:
                for descriptor in found.open:
                    os.close(descriptor)
    finally:
        for name in made:
            run("ip", "netns", "del", name)


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system with a subdirectory."""
    root = tmp_path / "bpf"
    root.mkdir()
    run("mount", "-t", "bpf", "bpf", str(root))
    try:
        (root / "deep" / "er").mkdir(parents=True)
        yield root
    finally:
        run("umount", str(root))


def pin(descriptor: int, path: Path) -> None:
    """Pin an object."""
    bpf.pin(descriptor, str(path))


def test_interface_without_programs(nic: Nic) -> None:
    """An interface without programs has none; one that does not exist is an error."""
    with nic.host.entered():
        assert bpf.programs(nic.index) == ()
        with pytest.raises(OSError, match="No such device"):
            bpf.programs(4242)


def test_tcx_programs_found_and_removed(nic: Nic) -> None:
    """Programs with and without a link are found in order and removed, also while the link is held open."""
    nic.attach_tcx(TCX_INGRESS)
    nic.link(SCHED_CLS, TCX_INGRESS)
    nic.attach_tcx(TCX_EGRESS)
    with nic.host.entered():
        found = bpf.programs(nic.index)
        assert [(one.hook, bool(one.link_id)) for one in found] == [
            ("TCX ingress", False),
            ("TCX ingress", True),
            ("TCX egress", False),
        ]
        assert len({one.program_id for one in found}) == 3
        for one in found:
            bpf.remove(nic.index, one)
        for one in found:
            bpf.remove(nic.index, one)
        assert bpf.programs(nic.index) == ()


def test_links_on_interfaces(nic: Nic) -> None:
    """A link is described by its ID and found among all; a detached one has no interface; an unknown one is None."""
    nic.link(XDP, ATTACH_XDP)
    (found,) = [one for one in bpf.links() if one.kind == "XDP" and one.program_id == nic.xdp_program(nic.host)]
    assert found.index == nic.index
    assert bpf.link_info(found.id) == found
    bpf.detach_link(found.id)
    after = bpf.link_info(found.id)
    assert after is not None
    assert after.index == 0
    assert bpf.link_info(2**31 - 1) is None
    with pytest.raises(FileNotFoundError):
        bpf.detach_link(2**31 - 1)


def test_f27_pinned_links(nic: Nic, pins: Path) -> None:
    """Of all that is pinned, only the links on this very interface are given, wherever they are pinned."""
    pin(nic.link(SCHED_CLS, TCX_EGRESS), pins / "deep" / "er" / "tcx")
    pin(nic.link(XDP, ATTACH_XDP), pins / "xdp")
    pin(nic.keep(load(SCHED_CLS)), pins / "program")
    xdp = nic.xdp_program(nic.host)
    with nic.host.entered():
        found = bpf.pinned_links(nic.index, str(pins), xdp_program_id=xdp)
        assert [(one.path, one.link.kind) for one in found] == [
            (str(pins / "deep" / "er" / "tcx"), "TCX"),
            (str(pins / "xdp"), "XDP"),
        ]
        assert bpf.pinned_links(1, str(pins)) == ()
        assert bpf.pinned_links(nic.index, str(pins / "nowhere")) == ()
    run("ip", "-n", nic.name, "link", "add", "other", "type", "bridge")
    with nic.pod.entered():
        run("ip", "link", "add", "same", "index", str(nic.index), "type", "bridge")
        # The same index in another namespace is another interface.
        assert bpf.pinned_links(nic.index, str(pins), xdp_program_id=xdp + 1) == ()


def test_programs_stay_without_the_wish(nic: Nic) -> None:
    """A claim that does not ask for their removal keeps an XDP program on its interface."""
    nic.attach_xdp()
    nic.attach(nic.plan())
    assert nic.xdp_program(nic.pod)


def test_no_program_is_left_in_the_pod(nic: Nic, pins: Path) -> None:
    """With detach_bpf the pod's interface has no tc filter, no TCX and no XDP program, linked, pinned or plain."""
    program = nic.keep(load(SCHED_CLS))
    pin(program, pins / "filter")
    with nic.host.entered():
        run("tc", "qdisc", "add", "dev", "n0", "clsact")
        run("tc", "filter", "add", "dev", "n0", "ingress", "bpf", "da", "object-pinned", str(pins / "filter"))
        assert "bpf" in run("tc", "filter", "show", "dev", "n0", "ingress")
    nic.attach_tcx(TCX_INGRESS)
    pin(nic.link(SCHED_CLS, TCX_EGRESS), pins / "tcx")
    nic.attach_xdp()
    with nic.host.entered():
        pinned = tuple(one.link.id for one in bpf.pinned_links(nic.index, str(pins)))
    assert len(pinned) == 1
    nic.attach(nic.plan(detach_bpf=True, pinned_bpf_links=pinned))
    with nic.pod.entered():
        assert bpf.programs(nic.index) == ()
        assert run("tc", "filter", "show", "dev", "net1", "ingress") == ""
    assert nic.xdp_program(nic.pod) == 0
    info = bpf.link_info(pinned[0])
    assert info is not None
    assert info.index == 0


def _claim(plan: DevicePlan) -> ClaimPlan:
    return ClaimPlan(ref=ClaimRef("default", "claim", "uid"), allocation_hash="", devices=(plan,))


@pytest.fixture
def busy(nic: Nic, pins: Path) -> Nic:
    """An interface with an XDP program, two TCX programs at ingress, one at egress, and filters of tc on both sides."""
    nic.attach_xdp()
    for hook in (TCX_INGRESS, TCX_INGRESS, TCX_EGRESS):
        nic.attach_tcx(hook)
    with nic.host.entered():
        run("tc", "qdisc", "add", "dev", "n0", "clsact")
    nic.filter(pins / "one", "ingress", "prio", "3")
    nic.filter(pins / "two", "egress", "protocol", "ip", "prio", "4")
    return nic


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("mounted", [False, True])
def test_programs_come_back(busy: Nic, pins: Path, tmp_path: Path, wanted: bool, mounted: bool) -> None:
    """What the move or the claim took off is back in order: kept by a pin, or without a BPF file system by hand."""
    before = busy.programs()
    assert [hook for hook, _ in before] == [
        "TCX ingress",
        "TCX ingress",
        "TCX egress",
        "XDP driver",
        "filter",
        "filter",
    ]
    kept = KeptPrograms(str(pins if mounted else tmp_path))
    plan = busy.plan(detach_bpf=wanted)
    kept.keep(_claim(plan))
    kept.keep(_claim(plan))
    busy.attach(plan)
    for _ in range(2):
        # The next life knows the pins alone.
        assert busy.detach(plan, KeptPrograms(str(pins)) if mounted else kept) == ()
        assert busy.programs() == before
    kept.close()


def test_programs_that_were_not_kept(busy: Nic) -> None:
    """Without a copy each program that is lost is told, and the rest comes back."""
    plan = busy.plan(detach_bpf=True)
    busy.attach(plan)
    problems = busy.detach(plan)
    assert len(problems) == 6
    assert all("could not be kept" in problem for problem in problems)
    with busy.host.entered():
        assert "clsact" in run("tc", "qdisc", "show", "dev", "n0")


def test_program_of_somebody_elses_link(nic: Nic, pins: Path) -> None:
    """A program that a process holds by a BPF link is not attached behind its back: this is told."""
    nic.link(XDP, ATTACH_XDP)
    nic.link(SCHED_CLS, TCX_INGRESS)
    kept = KeptPrograms(str(pins))
    plan = nic.plan(detach_bpf=True)
    kept.keep(_claim(plan))
    nic.attach(plan)
    problems = nic.detach(plan, kept)
    assert len(problems) == 2
    assert all("BPF link" in problem for problem in problems)
    untouched = nic.plan()
    nic.attach(untouched)
    assert nic.detach(untouched) == ()


def test_programs_that_nobody_needs_are_let_go(busy: Nic, pins: Path, tmp_path: Path) -> None:
    """Pins and descriptors end with the last plan that needs them; a pin of another program is not taken for it."""
    plan = _claim(busy.plan())
    kept, open_ones = KeptPrograms(str(pins)), KeptPrograms(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for each in (kept, open_ones):
        each.prune(list)
        each.keep(plan)
        each.prune(lambda: plan.devices)
    paths = sorted((pins / "nri-dranet").iterdir())
    assert len(paths) == 6
    program = busy.programs()[0][1]
    path = pins / "nri-dranet" / f"program-{program}"
    path.unlink()
    with kept.opened([program]) as opened:
        assert opened == {}
    pin(busy.keep(load(SCHED_CLS)), path)
    with kept.opened([program]) as opened:
        assert opened == {}
    kept.keep(plan)
    with kept.opened([program, 2**31 - 1]) as opened, open_ones.opened([program]) as others:
        assert list(opened) == list(others) == [program]
    (pins / "nri-dranet" / "program-77x").mkdir()
    for each in (kept, open_ones):
        each.prune(list)
        each.prune(list)
    assert [one.name for one in (pins / "nri-dranet").iterdir()] == ["program-77x"]
    # The one that this test itself keeps open.
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208


def test_xdp_program_held_by_a_link(nic: Nic) -> None:
    """An XDP program that a process holds by a link is detached by that link."""
    nic.link(XDP, ATTACH_XDP)
    nic.attach(nic.plan(detach_bpf=True))
    assert nic.xdp_program(nic.pod) == 0


def test_kernel_without_the_hooks(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not know TCX, or not these fields, has no programs there; a refusal is an error."""
    for number in (7, 22, 95):
        monkeypatch.setattr(bpf, "_bpf", _refusing(number))
        assert bpf.programs(nic.index) == ()
    monkeypatch.setattr(bpf, "_bpf", _refusing(1))
    with pytest.raises(PermissionError):
        bpf.programs(nic.index)
    with pytest.raises(PermissionError):
        list(bpf.links())
    monkeypatch.setattr(bpf, "_bpf", _refusing(22))
    assert list(bpf.links()) == []


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose call number is not known the error says so."""
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11"):
        bpf.link_info(1)


def _refusing(number: int) -> Any:
    def refuse(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


def test_no_descriptor_is_left_open(nic: Nic, pins: Path) -> None:
    """Looking and removing leave no descriptor open."""
    pin(nic.link(SCHED_CLS, TCX_EGRESS), pins / "tcx")
    nic.attach_tcx(TCX_INGRESS)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with nic.host.entered(), contextlib.suppress(FileNotFoundError):
        bpf.pinned_links(nic.index, str(pins))
        list(bpf.links())
        for one in bpf.programs(nic.index):
            bpf.remove(nic.index, one)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
