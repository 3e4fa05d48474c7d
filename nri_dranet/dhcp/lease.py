"""What a DHCP server gave, as plain data: it stands in a claim's plan and in the journal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FOREVER: Final = 0xFFFF_FFFF
"""A lease time (seconds) without an end (RFC 2131, section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRoute:
    """A route of options 121, 33 or 3. ``destination`` is a canonical CIDR; ``gateway`` None: it is on the link."""

    destination: str
    gateway: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An address for a time, and what came with it.

    ``address`` is a CIDR; where the server names no mask it is that of the address's class. ``obtained`` is when the
    request for it was sent (CLOCK_BOOTTIME, seconds), from which ``lifetime``, ``renewal`` (T1) and ``rebinding`` (T2)
    count. ``client_id`` is option 61 as hex text, ``hardware_address`` the ``chaddr`` that it was asked with.
    ``server_hardware_address`` is where the answer came from: the server or the relay before it.

    ``routes`` are those of option 121 alone where that came, else of 33 and 3. ``dns_servers`` (6), ``domain`` (15),
    ``search_domains`` (119) and ``mtu`` (26) are data for whoever asks: nothing of them is applied.
    """

    address: str
    server: str
    obtained: float
    lifetime: int
    renewal: int
    rebinding: int
    hardware_address: str
    client_id: str
    server_hardware_address: str = ""
    routes: tuple[LeaseRoute, ...] = ()
    dns_servers: tuple[str, ...] = ()
    domain: str = ""
    search_domains: tuple[str, ...] = ()
    mtu: int | None = None

    @property
    def ip(self) -> str:
        """The address without its prefix length."""
        return self.address.partition("/")[0]

    @property
    def expires(self) -> float:
        """When the address must not be used any more (CLOCK_BOOTTIME, seconds; infinite: never)."""
        return self._at(self.lifetime)

    @property
    def renews(self) -> float:
        """When its server is to be asked for more time."""
        return self._at(self.renewal)

    @property
    def rebinds(self) -> float:
        """When any server is to be asked."""
        return self._at(self.rebinding)

    def left(self, now: float) -> int:
        """Return the whole seconds that are left, 0 when it has expired, ``FOREVER`` when it never does."""
        return FOREVER if self.lifetime == FOREVER else max(0, int(self.expires - now))

    def _at(self, seconds: int) -> float:
        return math.inf if self.lifetime == FOREVER else self.obtained + seconds
