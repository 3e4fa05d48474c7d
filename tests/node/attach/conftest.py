"""A host and a pod for each test."""

from __future__ import annotations

from tests.node.attach.world import world

__all__ = ["world"]
