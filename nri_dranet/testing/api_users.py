"""Who may do what: users by bearer token, their rules, and the finer rights on a claim's status.

From Kubernetes 1.36 on (``DRAResourceClaimGranularStatusAuthorization``) a change of ``status.devices`` needs, beside
the right on ``resourceclaims/status``, one on the synthetic resource ``resourceclaims/driver`` for each driver whose
entries change; a change of the allocation or reservation needs one on ``resourceclaims/binding``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_claims import key_of
from nri_dranet.testing.api_errors import FieldError, StatusError, forbidden, shown
from nri_dranet.testing.api_json import same

if TYPE_CHECKING:
    from collections.abc import Mapping

_GROUP: Final = "resource.k8s.io"
_ALL: Final = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a role.

    Attributes:
        verbs: The verbs that it allows; ``*``: all.
        resources: Plurals, with the subresource behind a slash; ``*``: all.
        names: Names of objects; empty: all.
        namespace: Where it holds; empty: everywhere.
    """

    verbs: frozenset[str]
    resources: frozenset[str]
    names: frozenset[str] = frozenset()
    namespace: str = ""

    @classmethod
    def of(cls, verbs: str, resources: str, *names: str, namespace: str = "") -> Rule:
        """Make a rule from words with spaces between them."""
        return cls(frozenset(verbs.split()), frozenset(resources.split()), frozenset(names), namespace)

    def allows(self, verb: str, resource: str, name: str, namespace: str) -> bool:
        """Tell whether it allows something."""
        return (
            bool(self.verbs & {verb, _ALL})
            and bool(self.resources & {resource, _ALL})
            and (not self.names or name in self.names)
            and self.namespace in ("", namespace)
        )


@dataclass(frozen=True, slots=True)
class User:
    """Someone who asks.

    Attributes:
        name: The user's name.
        rules: What it may do.
        node: The node of the pod that its token is bound to, empty where there is none.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    node: str = ""

    def may(self, verb: str, resource: str, name: str = "", namespace: str = "") -> bool:
        """Tell whether it may do something."""
        return any(rule.allows(verb, resource, name, namespace) for rule in self.rules)


ADMIN: Final = User("kubernetes-admin", (Rule.of(_ALL, _ALL),))
"""May do everything."""


def check(user: User, verb: str, group: str, resource: str, name: str, namespace: str) -> None:  # noqa: PLR0917 - one question
    """Refuse what a user may not do.

    Raises:
        StatusError: it may not.
    """
    if user.may(verb, resource, name, namespace):
        return
    plain = resource.partition("/")[0]
    what = f"{plain}.{group}" if group else plain
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    subject = f"{what} {shown(name)}" if name else what
    raise StatusError(
        403,
        f"{subject} is forbidden: User {shown(user.name)} cannot {verb} resource {shown(resource)} in API group "
        f"{shown(group)} {where}",
        details={key: value for key, value in (("name", name), ("group", group), ("kind", plain)) if value},
    )


def status_errors(user: User, verb: str, claim: Mapping[str, Any], old: Mapping[str, Any]) -> list[FieldError]:
    """Check the finer rights that a change of a claim's status needs."""
    status, before = claim.get("status") or {}, old.get("status") or {}
    namespace = str(claim["metadata"].get("namespace", ""))
    found: list[FieldError] = []
    bound = [name for name in ("allocation", "reservedFor") if not same(status.get(name), before.get(name))]
    if bound and not user.may(verb, "resourceclaims/binding"):
        found.append(
            forbidden(
                f"status.{bound[0]}",
                'changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", '
                f'verb="{verb}" permission: resourceclaims.{_GROUP} is forbidden: User {shown(user.name)} cannot '
                f'{verb} resource "resourceclaims/binding" in API group "{_GROUP}" at the cluster scope',
            )
        )
    verbs = [f"associated-node:{verb}"] if _on_its_node(user, claim, old) else []
    verbs.append(f"arbitrary-node:{verb}")
    found += [
        _no_right(user, verbs, driver, namespace)
        for driver in sorted(_changed(status, before))
        if not any(user.may(each, "resourceclaims/driver", driver, namespace) for each in verbs)
    ]
    return found


def _changed(status: Mapping[str, Any], before: Mapping[str, Any]) -> set[str]:
    """Return the drivers whose entries differ."""
    now = {key_of(entry): entry for entry in status.get("devices") or []}
    was = {key_of(entry): entry for entry in before.get("devices") or []}
    return {key[0] for key in now.keys() | was.keys() if not same(now.get(key), was.get(key))}


def _on_its_node(user: User, claim: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Tell whether the claim is allocated for the one node that the user's token is bound to."""
    if not user.node:
        return False
    for each in (claim, old):
        allocation = (each.get("status") or {}).get("allocation") or {}
        terms = (allocation.get("nodeSelector") or {}).get("nodeSelectorTerms") or []
        if len(terms) == 1 and not terms[0].get("matchExpressions") and len(terms[0].get("matchFields") or []) == 1:
            wanted = {"key": "metadata.name", "operator": "In", "values": [user.node]}
            if terms[0]["matchFields"][0] == wanted:
                return True
    return False


def _no_right(user: User, verbs: list[str], driver: str, namespace: str) -> FieldError:
    return forbidden(
        "status.devices",
        f'changing status.devices requires resource="resourceclaims/driver", verb="[{" ".join(verbs)}]" permission: '
        f'resourceclaims.{_GROUP} "{driver}" is forbidden: User {shown(user.name)} cannot {verbs[0]} resource '
        f'"resourceclaims/driver" in API group "{_GROUP}" in the namespace "{namespace}"',
    )
