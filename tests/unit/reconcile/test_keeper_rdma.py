"""RDMA devices in the keeper: which containers get their character devices, and a mode that was switched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nri_dranet.claims.facts import ObservedRdma
from nri_dranet.claims.plan import CharDevice, ClaimPlan, RdmaPlan
from nri_dranet.reconcile.hooktypes import Adjustment, ContainerRef

if TYPE_CHECKING:
    import pytest

    from nri_dranet.claims.facts import DeviceFacts
    from tests.unit.reconcile.conftest import Bench

VERBS = {name: CharDevice(path=f"/dev/infiniband/uverbs{name[-1]}", major=231, minor=192) for name in ("eth1", "eth2")}
VERBS["eth2"] = replace(VERBS["eth2"], minor=193)
CM = CharDevice(path="/dev/infiniband/rdma_cm", major=10, minor=58)


def plan(bench: Bench, listed_by: dict[str, tuple[str, ...]]) -> ClaimPlan:
    """Return a claim with two RDMA devices, each for a request of its own."""
    made = bench.plan(devices=("eth1", "eth2"))
    devices = tuple(
        replace(
            device,
            request=f"nic-{device.key.device}",
            rdma=RdmaPlan(link=f"mlx5_{place}", char_devices=(VERBS[device.key.device], CM)),
        )
        for place, device in enumerate(made.devices)
    )
    return replace(made, devices=devices, listed_by=listed_by)


def given(bench: Bench, container: str, *present: CharDevice) -> Adjustment | None:
    """Return what a container gets that has some devices already."""
    numbers = frozenset((each.major, each.minor) for each in present)
    ref = ContainerRef(name=container, devices=numbers)
    return bench.keeper.create_container(bench.sandbox(), ref, 0)


def test_all_containers_get_the_devices_where_none_lists_the_claim(bench: Bench) -> None:
    """Each node once, though both devices need it."""
    bench.keeper.prepare(plan(bench, {}))
    bench.run()
    wanted = Adjustment(devices=(VERBS["eth1"], CM, VERBS["eth2"]), memlock=True)
    assert given(bench, "app") == given(bench, "sidecar") == wanted


def test_a_container_that_lists_a_claim_has_its_devices_by_the_receipt(bench: Bench) -> None:
    """Nothing is given twice, and nothing to a sidecar that does not list the claim."""
    bench.keeper.prepare(plan(bench, {"app": ("",)}))
    bench.run()
    assert given(bench, "app", VERBS["eth1"], VERBS["eth2"], CM) == Adjustment(memlock=True)
    assert given(bench, "sidecar") == Adjustment(memlock=True)


def test_a_runtime_without_cdi_gives_them_by_adjustment(bench: Bench) -> None:
    """What the receipt has not brought is added, for the requests that the container names."""
    bench.keeper.prepare(plan(bench, {"app": ("",), "one": ("nic-eth2",)}))
    bench.run()
    assert given(bench, "app") == Adjustment(devices=(VERBS["eth1"], CM, VERBS["eth2"]), memlock=True)
    assert given(bench, "one") == Adjustment(devices=(VERBS["eth2"], CM), memlock=True)
    assert given(bench, "sidecar") == Adjustment(memlock=True)


def test_the_limit_of_locked_memory_stays_where_the_operator_wants_it(bench: Bench) -> None:
    """--lift-memlock=false."""
    bench.keeper._lift_memlock = False
    bench.keeper.prepare(plan(bench, {"app": ("",)}))
    bench.run()
    assert given(bench, "sidecar") is None


def test_a_switch_of_the_mode_after_prepare_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Event on the pod says what became of the RDMA device; nothing is said when the mode is as it was."""
    attach = bench.kernel.attach

    def switched(*args: object, **options: object) -> tuple[DeviceFacts, ...]:
        facts = attach(*args, **options)  # type: ignore[arg-type]
        return tuple(replace(fact, exclusive_rdma=True, rdma=ObservedRdma(link="mlx5_0")) for fact in facts)

    bench.keeper.prepare(plan(bench, {}))
    bench.run()
    assert bench.events == []
    bench.stop()
    monkeypatch.setattr(bench.kernel, "attach", switched)
    bench.run(sandbox="s2")
    texts = [text for _, reason, text in bench.events if reason == "RDMAModeSwitched"]
    assert len(texts) == 2
    assert "switched to exclusive after device eth1 was prepared: its RDMA device mlx5_0 moved into the pod" in texts[0]
