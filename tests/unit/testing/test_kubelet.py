"""The kubelet stand-in against plugins that behave badly: it says what kubelet says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from nri_dranet.pb import dra_health_v1_pb2, dra_v1_pb2, pluginregistration_pb2
from nri_dranet.testing.kubelet import KubeletError, KubeletStandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLAIM = ("default", "a", "uid-a")
PATIENCE = 20.0


class BadPlugin:
    """A plugin whose every answer a test can choose."""

    def __init__(self, root: Path, name: str = "p") -> None:
        self.info = pluginregistration_pb2.PluginInfo(
            type="DRAPlugin",
            name="dra.net",
            endpoint=str(root / f"{name}.sock"),
            supported_versions=["v1.DRAPlugin", "v1.DRAResourceHealth"],
        )
        self.broken_calls = 0
        self.told: list[Any] = []
        self.claims: dict[str, Any] = {}
        self.health: list[Any] = []
        self._root = root
        self._name = name
        self._servers: list[grpc.Server] = []

    def start(self, socket: str = "") -> None:
        """Serve."""
        registry = self._root / "registry"
        registry.mkdir(exist_ok=True)
        pb = pluginregistration_pb2
        info = self._unary(self._get_info, pb.InfoRequest, pb.PluginInfo)
        notify = self._unary(self._notify, pb.RegistrationStatus, pb.RegistrationStatusResponse)
        prepare = self._unary(
            self._prepare, dra_v1_pb2.NodePrepareResourcesRequest, dra_v1_pb2.NodePrepareResourcesResponse
        )
        health = grpc.unary_stream_rpc_method_handler(
            lambda _request, _context: iter(self.health),
            request_deserializer=dra_health_v1_pb2.NodeWatchResourcesRequest.FromString,
            response_serializer=dra_health_v1_pb2.NodeWatchResourcesResponse.SerializeToString,
        )
        self._serve(
            self.info.endpoint,
            {
                "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin": {"NodePrepareResources": prepare},
                "v1.DRAResourceHealth": {"NodeWatchResources": health},
            },
        )
        services = {"pluginregistration.Registration": {"GetInfo": info, "NotifyRegistrationStatus": notify}}
        self._serve(str(registry / (socket or f"{self._name}-reg.sock")), services)

    def stop(self) -> None:
        """End at once."""
        for server in self._servers:
            server.stop(None).wait()

    def _serve(self, path: str, services: dict[str, dict[str, Any]]) -> None:
        server = grpc.server(ThreadPoolExecutor(2))
        handlers = [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]
        server.add_generic_rpc_handlers(tuple(handlers))
        server.add_insecure_port(f"unix://{path}")
        server.start()
        self._servers.append(server)

    @staticmethod
    def _unary(method: Any, request: Any, response: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            method, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )

    def _get_info(self, _request: Any, context: Any) -> Any:
        if self.broken_calls:
            self.broken_calls -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return self.info

    def _notify(self, request: Any, _context: Any) -> Any:
        self.told.append((request.plugin_registered, request.error))
        return pluginregistration_pb2.RegistrationStatusResponse()

    def _prepare(self, _request: Any, _context: Any) -> Any:
        return dra_v1_pb2.NodePrepareResourcesResponse(claims=self.claims)


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder whose path is short enough for sockets."""
    return tmp_path_factory.mktemp("k")


@pytest.fixture
def plugins(root: Path) -> Iterator[Callable[..., BadPlugin]]:
    """Give a function that makes plugins, which end with the test."""
    made: list[BadPlugin] = []

    def make(name: str = "p") -> BadPlugin:
        made.append(BadPlugin(root, name))
        return made[-1]

    yield make
    for plugin in made:
        plugin.stop()


@pytest.fixture
def kubelet(root: Path) -> Iterator[KubeletStandIn]:
    """Give a running kubelet."""
    running = KubeletStandIn(root / "registry", driver="dra.net")
    running.start()
    yield running
    running.stop()


def until(look: Callable[[], Any]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_every_claim_must_be_answered(plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn) -> None:
    """An answer that lacks a claim, or has one too many, is an error in kubelet's words."""
    plugin = plugins()
    plugin.start()
    with pytest.raises(KubeletError, match="NodePrepareResources skipped 1 ResourceClaims"):
        kubelet.prepare([CLAIM])
    answer = dra_v1_pb2.NodePrepareResourceResponse(error="no")
    plugin.claims = {"uid-a": answer, "uid-b": answer}
    with pytest.raises(KubeletError, match=r"returned results for unknown claims: \['uid-b'\]"):
        kubelet.prepare([CLAIM])
    plugin.claims = {"uid-a": answer}
    assert kubelet.prepare([CLAIM]) == {"uid-a": {"error": "no", "devices": []}}
    assert plugin.told == [(True, "")]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"type": "CSIPlugin"}, "no handler registered for plugin type: CSIPlugin"),
        ({"name": "other.net"}, "unknown driver other.net"),
        ({"supported_versions": ["v9.DRAPlugin"]}, "none of the DRA gRPC versions ['v9.DRAPlugin'] is supported"),
    ],
)
def test_a_plugin_that_does_not_fit_is_told(
    plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn, change: dict[str, Any], error: str
) -> None:
    """It is refused with the reason, and asked again later."""
    plugin = plugins()
    good = pluginregistration_pb2.PluginInfo()
    good.CopyFrom(plugin.info)
    for name, value in change.items():
        plugin.info.ClearField(name)
        plugin.info.MergeFrom(pluginregistration_pb2.PluginInfo(**{name: value}))
    plugin.start()
    until(lambda: plugin.told)
    assert plugin.told[0][0] is False
    assert error in plugin.told[0][1]
    until(lambda: kubelet.problems)
    assert error in kubelet.problems[0]
    plugin.info = good
    assert kubelet.wait_registered().name == "dra.net"


def test_a_silent_plugin_is_asked_again(plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn) -> None:
    """A failed call is a problem, and the next one after a pause succeeds."""
    plugin = plugins()
    plugin.broken_calls = 1
    plugin.start()
    assert kubelet.wait_registered().version == "v1"
    assert "not yet" in kubelet.problems[0]


def test_an_endpoint_is_registered_once(plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn, root: Path) -> None:
    """Two registration sockets of one endpoint: the second is refused. Names with a dot in front are no plugins."""
    plugin, second, hidden = plugins(), plugins("second"), plugins("hidden")
    plugin.start()
    kubelet.wait_registered()
    second.info.endpoint = str(root / "second.sock")
    second.start()
    until(lambda: kubelet.wait_registered().endpoint.endswith("second.sock"))
    third = plugins("third")
    third.start()
    until(lambda: kubelet.registrations == 3)
    third.info.endpoint = plugin.info.endpoint
    kubelet.restart()
    until(lambda: any("is already registered for plugin dra.net" in problem for problem in kubelet.problems))
    hidden.start(".hidden.sock")
    time.sleep(0.2)
    assert hidden.told == []


def test_who_left_is_forgotten(plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn, root: Path) -> None:
    """Its registration socket is gone, so nobody is called."""
    plugins().start()
    kubelet.wait_registered()
    (root / "registry" / "p-reg.sock").unlink()
    kubelet.wait_gone()
    with pytest.raises(KubeletError, match=r"no plugin dra\.net registered within 0 s"):
        kubelet.wait_registered(timeout=0)


def test_waiting_in_vain_is_an_error(plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn) -> None:
    """What does not come in time is named."""
    plugins().start()
    kubelet.wait_registered()
    with pytest.raises(KubeletError, match="still registered"):
        kubelet.wait_gone(timeout=0.01)
    with pytest.raises(KubeletError, match="in vain for the health"):
        kubelet.wait_health(bool, timeout=0.01)


def test_the_health_of_a_device_decays(plugins: Callable[..., BadPlugin], kubelet: KubeletStandIn) -> None:
    """News that are older than the device's lease count as unknown."""
    plugin = plugins()
    pb = dra_health_v1_pb2
    device = pb.DeviceHealth(
        device=pb.DeviceIdentifier(pool_name="node", device_name="eth1"),
        health=pb.HEALTHY,
        health_check_timeout_seconds=1,
    )

    def stream() -> Iterator[Any]:
        yield pb.NodeWatchResourcesResponse(devices=[device])
        time.sleep(3)

    plugin.health = stream()  # type: ignore[assignment]  # anything that can be iterated
    plugin.start()
    key = ("node", "eth1")
    kubelet.wait_health(lambda found: found.get(key) is not None and found[key].status == "Healthy")
    until(lambda: key not in kubelet.health() or kubelet.health()[key].status == "Unknown")
    assert kubelet.health()[key].status == "Unknown"
