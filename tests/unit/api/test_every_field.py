"""No field of the schema is without a test on a real device."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel

from nri_dranet.api.config import NetworkConfig
from tests.node.attach.fields import CASES

if TYPE_CHECKING:
    from collections.abc import Iterator

ELSEWHERE = {
    "profile": "refused: tests/unit/api/test_rules.py",
    "interface.dhcp": "needs a server: tests/node/driver/test_dhcp.py",
    "ethtool.privateFlags": "a real driver's: tests/vm/test_every_field.py",
}
"""Fields that need more than a configuration of an ordinary device, and where they are tested."""


def leaves(model: type[BaseModel] = NetworkConfig, where: str = "") -> Iterator[str]:
    """Give the paths of all fields that hold a value."""
    for name, info in model.model_fields.items():
        path = f"{where}{info.alias or name}"
        below, many = _part(info.annotation)
        if below is None:
            yield path
        else:
            yield from leaves(below, f"{path}[]." if many else f"{path}.")


def _part(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    """Return the part of the schema that a field holds, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for inner in get_args(annotation):
        found, _ = _part(inner)
        if found is not None:
            return found, getattr(annotation, "__origin__", None) is tuple
    return None, False


def test_every_field_has_a_test_on_a_real_device() -> None:
    """Whoever adds a field adds a case; a case of a field that is gone is gone too."""
    covered = {path for case in CASES for path in case.fields}
    assert set(leaves()) - ELSEWHERE.keys() == covered
    assert len(covered) > 25
    assert not covered & ELSEWHERE.keys()


def test_what_is_tested_elsewhere_is_a_field() -> None:
    """The list of exceptions does not outlive them."""
    assert ELSEWHERE.keys() <= set(leaves())
