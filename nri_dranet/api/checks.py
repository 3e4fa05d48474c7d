"""Rules of a configuration that look at more than one field.

They work on plain document data, not on the finished model, so that they find their problems also where another field
is wrong: a user gets all problems in one go. Values that have the wrong type or cannot be read are passed over here;
the schema names them. Every function returns problems and never raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nri_dranet.api import config, values

Location = tuple[str | int, ...]

SUB_INTERFACE_MODES: Mapping[str, tuple[str, ...]] = {
    "macvlan": ("bridge", "private", "vepa", "passthru"),
    "ipvlan": ("l2", "l3", "l3s"),
    "vlan": (),
}
"""Kinds of child interfaces and their modes, the default first (``linux/if_link.h``)."""

IPV6_MIN_MTU = 1280
"""RFC 8200: below it the kernel removes IPv6 from an interface."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: where, which value (None: nothing to show), what is allowed, and the other field it clashes with."""

    location: Location
    value: Any
    message: str
    other: Location | None = None


def check(data: Mapping[str, Any]) -> list[Problem]:
    """Return every problem between the fields of a document."""
    interface = _object(data, "interface")
    vrf = _object(interface, "vrf")
    found = list(_interface(interface))
    found.extend(_sub_interface(_object(interface, "subInterface")))
    found.extend(_vrf(interface, vrf, data))
    found.extend(_routes(data, vrf))
    found.extend(_rules(data))
    found.extend(_neighbors(data))
    return found


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _items(parent: Mapping[str, Any], name: str, most: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the objects of a list with their positions; a list that is too long is refused elsewhere."""
    value = parent.get(name)
    if not isinstance(value, list | tuple) or len(value) > most:
        return []
    return [(i, item) for i, item in enumerate(value) if isinstance(item, Mapping)]


def _text(parent: Mapping[str, Any], name: str) -> str:
    value = parent.get(name)
    return value if isinstance(value, str) else ""


def _canonical(text: str, read: Any) -> str:
    try:
        return str(read(text))
    except ValueError:
        return ""


def _interface(interface: Mapping[str, Any]) -> Iterator[Problem]:
    addresses = interface.get("addresses")
    listed = addresses if isinstance(addresses, list | tuple) and len(addresses) <= config.MAX_ADDRESSES else ()
    if interface.get("dhcp") is True and addresses:
        yield Problem(
            ("interface", "dhcp"), True, "must not be set together with addresses", ("interface", "addresses")
        )
    seen: dict[str, str] = {}
    six = False
    for i, text in enumerate(listed):
        cidr = _canonical(text, values.interface_address) if isinstance(text, str) else ""
        if not cidr:
            continue
        address = cidr.partition("/")[0]
        if ":" in address:
            six = True
            if seen.setdefault(address, cidr) != cidr:
                yield Problem(
                    ("interface", "addresses", i),
                    text,
                    f"must not repeat {seen[address]} with another prefix length: an IPv6 address is there only once",
                )
    mtu = interface.get("mtu")
    if six and type(mtu) is int and config.MTU_MIN <= mtu < IPV6_MIN_MTU:
        yield Problem(
            ("interface", "mtu"),
            mtu,
            f"must be at least {IPV6_MIN_MTU} with an IPv6 address",
            ("interface", "addresses"),
        )


def _sub_interface(child: Mapping[str, Any]) -> Iterator[Problem]:
    where: Location = ("interface", "subInterface")
    kind, mode = child.get("type"), child.get("mode")
    modes = SUB_INTERFACE_MODES.get(kind) if isinstance(kind, str) else None
    if modes is None:
        return
    if isinstance(mode, str) and mode not in modes:
        allowed = f"must be one of {', '.join(modes)}" if modes else "must be left out"
        yield Problem((*where, "mode"), mode, f"{allowed} for type {kind}")
    if kind == "vlan" and "vlanID" not in child:
        yield Problem((*where, "vlanID"), None, "must be given for type vlan")
    if kind != "vlan" and "vlanID" in child:
        yield Problem((*where, "vlanID"), child["vlanID"], f"must be left out for type {kind}")


def _vrf(interface: Mapping[str, Any], vrf: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Problem]:
    if not vrf:
        return
    name = _text(vrf, "name")
    if name and name == _text(interface, "name"):
        yield Problem(
            ("interface", "vrf", "name"),
            name,
            "must differ from the interface's own name",
            ("interface", "name"),
        )
    if data.get("rules"):
        yield Problem(
            ("rules",),
            None,
            "must be left out with a VRF: what comes in through its interfaces looks into its table anyway",
            ("interface", "vrf", "name"),
        )


def _vrf_table(vrf: Mapping[str, Any]) -> int | None:
    name, table = vrf.get("name"), vrf.get("table")
    if table is None and isinstance(name, str) and name:
        return config.Vrf.model_construct(name=name, table=None).effective_table
    return table if type(table) is int else None


def _routes(data: Mapping[str, Any], vrf: Mapping[str, Any]) -> Iterator[Problem]:
    vrf_table = _vrf_table(vrf)
    seen: dict[tuple[str, int], tuple[int, Any]] = {}
    for i, route in _items(data, "routes", config.MAX_ROUTES):
        where: Location = ("routes", i)
        destination, gateway = _text(route, "destination"), _text(route, "gateway")
        family = values.family_of(destination)
        for name in ("gateway", "source"):
            own = values.family_of(_text(route, name))
            if family and own and own != family:
                yield Problem(
                    (*where, name), route[name], f"must be an IPv{family} address, as the route's destination is"
                )
        scope = route.get("scope", config.SCOPE_UNIVERSE)
        if scope == config.SCOPE_UNIVERSE and "gateway" not in route:
            yield Problem(
                (*where, "gateway"), None, "must be given, or the scope be 253: the destination is on the link itself"
            )
        if scope == config.SCOPE_LINK and gateway and family == 4:
            yield Problem(
                (*where, "gateway"), gateway, "must be left out with scope 253: the destination is on the link itself"
            )
        table = route.get("table", 0)
        if vrf and vrf_table is not None and type(table) is int and table not in {0, vrf_table}:
            yield Problem(
                (*where, "table"),
                table,
                f"must be left out or {vrf_table} with a VRF, whose table its routes are in",
                ("interface", "vrf", "name"),
            )
        yield from _repeated_route(where, i, route, seen)


def _repeated_route(
    where: Location, i: int, route: Mapping[str, Any], seen: dict[tuple[str, int], tuple[int, Any]]
) -> Iterator[Problem]:
    destination = _canonical(_text(route, "destination"), values.network)
    table = route.get("table", 0)
    if not destination or type(table) is not int:
        return
    key = (destination, table or config.TABLE_MAIN)
    hop = (
        _canonical(_text(route, "gateway"), values.host_address),
        _canonical(_text(route, "source"), values.host_address),
        route.get("scope", config.SCOPE_UNIVERSE),
    )
    first, first_hop = seen.setdefault(key, (i, hop))
    if first_hop != hop:
        yield Problem(
            (*where, "destination"),
            route["destination"],
            f"must not repeat the destination of routes[{first}] in table {key[1]}: one route of a table leads there",
        )


def _rules(data: Mapping[str, Any]) -> Iterator[Problem]:
    for i, rule in _items(data, "rules", config.MAX_RULES):
        source, destination = _text(rule, "source"), _text(rule, "destination")
        family, other = values.family_of(source), values.family_of(destination)
        if family and other and family != other:
            yield Problem(
                ("rules", i, "destination"), destination, f"must be an IPv{family} network, as the rule's source is"
            )


def _neighbors(data: Mapping[str, Any]) -> Iterator[Problem]:
    seen: dict[str, tuple[int, str]] = {}
    for i, neighbor in _items(data, "neighbors", config.MAX_NEIGHBORS):
        address = _canonical(_text(neighbor, "destination"), values.host_address)
        lladdr = _canonical(_text(neighbor, "hardwareAddr"), values.hardware_address)
        if not address or not lladdr:
            continue
        first, known = seen.setdefault(address, (i, lladdr))
        if known != lladdr:
            yield Problem(
                ("neighbors", i, "destination"),
                neighbor["destination"],
                f"must not repeat neighbors[{first}], which gives it the hardware address {known}",
            )
