"""What the daemon was told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``nri-dranet run`` was told. Times are seconds."""

    kubeconfig: str
    node_name: str
    driver_name: str
    bind_address: str
    filter: str
    share: str
    journal: Path
    kubelet_root_dir: Path
    nri_socket: Path
    nri_name: str
    nri_index: str
    pod_uid: str
    cdi_dir: Path
    min_poll: float
    max_poll: float
    poll_burst: int
    move_ib_interfaces: bool
    allow: frozenset[str]
    deny: frozenset[str]
    device_taints: str
    end_unattached_pods: bool
    lift_memlock: bool
    feature_gates: dict[str, bool]
    log_level: str
    log_format: str
