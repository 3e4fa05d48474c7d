"""The stand-in's HTTP side: objects, watches, selectors, outages, rights."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from nri_dranet.kube.client import MERGE, ApiError, KubeClient
from nri_dranet.testing.api_users import Rule, User
from nri_dranet.testing.apiserver import ApiServerStandIn, StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 20.0
ENTRY = {"driver": "dra.net", "pool": "node1", "device": "eth1"}
PODS = "/api/v1/namespaces/default/pods"


def pod(name: str, node: str = "node1", **labels: str) -> dict[str, Any]:
    """Return a pod."""
    return {"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": node, "containers": [{"name": "app"}]}}


class Watch:
    """A watch whose events a test takes one by one."""

    def __init__(self, client: KubeClient, path: str, **params: str) -> None:
        query = {"watch": "true", "allowWatchBookmarks": "true", **params}
        self._response = client.stream(path, query, read_timeout=PATIENCE)
        self._lines = self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        rest = b""
        for piece in self._response.stream(65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def next(self, *, bookmarks: bool = False) -> tuple[str, str]:
        """Return type and name of the next event that is no bookmark; an empty type at the end."""
        for line in self._lines:
            if bookmarks or line["type"] != "BOOKMARK":
                return line["type"], line["object"].get("metadata", {}).get("name", line["object"].get("reason", ""))
        return "", ""

    def close(self) -> None:
        """End it."""
        self._response.close()


@pytest.fixture
def watch(world: Any) -> Iterator[Callable[..., Watch]]:
    """Give a function that begins a watch."""
    begun: list[Watch] = []

    def begin(path: str, **params: str) -> Watch:
        begun.append(Watch(world.client, path, **params))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def refused(call: Callable[[], Any]) -> ApiError:
    """Return the refusal of a call."""
    with pytest.raises(ApiError) as refusal:
        call()
    return refusal.value


def until(look: Callable[[], Any]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# ---- objects


def test_an_object_lives_from_create_to_delete(world: Any) -> None:
    """Each step gives the object with a new version, and generation counts changes of the spec."""
    body = {
        **world.head("ResourceSlice", "s"),
        "spec": {
            "driver": "dra.net",
            "nodeName": "n",
            "pool": {"name": "n", "generation": 1, "resourceSliceCount": 1},
            "devices": [],
        },
    }
    created = world.client.create(world.slices, body)
    assert created["metadata"]["generation"] == 1
    assert refused(lambda: world.client.create(world.slices, body)).reason == "AlreadyExists"
    same = world.client.replace(f"{world.slices}/s", body)
    assert same["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]
    body["spec"]["devices"] = [{"name": "a", "taints": [{"key": "x", "effect": "NoSchedule"}]}]
    changed = world.client.replace(f"{world.slices}/s", body)
    assert changed["metadata"]["generation"] == 2
    assert "timeAdded" in changed["spec"]["devices"][0]["taints"][0]
    assert world.client.get(f"{world.slices}/s") == changed
    listed = world.client.get(world.slices)
    assert listed["kind"] == "ResourceSliceList"
    assert "kind" not in listed["items"][0]
    gone = world.client.delete(f"{world.slices}/s")
    assert int(gone["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])
    assert refused(lambda: world.client.get(f"{world.slices}/s")).status == 404


def test_a_stale_version_is_a_conflict(world: Any) -> None:
    """Replacing, patching or deleting what has changed, or another object of the name, is refused."""
    path = f"{world.claims}/c1"
    old = world.client.create(world.claims, world.claim())
    world.client.patch(path, {"metadata": {"labels": {"a": "b"}}}, content_type=MERGE)
    assert refused(lambda: world.client.replace(path, old)).reason == "Conflict"
    version = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"], "labels": {"a": "c"}}}
    assert refused(lambda: world.client.patch(path, version, content_type=MERGE)).status == 409
    other = world.claim()
    other["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    assert "UID in precondition" in refused(lambda: world.client.replace(path, other)).message
    for name in ("uid", "resourceVersion"):
        error = refused(lambda name=name: world.client.delete(path, {"preconditions": {name: "1"}}))  # type: ignore[misc]
        assert (error.status, "in the precondition (1) does not match" in error.message) == (409, True)


def test_what_is_not_served_is_not_found(world: Any) -> None:
    """Unknown paths, kinds, subresources and namespaces."""
    for path in (
        "/",
        "/apis/x/v1/foos",
        f"{world.slices}/a/status",
        f"{world.claims}/c1/foo",
        "/apis/resource.k8s.io/v1/resourceclaims/c1",
        "/apis/resource.k8s.io/v1/namespaces/x/resourceslices",
    ):
        assert refused(lambda path=path: world.client.get(path)).status == 404  # type: ignore[misc]
    elsewhere = world.claims.replace("default", "nowhere")
    claim = world.claim()
    del claim["metadata"]["namespace"]
    assert refused(lambda: world.client.create(elsewhere, claim)).message == 'namespaces "nowhere" not found'
    assert refused(lambda: world.client.create(f"{world.slices}/x", {})).status == 405
    assert refused(lambda: world.client.patch(f"{world.slices}/x", {}, content_type="text/plain")).status == 415


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "json parse error"),
        ({"apiVersion": "v1", "kind": "Pod"}, 400, 'Pod in version "v1" cannot be handled as a ResourceClaim'),
        ({"spec": {"devices": []}}, 400, "cannot unmarshal array"),
        ({"metadata": {"name": "a", "labels": "x"}}, 400, "cannot unmarshal string"),
        ({}, 422, "name or generateName is required"),
        ({"metadata": {"name": "A_b"}}, 422, "a lowercase RFC 1123 subdomain"),
        ({"metadata": {"name": "a", "resourceVersion": "1"}}, 500, "resourceVersion should not be set"),
        ({"metadata": {"name": "a", "namespace": "x"}}, 400, "does not match the namespace sent on the request"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(world: Any, body: Any, status: int, text: str) -> None:
    """A create is refused with the real status and words."""
    error = refused(lambda: world.client.create(world.claims, body))
    assert error.status == status
    assert text in error.message


def test_unknown_fields_are_dropped(world: Any) -> None:
    """A create keeps only what the API knows, and gives a generated name its end."""
    body = {**world.claim(), "foo": 1}
    body["metadata"] = {"generateName": "made-"}
    body["spec"]["devices"]["bar"] = None
    created = world.client.create(world.claims, body)
    assert created["metadata"]["name"].startswith("made-")
    assert "foo" not in created
    assert created["status"] == {}


def test_finalizers_hold_an_object(world: Any) -> None:
    """A deleted object stays, marked, until its finalizers are gone."""
    path = f"{world.claims}/c1"
    world.client.create(world.claims, world.claim())
    world.client.patch(path, {"metadata": {"finalizers": ["example.com/x"]}}, content_type=MERGE)
    marked = world.client.delete(path)
    assert "deletionTimestamp" in marked["metadata"]
    assert world.client.delete(path) == marked
    world.client.patch(path, {"metadata": {"finalizers": None}}, content_type=MERGE)
    assert refused(lambda: world.client.get(path)).status == 404


def test_an_event_lies_in_the_namespace_of_its_object(world: Any) -> None:
    """Events of a claim go to its namespace, those of a node to default; others are refused."""

    def event(name: str, about: dict[str, str]) -> dict[str, Any]:
        return {"metadata": {"name": name}, "involvedObject": about, "reason": "R"}

    claim, node = {"kind": "ResourceClaim", "namespace": "default"}, {"kind": "Node", "name": "n"}
    path = "/api/v1/namespaces/default/events"
    world.client.create(path, event("a", claim))
    world.client.create(path, event("b", node))
    assert [item["metadata"]["name"] for item in world.api.objects(path, "involvedObject.kind=Node")] == ["b"]
    elsewhere = path.replace("default", "kube-system")
    for about in (claim, node):
        error = refused(lambda about=about: world.client.create(elsewhere, event("c", about)))  # type: ignore[misc]
        assert "does not match event.namespace" in error.message


def test_selectors_choose(world: Any) -> None:
    """Field and label selectors, in lists and when a collection is deleted."""
    world.client.create(PODS, pod("a", app="x"))
    world.client.create(PODS, pod("b", node="node2", app="y"))
    world.client.create(PODS, pod("c"))

    def names(**params: str) -> str:
        return "".join(item["metadata"]["name"] for item in world.client.get("/api/v1/pods", params)["items"])

    assert names(fieldSelector="spec.nodeName=node1") == "ac"
    assert names(fieldSelector="spec.nodeName==node1,metadata.name!=a") == "c"
    assert names(fieldSelector="status.phase=Pending") == "abc"
    assert names(labelSelector="app") == "ab"
    assert names(labelSelector="!app") == "c"
    assert names(labelSelector="app=x") == "a"
    assert names(labelSelector="app!=x") == "bc"
    assert names(labelSelector="app in (x, z)") == "a"
    assert names(labelSelector="app notin (x,z)") == "bc"
    for wrong in ("spec.foo=x", "zz"):
        assert refused(lambda wrong=wrong: names(fieldSelector=wrong)).status == 400  # type: ignore[misc]
    world.client.delete(PODS, None, {"fieldSelector": "spec.nodeName=node1"})
    assert names() == "b"


# ---- watches


def test_a_watch_shows_every_change(world: Any, watch: Callable[..., Watch]) -> None:
    """What was there, then additions, changes and deletions, in order."""
    world.client.create(PODS, pod("a"))
    events = watch(PODS)
    assert events.next() == ("ADDED", "a")
    world.client.create(PODS, pod("b"))
    world.client.patch(f"{PODS}/b", {"metadata": {"labels": {"x": "y"}}}, content_type=MERGE)
    world.client.delete(f"{PODS}/a")
    assert [events.next() for _ in range(3)] == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")]


def test_a_watch_goes_on_from_a_version(world: Any, watch: Callable[..., Watch]) -> None:
    """From the version of a list only later changes come, of other kinds and namespaces none."""
    world.client.create(PODS, pod("a"))
    version = world.client.get(PODS)["metadata"]["resourceVersion"]
    world.client.create(world.claims, world.claim())
    world.client.create(PODS.replace("default", "kube-system"), pod("system"))
    world.client.create(PODS, pod("b"))
    assert watch(PODS, resourceVersion=version).next() == ("ADDED", "b")


def test_a_selected_object_comes_and_goes(world: Any, watch: Callable[..., Watch]) -> None:
    """An object that begins to match is added, one that ends to match is deleted."""
    world.client.create(PODS, pod("a"))
    events = watch(PODS, labelSelector="x=y")
    path = f"{PODS}/a"
    world.client.patch(path, {"metadata": {"labels": {"x": "y"}}}, content_type=MERGE)
    assert events.next() == ("ADDED", "a")
    world.client.patch(path, {"metadata": {"labels": {"x": "z"}}}, content_type=MERGE)
    assert events.next() == ("DELETED", "a")


def test_a_version_that_is_too_old_has_expired(world: Any, watch: Callable[..., Watch]) -> None:
    """After a compaction a watch from before gets 410 in its stream; running watches end."""
    version = world.client.get(PODS)["metadata"]["resourceVersion"]
    running = watch(PODS, resourceVersion=version)
    world.client.create(PODS, pod("a"))
    assert running.next() == ("ADDED", "a")
    world.api.compact()
    assert running.next() == ("", "")
    assert watch(PODS, resourceVersion=version).next() == ("ERROR", "Expired")
    assert watch(PODS, resourceVersion="99999999").next() == ("ERROR", "Timeout")
    assert refused(lambda: watch(PODS, resourceVersion="zz")).status == 400


def test_bookmarks_tell_the_version(world: Any, watch: Callable[..., Watch]) -> None:
    """They come at their interval and at the end of a watch's time; without the parameter none comes."""
    world.api.bookmark_seconds = 0.05
    assert watch(PODS).next(bookmarks=True)[0] == "BOOKMARK"
    assert watch(PODS, allowWatchBookmarks="false", timeoutSeconds="1").next(bookmarks=True) == ("", "")


def test_a_watch_can_be_broken(world: Any, watch: Callable[..., Watch]) -> None:
    """It ends when its time is up, and when the server ends all watches."""
    events = watch(PODS)
    world.api.break_watches()
    assert events.next() == ("", "")


# ---- what goes wrong on purpose


def test_an_outage_keeps_the_objects(world: Any) -> None:
    """While the server is away nobody answers; afterwards it is where it was with what it had."""
    world.client.create(PODS, pod("a"))
    for away, back in ((world.api.stop, world.api.start), (world.api.pause, world.api.resume)):
        away()
        assert refused(lambda: world.client.get(PODS)).status == 0
        back()
        assert [item["metadata"]["name"] for item in world.client.get(PODS)["items"]] == ["a"]
    world.api.start()
    world.api.resume()
    assert world.client.get(PODS)["items"]


def test_an_outage_ends_watches(world: Any, watch: Callable[..., Watch]) -> None:
    """A watch breaks off with the server, and with its connection."""
    for breaks in (world.api.pause, world.api.drop_connections):
        world.api.resume()
        events = watch(PODS)
        breaks()
        with pytest.raises(urllib3.exceptions.HTTPError):
            events.next()


def test_requests_fail_on_demand(world: Any) -> None:
    """The next answers are errors, with Retry-After, for one method or path only; or no answer at all."""
    world.api.fail_next(1, 429, retry_after=7)
    error = refused(lambda: world.client.get(PODS))
    assert (error.status, error.reason, error.retry_after) == (429, "TooManyRequests", 7.0)
    world.api.fail_next(2, 503, method="POST", where="pods", message="busy")
    assert world.client.get(PODS)["items"] == []
    assert [refused(lambda: world.client.create(PODS, pod("a"))).message for _ in range(2)] == ["busy", "busy"]
    world.client.create(PODS, pod("a"))
    world.api.fail_next(1, 0, method="POST")
    assert refused(lambda: world.client.create(PODS, pod("b"))).status == 0
    world.api.fail_next(9, 500)
    world.api.latency = 5.0
    world.api.faults.clear()
    assert world.api.latency == 0
    assert world.client.get(f"{PODS}/a")["metadata"]["name"] == "a"


def test_answered_requests_are_remembered(world: Any) -> None:
    """Method, path, parameters, content type and status can be read."""
    world.api.requests.clear()
    world.client.create(PODS, pod("a"))
    refused(lambda: world.client.get(f"{PODS}/b", {"x": "y"}))
    first, second = world.api.requests
    assert (first.method, first.path, first.status, first.content_type) == ("POST", PODS, 201, "application/json")
    assert (second.method, second.query, second.status) == ("GET", {"x": "y"}, 404)


def test_a_slow_server_answers_late(world: Any) -> None:
    """Latency holds an answer back beyond the client's patience."""
    world.api.latency = 0.5
    assert refused(lambda: world.client.get(PODS, timeout=0.1)).status == 0


def test_health_and_version_are_served(world: Any) -> None:
    """A client that asks who is there gets an answer."""
    assert world.client.get("/version")["minor"] == "37"
    assert urllib3.request("GET", f"{world.api.url}/readyz", timeout=PATIENCE).json() == "ok"


# ---- users


def claims_of(name: str, node: str, *rules: Rule) -> User:
    """Return a service account that may write the status of claims."""
    base = Rule.of("get patch update", "resourceclaims resourceclaims/status")
    return User(f"system:serviceaccount:kube-system:{name}", (base, *rules), node)


ASSOCIATED = Rule.of("associated-node:patch", "resourceclaims/driver", "dra.net")
ARBITRARY = Rule.of("arbitrary-node:patch", "resourceclaims/driver", "dra.net")
OTHER = Rule.of("associated-node:patch arbitrary-node:patch", "resourceclaims/driver", "foo.com")


@pytest.mark.parametrize(
    ("name", "rules", "node", "verbs"),
    [
        ("old", (), "", "arbitrary-node:patch"),
        ("old", (), "node1", "associated-node:patch arbitrary-node:patch"),
        ("old", (), "node2", "arbitrary-node:patch"),
        ("assoc", (ASSOCIATED,), "", "arbitrary-node:patch"),
        ("assoc", (ASSOCIATED,), "node1", ""),
        ("assoc", (ASSOCIATED,), "node2", "arbitrary-node:patch"),
        ("arb", (ARBITRARY,), "", ""),
        ("arb", (ARBITRARY,), "node1", ""),
        ("arb", (ARBITRARY,), "node2", ""),
        ("otherdrv", (OTHER,), "", "arbitrary-node:patch"),
        ("otherdrv", (OTHER,), "node1", "associated-node:patch arbitrary-node:patch"),
        ("otherdrv", (OTHER,), "node2", "arbitrary-node:patch"),
    ],
)
def test_the_status_of_devices_needs_a_right_of_its_own(
    world: Any, name: str, rules: tuple[Rule, ...], node: str, verbs: str
) -> None:
    """As recorded from a real server: who may write the entries of dra.net for a claim on node1."""
    world.allocated()
    world.api.add_user("token", claims_of(name, node, *rules))
    client = world.as_user("token")
    if not verbs:
        assert world.apply_status([ENTRY], client=client)["status"]["devices"]
        return
    error = refused(lambda: world.apply_status([ENTRY], client=client))
    assert error.status == 422
    assert error.message == (
        'ResourceClaim.resource.k8s.io "c1" is invalid: status.devices: Forbidden: changing status.devices requires '
        f'resource="resourceclaims/driver", verb="[{verbs}]" permission: resourceclaims.resource.k8s.io "dra.net" is '
        f'forbidden: User "system:serviceaccount:kube-system:{name}" cannot {verbs.split(maxsplit=1)[0]} resource '
        '"resourceclaims/driver" in API group "resource.k8s.io" in the namespace "default"'
    )


def test_a_driver_may_not_deallocate(world: Any) -> None:
    """A change of the allocation needs the right of the scheduler; a merge patch of the entries does not."""
    world.allocated()
    world.api.add_user("token", claims_of("assoc", "node1", ASSOCIATED))
    client = world.as_user("token")
    error = refused(lambda: world.merge_status({"allocation": None}, client=client))
    assert 'requires resource="resourceclaims/binding", verb="patch" permission' in error.message
    assert world.merge_status({"devices": [ENTRY]}, client=client)["status"]["devices"]
    assert "devices" not in world.merge_status({"devices": None}, client=client)["status"]


def test_older_servers_ask_for_no_finer_right(tmp_path: Path) -> None:
    """Before 1.36 the right on the status is enough."""
    with ApiServerStandIn(granular=False) as api:
        api.add_user("token", claims_of("old", ""))
        path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
        request = {"name": "nic", "exactly": {"deviceClassName": "dranet"}}
        api.create(path, {"metadata": {"name": "c1"}, "spec": {"devices": {"requests": [request]}}})
        api.allocate("default", "c1", results=[{"request": "nic", **ENTRY}])
        client = KubeClient.load(str(api.write_kubeconfig(tmp_path / "kubeconfig", "token")))
        answer = client.patch(f"{path}/c1/status", {"status": {"devices": [ENTRY]}}, content_type=MERGE)
        assert answer["status"]["devices"]


def test_what_a_user_may_not_do_is_forbidden(world: Any) -> None:
    """Verb, resource and place stand in the refusal; a right for one namespace or name holds there."""
    rules = (Rule.of("get", "pods", "a", namespace="default"),)
    world.api.add_user("token", User("someone", rules))
    client = world.as_user("token")
    world.client.create(PODS, pod("a"))
    assert client.get(f"{PODS}/a")
    error = refused(lambda: client.get(f"{PODS}/b"))
    text = 'pods "b" is forbidden: User "someone" cannot get resource "pods" in API group "" in the namespace "default"'
    assert (error.status, error.message) == (403, text)
    assert "at the cluster scope" in refused(lambda: client.get("/api/v1/pods")).message
    watching = refused(lambda: client.stream("/api/v1/pods", {"watch": "true"}, read_timeout=1))
    assert "cannot watch" in watching.message


def test_who_is_not_known_is_unauthorized(tmp_path: Path) -> None:
    """Where nobody is let in without a token, an unknown one gets 401."""
    with ApiServerStandIn(anonymous=False) as api:
        client = KubeClient.load(str(api.write_kubeconfig(tmp_path / "kubeconfig", "wrong")))
        assert refused(lambda: client.get(PODS)).status == 401
        assert client.get("/version")


# ---- what others of a cluster do


def test_the_helpers_play_the_cluster(world: Any) -> None:
    """Allocation, reservations and their end, as scheduler and controllers do it."""
    api, path = world.api, f"{world.claims}/c1"
    api.create(world.claims, world.claim(parameters={"b": 1}))
    with pytest.raises(StatusError, match="may not be specified when"):
        api.reserve("default", "c1", pod="p", uid="u")
    config = [{"source": "FromClaim", "opaque": {"driver": "dra.net", "parameters": {"b": 1}}}]
    api.allocate("default", "c1", results=world.allocation()["devices"]["results"], config=config, node="node1")
    api.reserve("default", "c1", pod="p", uid="u")
    api.reserve("default", "c1", pod="q", uid="v")
    assert api.get(path)["status"] == {
        "allocation": world.allocation(parameters={"b": 1}),
        "reservedFor": [
            {"resource": "pods", "name": "p", "uid": "u"},
            {"resource": "pods", "name": "q", "uid": "v"},
        ],
    }
    assert [user["name"] for user in api.release("default", "c1", uid="u")["status"]["reservedFor"]] == ["q"]
    assert api.deallocate("default", "c1")["status"] == {}
    api.merge(path, {"metadata": {"finalizers": ["x.io/y"]}})
    api.delete(path)
    assert api.list(world.claims) == []


def test_a_helper_keeps_a_uid(world: Any) -> None:
    """A test may choose the UID of an object; a request may not."""
    uid = "00000000-0000-4000-8000-000000000001"
    body = pod("a")
    body["metadata"]["uid"] = uid
    assert world.api.create(PODS, body)["metadata"]["uid"] == uid
    world.api.delete(f"{PODS}/a")
    assert world.client.create(PODS, body)["metadata"]["uid"] != uid
    node = world.api.create("/api/v1/nodes", {"metadata": {"name": "n"}})
    assert world.api.replace("/api/v1/nodes/n", node)["metadata"]["uid"] == node["metadata"]["uid"]


def test_many_clients_are_served_at_once(world: Any) -> None:
    """Writers of one object lose nothing: each change has a version of its own."""
    world.client.create(PODS, pod("a"))

    def write(number: int) -> None:
        for step in range(10):
            body = {"metadata": {"labels": {f"w{number}": str(step)}}}
            world.client.patch(f"{PODS}/a", body, content_type=MERGE)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    labels = world.client.get(f"{PODS}/a")["metadata"]["labels"]
    assert labels == {f"w{number}": "9" for number in range(4)}
