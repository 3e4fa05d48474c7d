"""The reasons of conditions: each a word that a user can look up in ``docs/user/status.md``."""

from __future__ import annotations

from typing import Final

READY: Final = "Ready"
NETWORK_READY: Final = "NetworkReady"
RDMA_LINK_READY: Final = "RDMALinkReady"

DEVICE_READY: Final = "NetworkDeviceReady"
RDMA_ONLY_READY: Final = "RDMAOnlyDeviceReady"
ADMIN_ACCESS: Final = "AdminAccess"
RENAMED: Final = "Renamed"

GOOD: Final[dict[str, str]] = {
    DEVICE_READY: "the interface is in the pod, as the claim asked for",
    RDMA_ONLY_READY: "the RDMA device without interface is at the pod's disposal",
    NETWORK_READY: "the interface is up and has all its addresses",
    RDMA_LINK_READY: "the RDMA link is in the pod's namespace (exclusive mode)",
    ADMIN_ACCESS: "admin access: the device is reported, it is not moved",
    RENAMED: "the interface is in the pod, where somebody gave it another name",
}
"""Reasons of conditions that are True."""

WAITING: Final[dict[str, str]] = {
    "Prepared": "the device is prepared; the pod's sandbox has not been started yet",
    "LookFailed": "what the kernel shows could not be read for a while",
}
"""Reasons of conditions that are Unknown."""

REFUSED: Final[dict[str, str]] = {
    "InvalidConfiguration": "the claim's or class's configuration is refused; the message names each field",
    "ForeignPool": "the device belongs to another node's pool",
    "HostNetwork": "the pod is on the host's network, no interface can be moved into it",
    "LeaseNotObtained": "no DHCP server gave an address in time; the message has what was asked and what came",
    "LeaseExpired": "the DHCP lease ended before the pod was started; a new one is being asked for",
    "DeviceInUse": "another live claim has the device",
    "ClaimInUse": "another pod holds the claim, whose devices move into one pod at a time",
    "NotReservedYet": "the claim was not known to be reserved for the pod; kubelet tries again",
    "DeviceBusy": "the device is being attached or given back just now; kubelet tries again",
    "DeviceNotReturned": "the device is still in the namespace of a former pod; kubelet tries again",
    "ClaimReleased": "kubelet has released the claim while the pod was being started; kubelet tries again",
    "DeviceUnreadable": "the device could not be read from the kernel",
    "DeviceIsUplink": "the node itself needs the device",
    "DeviceGone": "the device is not on the node any more",
    "JournalFailed": "the node's journal could not be written (disk full or read-only)",
    "PrepareFailed": "the device could not be prepared",
}
"""Reasons of a device that never was on its way into the pod. All conditions are False."""

ATTACH: Final[dict[str, str]] = {
    "AttachFailed": "the device could not be attached",
    "NameInUse": "the interface's name is taken in the pod",
    "MoveFailed": "the kernel refused to move the device",
    "ChildRefused": "the kernel refused to make the sub-interface",
    "MTURefused": "the device cannot have the MTU",
    "HardwareAddressRefused": "the device cannot have the hardware address",
    "SizeRefused": "the device cannot have the GSO or GRO size",
    "LinkUpFailed": "the kernel refused to set the interface up",
    "AddressRefused": "the kernel refused an address",
    "RouteRefused": "the kernel refused a route",
    "RuleRefused": "the kernel refused a routing rule",
    "NeighbourRefused": "the kernel refused a neighbour entry",
    "SysctlRefused": "the kernel refused a setting of the interface (forwarding, ARP and the like)",
    "EthtoolRefused": "the device cannot have a feature or private flag",
    "VRFRefused": "the kernel refused the VRF, or the way into it",
    "VRFTableDiffers": "the pod has a VRF of that name with another table",
    "BPFDetachFailed": "a BPF program could not be taken off the interface",
    "RDMAMoveFailed": "the kernel refused to move the RDMA link",
    "NamespaceGone": "the pod's network namespace is gone",
    "DeadlineExceeded": "attaching took longer than the container runtime waits",
}
"""Reasons of an attach that failed and was undone. All conditions are False; the message names device and step."""

CHANGED: Final[dict[str, str]] = {
    "DeviceMissing": "the device was in the pod and is not there any more",
    "LinkDown": "the interface is down in the pod",
    "NoCarrier": "the interface has no carrier: cable, switch port or peer",
    "LeaseLost": "the interface's DHCP lease has ended, or its server took it back; a new one is asked for",
    "AddressMissing": "an address that the claim asked for is not on the interface any more",
    "RDMALinkNotInPod": "the RDMA link is not in the pod's namespace",
    "RDMAPortDown": "the RDMA port is not active",
    "Detached": "the device was given back to the node",
    "Unprepared": "kubelet has released the claim; the device is back on the node",
}
"""Reasons of what happened after the device was in the pod. The conditions concerned are False."""

EVENTS: Final[dict[str, str]] = {
    "DeviceAttachedLate": "the pod was started while this program was away; its device was attached afterwards",
    "DeviceNotRestored": "a device came back to the node, but a part of its former state could not be restored",
    "ReceiptNotWritten": "the CDI file of a claim could not be written (disk full or read-only)",
    "ReceiptNotRemoved": "the CDI file of a claim could not be removed",
    "RecordQuarantined": "the node's record of a claim could not be read and was set aside",
    "FilterRefused": "the annotation of the node is no filter expression; the filter that counted before counts on",
    "SliceFieldDropped": "the API server drops a field of the devices that it does not know or has off",
    "DeviceRefused": "the API server refuses a device, which is left out of the slices",
    "JournalDamaged": "the node's journal could not be read, or not all of it; claims were restored from copies",
    "JournalUnusable": "the node's journal cannot be used (disk full or read-only); the program waits until it can",
    "RecordRebuilt": "the node had no record of the claim; it was made anew from the pod, the slices and the claim",
    "RDMAModeSwitched": "the node's RDMA mode was switched between Prepare and attach",
    "PodEvicted": "the pod ran without its device and could not get it late (--end-unattached-pods)",
    "StatusNotWritable": "the API server refuses every change of the claim's status; the message says why",
}
"""Reasons of Events beyond those of conditions, which are used for Events too."""

CONDITIONS: Final[dict[str, str]] = {**GOOD, **WAITING, **REFUSED, **ATTACH, **CHANGED}
"""Every reason that a condition of this driver can have."""
