"""The ``--filter``: a CEL expression that says which devices are published.

Two dialects are understood. The reference's: ``attributes["dra.net/type"].StringValue`` (``IntValue``, ``BoolValue``,
``VersionValue``). That of device classes: ``device.attributes["dra.net"].type``; ``device.driver``,
``device.capacity`` and the device's ``name`` are there too. False or no boolean leaves a device out; an error of
evaluation keeps it, as the reference does. The usual expressions are decided without a CEL library, which costs
memory and time at start.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = logging.getLogger(__name__)

DEFAULT: Final = '!("dra.net/type" in attributes) || attributes["dra.net/type"].StringValue != "veth"'
"""Keeps veth pairs out: the cluster's network makes one a pod."""

_GO_NAMES: Final = {"string": "StringValue", "int": "IntValue", "bool": "BoolValue", "version": "VersionValue"}
_CACHED: Final = 4096


class DeviceFilter:
    """Decides by an expression. Thread-safe."""

    def __init__(self, expression: str, driver: str) -> None:
        """Compile an expression.

        Args:
            expression: CEL; empty keeps everything.
            driver: the driver's name, for ``device.driver``.

        Raises:
            ValueError: it does not compile; the text has the position.
        """
        self.expression = expression.strip()
        self._driver = driver
        self._program: Any = None
        self._told = False
        self._cache: dict[str, tuple[Mapping[str, Any], bool]] = {}
        if self.expression not in ("", "true", "false", DEFAULT):
            self._program = self._compile()

    def keeps(self, name: str, attributes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Tell whether a device is published.

        Args:
            name: the device's name.
            attributes: qualified name → API value.
        """
        if self._program is None:
            if self.expression == DEFAULT:
                return (attributes.get("dra.net/type") or {}).get("string") != "veth"
            return self.expression != "false"
        known = self._cache.get(name)
        if known is not None and known[0] == attributes:
            return known[1]
        verdict = self._evaluate(name, attributes)
        if len(self._cache) >= _CACHED:
            self._cache.clear()
        self._cache[name] = (attributes, verdict)
        return verdict

    def _compile(self) -> Any:
        import cel  # noqa: PLC0415 - most nodes use the default expression, which needs none

        try:
            program = cel.compile(self.expression)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"--filter {self.expression!r} is no CEL expression: {error}") from error
        return program

    def _evaluate(self, name: str, attributes: Mapping[str, Mapping[str, Any]]) -> bool:
        try:
            answer = self._program.execute(_variables(self._driver, name, attributes))
        except Exception as error:  # noqa: BLE001 - whatever an expression runs into, the device stays (the reference)
            if not self._told:
                self._told = True
                LOG.warning(
                    "the filter fails on a device, which is kept; more are not told",
                    extra=fields(device=name, error=error, filter=self.expression),
                )
            return True
        if not isinstance(answer, bool):
            LOG.warning("the filter gives no boolean for a device, which is left out", extra=fields(device=name))
            return False
        return answer


def _variables(driver: str, name: str, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    domains: dict[str, dict[str, Any]] = {}
    flat: dict[str, dict[str, Any]] = {}
    for qualified, value in attributes.items():
        kind, plain = next(iter(value.items()))
        domain, _, short = qualified.rpartition("/")
        domains.setdefault(domain, {})[short] = plain
        flat[qualified] = {_GO_NAMES.get(kind, kind): plain}
    device = {"driver": driver, "attributes": domains, "capacity": {}, "name": name}
    return {"attributes": flat, "device": device, "name": name, "capacity": {}}
