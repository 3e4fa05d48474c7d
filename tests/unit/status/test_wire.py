"""How entries reach the API server: the two ways, other managers, and what its refusals mean."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from nri_dranet.claims.facts import ClaimFacts, Phase
from nri_dranet.kube.client import ApiError, KubeClient
from nri_dranet.status.desired import Desired, desired_status
from nri_dranet.status.wire import ClaimGoneError, StatusWire, UnwritableError, field_manager, missing_permission
from nri_dranet.testing.api_users import Rule, User

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nri_dranet.claims.model import ClaimRef
    from nri_dranet.testing.apiserver import ApiServerStandIn

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"


@pytest.fixture
def wire(client: KubeClient) -> StatusWire:
    """Give the wire of this node."""
    return StatusWire(client, "dra.net", "n1")


@pytest.fixture
def write(claims: Any, wire: StatusWire) -> Callable[..., dict[str, Any]]:
    """Write facts as the writer does."""

    def go(facts: ClaimFacts, through: StatusWire | None = None, claim: dict[str, Any] | None = None) -> dict[str, Any]:
        present = claim or claims.read(facts.ref.name)
        desired = desired_status(facts, present, "dra.net", NOW)
        return (through or wire).write(facts.ref, desired, present)

    return go


def ways(claims: Any, manager: str = "dra.net/n1") -> set[str]:
    """Return by which operations a manager holds fields of the status."""
    managed = claims.read()["metadata"].get("managedFields") or []
    return {item["operation"] for item in managed if item["manager"] == manager}


def test_server_side_apply_is_the_first_way(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any]
) -> None:
    """One request, with the node's own field manager."""
    ref = claims.make()
    answer = write(facts(ref))
    assert answer["status"]["devices"][0]["networkData"]["interfaceName"] == "eth99"
    assert claims.entries() == answer["status"]["devices"]
    assert ways(claims) == {"Apply"}
    assert claims.writes() == 1


def test_another_drivers_entry_is_untouched(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any]
) -> None:
    """Only our own entries are sent."""
    ref = claims.make(devices=(("dra.net", "eth1"), ("other.example.com", "gpu")))
    theirs = {"driver": "other.example.com", "pool": "n1", "device": "gpu", "data": {"k": "v"}, "conditions": None}
    claims.alter({"devices": [theirs]})
    before = claims.entries()
    write(facts(ref))
    write(facts(ref, Phase.DETACHED))
    assert claims.entries()[:1] == before
    assert len(claims.entries()) == 2


def test_what_other_managers_put_on_our_entry_survives(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any]
) -> None:
    """Conditions of other types and data of another manager stay through changes and withdrawal."""
    ref = claims.make()
    write(facts(ref))
    (entry,) = claims.entries()
    probe = {
        "type": "Probed", "status": "True", "reason": "P", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    claims.alter({"devices": [{**entry, "data": {"k": "v"}, "conditions": [*entry["conditions"], probe]}]})
    write(facts(ref, Phase.DETACHED))
    (entry,) = claims.entries()
    assert entry["data"] == {"k": "v"}
    assert probe in entry["conditions"]
    assert "networkData" not in entry
    assert {item["status"] for item in entry["conditions"] if item["type"] != "Probed"} == {"False"}


def test_what_the_former_manager_holds_is_withdrawn(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any], client: KubeClient
) -> None:
    """The reference wrote as "dra.net": what is not true any more is taken away from it too, and is read back."""
    ref = claims.make()
    reference = StatusWire(client, "dra.net", "n1")
    reference._manager = "dra.net"
    desired = desired_status(facts(ref), claims.read(), "dra.net", NOW)
    rdma = {**desired.entries[0]["conditions"][0], "type": "RDMALinkReady", "reason": "RDMALinkReady"}
    entry = {**desired.entries[0], "conditions": [*desired.entries[0]["conditions"], rdma]}
    reference.write(ref, Desired((entry,), differs=True), claims.read())
    write(facts(ref))
    assert [item["type"] for item in claims.entries()[0]["conditions"]] == ["Ready", "NetworkReady"]
    write(facts(ref, Phase.DETACHED))
    assert "networkData" not in claims.entries()[0]
    # The claim stays on the first way.
    writes = claims.writes()
    write(facts(ref))
    assert claims.writes() == writes + 1


TRAPPED = '{"interface": {"name": "net1"}}'
UNSORTED = '{"interface":{"name":"net1","addresses":["10.0.0.1/24"]}}'


def trapped_claim(claims: Any, client: KubeClient, parameters: str) -> ClaimRef:
    """Make a claim whose parameters are written as given, byte by byte, and allocate it."""
    request = {"name": "r0", "exactly": {"deviceClassName": "class"}}
    config: dict[str, Any] = {"opaque": {"driver": "dra.net", "parameters": "HERE"}}
    body = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c1"}}
    text = json.dumps({**body, "spec": {"devices": {"requests": [request], "config": [config]}}})
    made = client.create(CLAIMS, text.replace('"HERE"', parameters).encode())
    config = {"source": "FromClaim", "opaque": {"driver": "dra.net", "parameters": json.loads(parameters)}}
    results = [{"request": "r0", "driver": "dra.net", "pool": "n1", "device": "eth1"}]
    claims.api.allocate("default", "c1", results=results, config=[config], node="n1")
    ref: ClaimRef = replace(claims.make("other"), name="c1", uid=made["metadata"]["uid"])
    return ref


def test_the_second_way_for_parameters_that_apply_cannot_keep(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any], client: KubeClient
) -> None:
    """Keys out of order: apply is refused, a merge patch works, and the claim stays on it, in a new life too."""
    ref = trapped_claim(claims, client, UNSORTED)
    write(facts(ref))
    assert claims.entries()[0]["networkData"]["interfaceName"] == "eth99"
    assert ways(claims) == {"Update"}
    writes = claims.writes()
    write(facts(ref, Phase.DETACHED))
    assert "networkData" not in claims.entries()[0]
    write(facts(ref), StatusWire(client, "dra.net", "n1"))
    assert claims.entries()[0]["networkData"]["interfaceName"] == "eth99"
    assert claims.writes() == writes + 2


def test_the_second_way_does_not_overwrite_what_changed_meanwhile(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any], client: KubeClient
) -> None:
    """The merge patch carries the version that was read: a claim that has changed is refused and read again."""
    ref = trapped_claim(claims, client, UNSORTED)
    old = claims.read()
    claims.api.reserve("default", "c1", pod="p", uid="u")
    with pytest.raises(ApiError) as caught:
        write(facts(ref), claim=old)
    assert caught.value.status == 409
    write(facts(ref))
    assert len(claims.entries()) == 1


def test_no_way_is_said_in_words(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any], client: KubeClient
) -> None:
    """Spaces in the parameters: nothing works, and the text says which claim, why and what to do."""
    ref = trapped_claim(claims, client, TRAPPED)
    with pytest.raises(UnwritableError, match=r"default/c1.*spaces.*as kubectl does"):
        write(facts(ref))


def test_a_claim_that_is_gone(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any], wire: StatusWire, api: ApiServerStandIn
) -> None:
    """A deleted claim, and one that was made again under the same name, are told from a failure."""
    ref = claims.make()
    old = claims.read()
    api.delete(f"{CLAIMS}/c1")
    with pytest.raises(ClaimGoneError):
        wire.read(ref)
    with pytest.raises(ClaimGoneError):
        write(facts(ref), claim=old)
    claims.make()
    with pytest.raises(ClaimGoneError):
        wire.read(ref)
    with pytest.raises(ClaimGoneError):
        write(facts(ref), claim=old)
    assert claims.entries() == []


def test_the_second_way_does_not_write_to_a_namesake(
    claims: Any, facts: Callable[..., ClaimFacts], write: Callable[..., Any], wire: StatusWire
) -> None:
    """The UID guards the merge patch as well."""
    ref = claims.make()
    stale = replace(ref, uid="00000000-0000-0000-0000-000000000000")
    wire._second[stale.uid] = None
    with pytest.raises(ClaimGoneError):
        write(facts(stale))
    assert claims.entries() == []


class Refusing:
    """A client that refuses everything with one error."""

    def __init__(self, error: ApiError, read: Any = None) -> None:
        """Refuse writes with an error; reads give ``read`` or the error."""
        self.error = error
        self.read = read

    def get(self, *_: Any, **__: Any) -> Any:
        """Read."""
        if self.read is None:
            raise self.error
        return self.read

    def patch(self, *_: Any, **__: Any) -> Any:
        """Refuse."""
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ApiError(404, "NotFound", "the server could not find the requested resource"),
        ApiError(404, "NotFound", "404 page not found"),
        ApiError(503, "ServiceUnavailable", "starting"),
        ApiError(0, "NewConnectionError", "away"),
        ApiError(409, "Conflict", "the object has been modified"),
        ApiError(422, "Invalid", 'status.devices[0]: Invalid value: "x": must be an allocated device in the claim'),
    ],
)
def test_a_failure_is_not_taken_for_the_end_of_the_claim(
    claims: Any, facts: Callable[..., ClaimFacts], error: ApiError
) -> None:
    """A server that is starting does not know the resource for a moment: that claim is not gone."""
    ref = claims.make()
    desired = desired_status(facts(ref), claims.read(), "dra.net", NOW)
    wire = StatusWire(Refusing(error), "dra.net", "n1")  # type: ignore[arg-type]  # get and patch are all that is used
    with pytest.raises(ApiError) as caught:
        wire.write(ref, desired, claims.read())
    assert caught.value is error
    if error.status == 404:
        with pytest.raises(ApiError):
            wire.read(ref)


@pytest.mark.parametrize("answer", [{}, {"kind": "Status"}, {"metadata": {}}, {"metadata": None}])
def test_an_answer_that_is_no_claim_says_nothing_of_the_claim(
    claims: Any, facts: Callable[..., ClaimFacts], answer: Any
) -> None:
    """Something in between answered: the claim is not gone, and no list of entries is made from such an answer."""
    ref = claims.make()
    desired = desired_status(facts(ref), claims.read(), "dra.net", NOW)

    class Odd:
        def get(self, *_: Any) -> Any:
            return answer

        def patch(self, *_: Any, **__: Any) -> Any:
            return answer

    wire = StatusWire(Odd(), "dra.net", "n1")  # type: ignore[arg-type]  # get and patch are all that is used
    with pytest.raises(ApiError, match="is no claim"):
        wire.read(ref)
    with pytest.raises(ApiError, match="is no claim"):
        wire.write(ref, desired, claims.read())


def test_a_conflict_about_the_uid_is_looked_into(claims: Any, facts: Callable[..., ClaimFacts]) -> None:
    """Some servers answer 409 to a wrong UID: the claim is read to learn what that means."""
    ref = claims.make()
    desired = desired_status(facts(ref), claims.read(), "dra.net", NOW)
    conflict = ApiError(409, "Conflict", "Precondition failed: UID in precondition: x, UID in object meta: y")
    other = Refusing(conflict, {"metadata": {"uid": "y"}})
    with pytest.raises(ClaimGoneError):
        StatusWire(other, "dra.net", "n1").write(ref, desired, claims.read())  # type: ignore[arg-type]  # as above
    same = Refusing(conflict, {"metadata": {"uid": ref.uid}})
    with pytest.raises(ApiError):
        StatusWire(same, "dra.net", "n1").write(ref, desired, claims.read())  # type: ignore[arg-type]  # as above


def test_field_managers_are_legal_and_told_apart() -> None:
    """One for each driver and node, 128 characters at most, also for the longest names."""
    assert field_manager("dra.net", "n1") == "dra.net/n1"
    nodes = [f"{'n' * 240}{i}.example.com" for i in range(20)]
    names = {field_manager("dra.net", node) for node in nodes}
    assert len(names) == 20
    assert all(len(name) <= 128 for name in names)


STATUS_RULES = (
    Rule.of("get list watch", "resourceclaims"),
    Rule.of("patch update", "resourceclaims/status"),
)


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        (STATUS_RULES[:1], 403),
        (STATUS_RULES, 422),
        ((*STATUS_RULES, Rule.of("associated-node:patch", "resourceclaims/driver", "dra.net")), 0),
    ],
)
def test_missing_permissions_are_recognised(
    *,
    claims: Any,
    facts: Callable[..., ClaimFacts],
    write: Callable[..., Any],
    api: ApiServerStandIn,
    tmp_path: Path,
    rules: tuple[Rule, ...],
    status: int,
) -> None:
    """Both refusals of the API server are permissions that lack; with all of them the write works."""
    ref = claims.make()
    api.add_user("token", User("system:serviceaccount:kube-system:nri-dranet", rules, node="n1"))
    client = KubeClient.load(str(api.write_kubeconfig(tmp_path / "limited", "token")))
    wire = StatusWire(client, "dra.net", "n1")
    try:
        if not status:
            write(facts(ref), wire)
            assert claims.entries()
            return
        with pytest.raises(ApiError) as caught:
            write(facts(ref), wire)
        assert caught.value.status == status
        assert "resourceclaims/status" in missing_permission(caught.value)
    finally:
        client.close()


def test_other_refusals_are_no_missing_permission() -> None:
    """Only what a role can mend counts."""
    assert not missing_permission(ApiError(422, "Invalid", "status.devices[0]: Invalid value"))
    assert not missing_permission(ApiError(401, "Unauthorized", "Unauthorized"))
