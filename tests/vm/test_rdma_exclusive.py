"""RDMA on a kernel whose RDMA devices belong to one namespace each: they move with their interface and come home."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nri_dranet.attach.engine import AttachError, Engine
from nri_dranet.inventory.device import Device
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.netlink.nldev import NetnsMode, RdmaSocket
from nri_dranet.sysfs import Sysfs
from tests.vm.bed import PARAMETERS, conditions, eventually, links, rdma_links, run, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vm.bed import Bed

pytestmark = pytest.mark.vm(arguments="ib_core.netns_mode=0")


def test_a_function_and_its_rdma_device_move_together(bed: Bed) -> None:
    """Both are in the pod and not on the node, the claim says so; both come home and are found as before."""
    vf, address = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    with RdmaSocket() as socket:
        assert socket.netns_mode() is NetnsMode.EXCLUSIVE
    plan = bed.plan(bed.device(vf))
    assert plan.rdma is not None
    assert plan.rdma.exclusive
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts)["RDMALinkReady"] == ("True", "RDMALinkReady")
    wanted = {
        "Ready": ("True", "NetworkDeviceReady"),
        "NetworkReady": ("True", "NetworkReady"),
        "RDMALinkReady": ("True", "RDMALinkReady"),
    }
    # The card's driver tells of the carrier a while after the interface is up.
    eventually(lambda: conditions(bed.look(pod, plan)) == wanted, "all conditions true")
    assert links(pod)["net1"]["parentdev"] == address
    assert rdma_links(pod)["mlx5_0"]["netdev"] == "net1"
    assert "mlx5_0" not in rdma_links()
    assert Sysfs().rdma_names() == ()
    (done,) = bed.detach(pod, plan)
    assert done.home
    assert not done.problems
    assert rdma_links()["mlx5_0"]["netdev"] == vf
    assert rdma_links(pod) == {}
    assert bed.device(vf).rdma == "mlx5_0"


def test_the_character_devices_are_those_after_the_move(bed: Bed) -> None:
    """A number that changes on the way is told as it is in the end, with mode and owner as they were."""
    vf, _ = bed.vf()
    blocker = bed.test_rdma("blocker", "-", "ib")
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    assert plan.rdma is not None
    # The lower number is free now, and the kernel gives the lowest.
    write(PARAMETERS / "remove", blocker)
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert facts.rdma is not None
    told = facts.rdma.char_devices
    shown = Sysfs().rdma_char_devices("mlx5_0")
    assert [(one.path, one.major, one.minor) for one in told] == [(one.path, one.major, one.minor) for one in shown]
    assert told != plan.rdma.char_devices
    assert [one.mode for one in told] == [one.mode for one in plan.rdma.char_devices]
    assert all(os.makedev(one.major, one.minor) == os.stat(one.path).st_rdev for one in told)  # noqa: PTH116
    (done,) = bed.detach(pod, plan)
    assert done.home


def test_the_uverbs_device_opens_in_its_pods_namespace_alone(bed: Bed) -> None:
    """The kernel asks at open whose namespace it is."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert facts.rdma is not None
    node = facts.rdma.char_devices[0].path
    run("ip", "netns", "exec", pod, "sh", "-c", f"exec 3<>{node}")
    with pytest.raises(AssertionError):
        run("sh", "-c", f"exec 3<>{node}")
    bed.detach(pod, plan)


def test_an_infiniband_device_without_interface_moves(bed: Bed) -> None:
    """A device without an interface moves too; its port's state is in the claim."""
    bed.test_rdma("mlx5_0", "-", "ib")
    plan = bed.plan(Device(name="ib", rdma="mlx5_0"))
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts) == {"Ready": ("True", "RDMAOnlyDeviceReady"), "RDMALinkReady": ("True", "RDMALinkReady")}
    assert set(rdma_links(pod)) == {"mlx5_0"}
    write(PARAMETERS / "state", "mlx5_0 1")
    assert conditions(bed.look(pod, plan))["RDMALinkReady"] == ("False", "RDMAPortDown")
    (done,) = bed.detach(pod, plan)
    assert done.home
    assert "mlx5_0" in rdma_links()


def test_ipoib_is_found_in_the_pod_after_its_rdma_device_moved(bed: Bed) -> None:
    """The kernel takes the interface away with the RDMA device and makes another in the pod; home it is alike."""
    run("modprobe", "ib_ipoib")
    _, address = bed.vf(1)
    bed.test_rdma("mlx5_0", address, "ib")
    eventually(lambda: ipoib(links()), "the interface of IPoIB")
    name = ipoib(links())
    device = bed.device(name)
    assert device.rdma == "mlx5_0"
    plan = bed.plan(device)
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert facts.interface is not None
    assert facts.interface.name == "net1"
    assert not ipoib(links())
    assert "net1" in links(pod)
    assert "mlx5_0" in rdma_links(pod)
    (done,) = bed.detach(pod, plan)
    assert done.home
    assert not done.problems
    assert ipoib(links()) == name
    assert "mlx5_0" in rdma_links()


def ipoib(shown: dict[str, dict[str, str]]) -> str:
    """Return the name of the one interface of IPoIB, empty without."""
    return next((name for name, link in shown.items() if link["link_type"] == "infiniband"), "")


def test_a_deleted_namespace_gives_both_back(bed: Bed) -> None:
    """The kernel brings both home, the interface under its pod's name; it gets its own again."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    bed.attach(pod, plan)
    bed.end(pod)
    eventually(lambda: "net1" in links() and "mlx5_0" in rdma_links(), "both at home")
    (done,) = bed.detach(None, plan)
    assert done.home
    assert not done.problems
    assert rdma_links()["mlx5_0"]["netdev"] == vf


def test_a_function_that_is_taken_away_takes_its_rdma_device_along(bed: Bed) -> None:
    """sriov_numvfs=0 while both are in the pod: no hang, and the claim says that the device is lost."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    bed.attach(pod, plan)
    bed.no_vfs()
    eventually(lambda: "net1" not in links(pod), "the interface gone")
    assert rdma_links(pod) == {}
    facts = bed.look(pod, plan)
    assert {status for status, _ in conditions(facts).values()} == {"False"}
    (done,) = bed.detach(pod, plan)
    assert not done.home


def test_f25_a_driver_that_cannot_move_its_device_leaves_everything_as_it_was(bed: Bed) -> None:
    """Rxe refuses to move; the error names the device and the reason, and the interface is back."""
    run("modprobe", "rdma_rxe")
    run("rdma", "link", "add", "rxe0", "type", "rxe", "netdev", bed.vf()[0])
    bed.stack.callback(run, "rdma", "link", "del", "rxe0", check=False)
    vf, _ = bed.vf()
    before = links()[vf]
    plan = bed.plan(Device(name="rxe", rdma="rxe0"))
    pod = bed.pod()
    with pytest.raises(AttachError, match=r"rxe0.*cannot be moved"):
        bed.attach(pod, plan)
    assert links()[vf]["ifindex"] == before["ifindex"]
    assert "rxe0" in rdma_links()


def test_a_name_that_the_pod_gave_is_no_loss(bed: Bed) -> None:
    """A pod may rename its RDMA device; it is found by what it is, comes home, and has its name again."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    bed.rdma.append("mine")
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    bed.attach(pod, plan)
    run("ip", "netns", "exec", pod, "rdma", "dev", "set", "mlx5_0", "name", "mine")
    assert conditions(bed.look(pod, plan))["RDMALinkReady"][0] == "True"
    (done,) = bed.detach(pod, plan)
    assert done.home
    assert not done.problems
    assert set(rdma_links()) == {"mlx5_0"}


def test_f25_the_mode_is_switched_while_a_device_is_prepared(bed: Bed) -> None:
    """F25: prepared in exclusive mode, attached in shared mode: nothing moves, and the way back knows it."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    run("rdma", "system", "set", "netns", "shared")
    try:
        pod = bed.pod()
        (facts,) = bed.attach(pod, plan)
        assert conditions(facts)["Ready"][0] == "True"
        assert not facts.exclusive_rdma
        assert "net1" in links(pod)
        assert "mlx5_0" in rdma_links()
        (done,) = bed.detach(pod, plan)
        assert done.home
        assert not done.problems
    finally:
        bed.end(next(iter(bed.pods)))
        eventually(exclusive_again, "exclusive mode again")


def test_f25_a_device_prepared_in_shared_mode_moves_in_exclusive_mode(bed: Bed) -> None:
    """F25, the other way round: the mode is read at each attach."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    assert plan.rdma is not None
    plan = replace(plan, rdma=replace(plan.rdma, exclusive=False))
    pod = bed.pod()
    (facts,) = bed.attach(pod, plan)
    assert facts.exclusive_rdma
    assert "mlx5_0" in rdma_links(pod)
    assert conditions(facts)["RDMALinkReady"] == ("True", "RDMALinkReady")
    (done,) = bed.detach(pod, plan)
    assert done.home
    assert "mlx5_0" in rdma_links()


def exclusive_again() -> bool:
    """Try to set the mode, which needs all other namespaces gone."""
    run("rdma", "system", "set", "netns", "exclusive", check=False)
    with RdmaSocket() as socket:
        return socket.netns_mode() is NetnsMode.EXCLUSIVE


@pytest.mark.parametrize("moved", ["interface", "rdma device"])
def test_a_process_that_dies_between_the_moves_leaves_no_device_behind(bed: Bed, moved: str) -> None:
    """Kill -9 after one half has moved: the next attach finishes, the next detach brings both home."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    for finish in (True, False):
        if moved == "interface":
            run("ip", "link", "set", vf, "netns", pod)
        else:
            run("rdma", "dev", "set", "mlx5_0", "netns", pod)
        if finish:
            (facts,) = bed.attach(pod, plan)
            assert conditions(facts)["Ready"][0] == conditions(facts)["RDMALinkReady"][0] == "True"
        (done,) = bed.detach(pod, plan)
        assert done.home
        assert not done.problems
        assert vf in links()
        assert "mlx5_0" in rdma_links()


def test_a_process_that_dies_in_an_attach_is_followed_by_one_that_finishes(bed: Bed) -> None:
    """SIGKILL from within, right after the RDMA device has moved."""
    vf, _ = bed.vf()
    bed.test_rdma("mlx5_0", vf)
    plan = bed.plan(bed.device(vf))
    pod = bed.pod()
    die_in(lambda engine: engine.attach([plan], bed.pods[pod], deadline=time.monotonic() + 120))
    assert "mlx5_0" in rdma_links(pod)
    (facts,) = bed.attach(pod, plan)
    assert conditions(facts)["Ready"][0] == conditions(facts)["RDMALinkReady"][0] == "True"
    (done,) = bed.detach(pod, plan)
    assert done.home


def die_in(work: Callable[[Engine], object]) -> None:
    """Do work in a process that dies by SIGKILL as soon as it has moved an RDMA device."""
    child = os.fork()
    if child == 0:
        move = RdmaSocket.move

        def fatal(self: RdmaSocket, index: int, netns: NetNs) -> None:
            move(self, index, netns)
            os.kill(os.getpid(), signal.SIGKILL)

        RdmaSocket.move = fatal  # type: ignore[method-assign]
        try:
            with NetNs.current() as host:
                work(Engine(host_netns=host))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert Path(f"/proc/{child}").exists() is False
