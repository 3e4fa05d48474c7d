"""The filter of one node: that of ``--filter``, unless an annotation of the Node has another one."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.inventory.filter import DeviceFilter
from nri_dranet.telemetry import metrics
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOG = logging.getLogger(__name__)

ANNOTATION: Final = "filter"
"""Name of the annotation, in the driver's domain: ``dra.net/filter``."""

REFUSED: Final = "FilterRefused"
"""Reason of the Event."""


def annotation(driver: str) -> str:
    """Return the annotation's key for a driver."""
    return f"{driver}/{ANNOTATION}"


class NodeFilter:
    """Decides by the expression that counts on this node. Thread-safe.

    An annotation that is no expression changes nothing: what counted before counts on, and it is said.
    """

    def __init__(self, expression: str, driver: str, *, event: Callable[[str, str], None] | None = None) -> None:
        """Compile the expression of the flag.

        Args:
            expression: that of ``--filter``.
            driver: the driver's name.
            event: told reason and text of an annotation that is refused, for an Event on the Node.

        Raises:
            ValueError: it does not compile; the text has the position.
        """
        self._driver = driver
        self._event = event
        self._flag = self._current = DeviceFilter(expression, driver)
        self._text: str | None = None
        self._problem = ""
        self._lock = threading.Lock()

    @property
    def expression(self) -> str:
        """The expression that counts now."""
        return self._current.expression

    @property
    def problem(self) -> str:
        """Why the annotation does not count; empty: it does, or there is none."""
        return self._problem

    def keeps(self, name: str, attributes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Tell whether a device is published (``DeviceFilter.keeps``)."""
        return self._current.keeps(name, attributes)

    def override(self, text: str | None) -> bool:
        """Take in the annotation; None: the Node has none.

        Returns:
            Whether another expression counts now.
        """
        with self._lock:
            if text == self._text:
                return False
            self._text, before = text, self._current
            key = annotation(self._driver)
            try:
                found = self._flag if text is None else DeviceFilter(text, self._driver, flag=f"annotation {key}")
            except ValueError as error:
                self._problem = str(error)
            else:
                self._current, self._problem = found, ""
            problem, current = self._problem, self._current
        metrics.FILTER_OVERRIDDEN.labels("refused").set(bool(problem))
        metrics.FILTER_OVERRIDDEN.labels("used").set(current is not self._flag)
        if problem:
            said = f"{problem}; the node's devices are filtered by {current.expression!r} as before"
            LOG.error("the Node's annotation is no filter", extra=fields(annotation=key, error=said))
            if self._event is not None:
                self._event(REFUSED, said)
        else:
            LOG.info("the node's filter", extra=fields(expression=current.expression, overridden=text is not None))
        return current is not before
