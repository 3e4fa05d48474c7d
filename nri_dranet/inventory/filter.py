"""The ``--filter`` and ``--share``: CEL expressions that say which devices are published, and which are shared.

Two dialects are understood. The reference's: ``attributes["dra.net/type"].StringValue`` (``IntValue``, ``BoolValue``,
``VersionValue``). That of device classes: ``device.attributes["dra.net"].type``; ``device.driver``,
``device.capacity`` and the device's ``name`` are there too (capacity is empty: no device has any).

False or no boolean leaves a device out; an error of evaluation keeps it for ``--filter``, as the reference does. The
usual expressions are decided without a CEL library, which costs memory and time at start.
"""

from __future__ import annotations

import logging
import re
import sys
import types
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = logging.getLogger(__name__)

DEFAULT: Final = '!("dra.net/type" in attributes) || attributes["dra.net/type"].StringValue != "veth"'
"""Keeps veth pairs out: the cluster's network makes one a pod."""

_GO_NAMES: Final = {"string": "StringValue", "int": "IntValue", "bool": "BoolValue", "version": "VersionValue"}
_CACHED: Final = 4096
_CONSTANTS: Final = {"": True, "true": True, "false": False}

_VARIABLES: Final = frozenset({"attributes", "device", "name", "capacity"})
_TYPES: Final = frozenset(
    ["bool", "bytes", "double", "duration", "dyn", "int", "list", "map", "null_type", "string", "timestamp", "type"]
) | {"uint"}
_BINDING: Final = re.compile(r"\.(?:all|exists|exists_one|filter|map)\s*\(\s*(\w+)\s*,")
_DOMAINS: Final = ("dra.net", "resource.kubernetes.io")


class DeviceFilter:
    """Decides by an expression. Thread-safe."""

    def __init__(self, expression: str, driver: str, *, flag: str = "--filter", on_error: bool = True) -> None:
        """Compile an expression.

        Args:
            expression: CEL; empty keeps everything.
            driver: the driver's name, for ``device.driver``.
            flag: where the expression comes from, for messages.
            on_error: the verdict on a device on which it fails.

        Raises:
            ValueError: it does not compile, or names what there is not; the text has the position.
        """
        self.expression = expression.strip()
        self._driver = driver
        self._flag = flag
        self._on_error = on_error
        self._program: Any = None
        self._told: set[str] = set()
        self._cache: dict[str, tuple[Mapping[str, Any], bool]] = {}
        if self.expression not in _CONSTANTS and self.expression != DEFAULT:
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
            return _CONSTANTS[self.expression]
        known = self._cache.get(name)
        if known is not None and (known[0] is attributes or known[0] == attributes):
            return known[1]
        verdict = self._evaluate(name, attributes)
        if len(self._cache) >= _CACHED:
            self._cache.clear()
        self._cache[name] = (attributes, verdict)
        return verdict

    def _compile(self) -> Any:
        try:
            program = _library().compile(self.expression)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"{self._flag}: {self.expression!r} is no CEL expression: {error}") from error
        # An expression that asks for what there is not would fail on every device, and so keep every device.
        bound = {match[1] for match in _BINDING.finditer(self.expression)}
        for word in sorted(set(program.variables()) - _VARIABLES - _TYPES - bound):
            raise ValueError(self._unknown("variable", word, f"there are {', '.join(sorted(_VARIABLES))}"))
        try:
            program.execute(_variables(self._driver, "", {}))
        except RuntimeError as error:
            if "ndefined" in str(error):
                raise ValueError(f"{self._flag}: {self.expression!r}: {error}") from error
        except Exception as error:  # noqa: BLE001 - a device without attributes says nothing more about the expression
            LOG.debug("the filter fails on a device without attributes", extra=fields(error=error))
        return program

    def _unknown(self, what: str, word: str, known: str) -> str:
        found = re.search(rf"\b{re.escape(word)}\b", self.expression)
        line = self.expression.count("\n", 0, found.start()) + 1 if found else 1
        column = found.start() - self.expression.rfind("\n", 0, found.start()) if found else 1
        return f"{self._flag}: {self.expression!r}, line {line}, column {column}: unknown {what} {word!r}; {known}"

    def _evaluate(self, name: str, attributes: Mapping[str, Mapping[str, Any]]) -> bool:
        try:
            answer = self._program.execute(_variables(self._driver, name, attributes))
        except Exception as error:  # noqa: BLE001 - whatever an expression runs into, there is a verdict (the reference)
            verdict = "kept" if self._on_error else "left out"
            text = f"the expression of {self._flag} fails on a device, which is {verdict}; more are not told"
            self._tell("error", text, name, str(error))
            return self._on_error
        if not isinstance(answer, bool):
            text = f"the expression of {self._flag} gives no boolean for a device, which is left out; more are not told"
            self._tell("kind", text, name, f"it gives {answer!r}")
            return False
        return answer

    def _tell(self, kind: str, text: str, name: str, error: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            LOG.warning(text, extra=fields(device=name, error=error, expression=self.expression))


def _library() -> Any:
    """Import the CEL library at first use, without its command line, which costs 25 MB and a fifth of a second."""
    command_line = "cel.cli"
    absent = command_line not in sys.modules
    if absent:
        sys.modules[command_line] = types.ModuleType(command_line)
    try:
        import cel  # noqa: PLC0415 - most nodes use the default expression, which needs none
    finally:
        if absent:
            del sys.modules[command_line]
    return cel


def _variables(driver: str, name: str, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    domains: dict[str, dict[str, Any]] = {domain: {} for domain in (*_DOMAINS, driver)}
    flat: dict[str, dict[str, Any]] = {}
    for qualified, value in attributes.items():
        kind, plain = next(iter(value.items()))
        domain, _, short = qualified.rpartition("/")
        domains.setdefault(domain or driver, {})[short] = plain
        flat[qualified] = {_GO_NAMES.get(kind, kind): plain}
    device = {"driver": driver, "attributes": domains, "capacity": {}, "name": name}
    return {"attributes": flat, "device": device, "name": name, "capacity": {}}
