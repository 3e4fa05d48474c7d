"""Names of devices in a ResourceSlice: DNS labels made from what names an interface or a PCI function."""

from __future__ import annotations

import base64
import re
from typing import Final

MAX_NAME: Final = 63
"""Characters of a device name (``resource.k8s.io/v1``: a DNS-1123 label)."""

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NOT_LABEL: Final = re.compile(r"[^a-z0-9]+")


def is_label(name: str) -> bool:
    """Tell whether a text is a DNS-1123 label."""
    return len(name) <= MAX_NAME and _LABEL.fullmatch(name) is not None


def interface_device_name(name: str) -> str:
    """Name the device of an interface: its own name where that is a label, else ``net-`` and its bytes in base32."""
    if is_label(name):
        return name
    data = name.encode("utf-8", "surrogateescape")
    return "net-" + base64.b32encode(data).decode("ascii").rstrip("=").lower()


def pci_device_name(address: str, qualifier: str = "") -> str:
    """Name the device of a PCI function: ``pci-0000-8a-00-0``.

    Args:
        address: the full PCI address.
        qualifier: tells several interfaces of one function apart (its port's or its own name); empty for the only one.
    """
    name = f"pci-{address.lower().replace(':', '-').replace('.', '-')}"
    if not qualifier:
        return name
    tail = _NOT_LABEL.sub("-", qualifier.lower()).strip("-")
    if tail != qualifier:
        tail = interface_device_name(qualifier)
    return f"{name}-{tail}"[:MAX_NAME].rstrip("-")
