"""The reasons of conditions: each a word that a user can look up in ``docs/user/status.md``."""

from __future__ import annotations

from typing import Final

READY: Final = "Ready"
NETWORK_READY: Final = "NetworkReady"
RDMA_LINK_READY: Final = "RDMALinkReady"

DEVICE_READY: Final = "NetworkDeviceReady"
RDMA_ONLY_READY: Final = "RDMAOnlyDeviceReady"
ADMIN_ACCESS: Final = "AdminAccess"

GOOD: Final[dict[str, str]] = {
    DEVICE_READY: "the interface is in the pod, as the claim asked for",
    RDMA_ONLY_READY: "the RDMA device without interface is at the pod's disposal",
    NETWORK_READY: "the interface is up and has all its addresses",
    RDMA_LINK_READY: "the RDMA link is in the pod's namespace (exclusive mode)",
    ADMIN_ACCESS: "admin access: the device is reported, it is not moved",
}

WAITING: Final[dict[str, str]] = {
    "Prepared": "the device is prepared; the pod's sandbox has not been started yet",
    "LookFailed": "what the kernel shows could not be read for a while",
}

BAD: Final[dict[str, str]] = {
    "InvalidConfiguration": "the claim's or class's configuration is refused; the message names each field",
    "ForeignPool": "the device belongs to another node's pool",
    "HostNetwork": "the pod is on the host's network, no interface can be moved into it",
    "DeviceInUse": "another live claim has the device",
    "ClaimInUse": "another pod holds the claim, whose devices move into one pod at a time",
    "NotReservedYet": "the claim was not known to be reserved for the pod; kubelet tries again",
    "DeviceBusy": "the device is being attached or given back just now",
    "DeviceUnreadable": "the device could not be read from the kernel",
    "DeviceIsUplink": "the node itself needs the device",
    "DeviceGone": "the device is not on the node any more",
    "JournalFailed": "the node's journal could not be written (disk full or read-only)",
    "PrepareFailed": "the device could not be prepared",
    "AttachFailed": "the device could not be attached",
    "NameInUse": "the interface's name is taken in the pod",
    "MoveFailed": "the kernel refused to move the device",
    "NamespaceGone": "the pod's network namespace is gone",
    "SandboxStopped": "the sandbox was stopped while the device was being attached",
    "DeadlineExceeded": "attaching took longer than the container runtime waits",
    "DeviceMissing": "the device was in the pod and is not there any more",
    "LinkDown": "the interface is down in the pod",
    "NoCarrier": "the interface has no carrier: cable, switch port or peer",
    "AddressMissing": "an address that the claim asked for is not on the interface any more",
    "RDMALinkNotInPod": "the RDMA link is not in the pod's namespace",
    "Detached": "the device was given back to the node",
    "Unprepared": "kubelet has released the claim",
}
"""More words come from the attach steps; each has the form ``<What>Refused`` and stands for what the kernel refused."""
