"""Names of devices in a ResourceSlice: DNS labels made from what names an interface or a PCI function."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

MAX_NAME: Final = 63
"""Characters of a device name (``resource.k8s.io/v1``: a DNS-1123 label)."""

_ENCODED: Final = "net-"
_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_DIGEST: Final = 8


def is_label(name: str) -> bool:
    """Tell whether a text is a DNS-1123 label."""
    return len(name) <= MAX_NAME and _LABEL.fullmatch(name) is not None


def interface_device_name(name: str) -> str:
    """Name the device of an interface: its own name where that is a label, else ``net-`` and its bytes in base32.

    Two interfaces never get one name: a name that another one's encoding could be is encoded too.
    """
    if is_label(name) and not _is_encoding(name):
        return name
    text = base64.b32encode(name.encode("utf-8", "surrogateescape")).decode("ascii").rstrip("=").lower()
    return _ENCODED + text if name else ""


def pci_device_name(address: str, qualifier: str = "") -> str:
    """Name the device of a PCI function: ``pci-0000-8a-00-0``.

    Args:
        address: the full PCI address.
        qualifier: tells several interfaces of one function apart (its port's or its own name); empty for the only one.
    """
    name = f"pci-{address.lower().replace(':', '-').replace('.', '-')}"
    if not qualifier:
        return name
    full = f"{name}-{interface_device_name(qualifier)}"
    if len(full) <= MAX_NAME:
        return full
    digest = hashlib.sha256(qualifier.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST]
    return f"{full[: MAX_NAME - _DIGEST - 1].rstrip('-')}-{digest}"


def _is_encoding(name: str) -> bool:
    """Tell whether a label is what another interface's name is encoded as."""
    if not name.startswith(_ENCODED):
        return False
    text = name.removeprefix(_ENCODED).upper()
    try:
        data = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return False
    # Bits that the padding hides make several texts of one value; only the canonical one is ever produced.
    if base64.b32encode(data).decode("ascii").rstrip("=") != text:
        return False
    plain = data.decode("utf-8", "surrogateescape")
    return not is_label(plain) or _is_encoding(plain)
