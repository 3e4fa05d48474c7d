"""A small client of the container runtime's CRI, as kubelet is one: for tests.

Its protobuf stubs are generated into the user's cache from the API's own Go module, at the version that
``hack/modules`` pins, and are not checked in.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc

from hack import parts, protos
from nri_dranet.testing.patience import patience

if TYPE_CHECKING:
    from types import ModuleType

MODULE = "cri-api-0.37.2"
_PROTO = "pkg/apis/runtime/v1/api.proto"

# kubelet's limit for a call that makes a sandbox is 4 minutes. A test that waits a minute has failed.
TIMEOUT = patience(60.0)


class CriError(Exception):
    """The runtime refused a call.

    Attributes:
        method: The CRI method, e.g. "RunPodSandbox".
        message: What the runtime said.
    """

    def __init__(self, method: str, message: str) -> None:
        super().__init__(f"{method}: {message}")
        self.method = method
        self.message = message


@functools.cache
def messages() -> ModuleType:
    """Return the module of CRI's messages.

    Raises:
        hack.parts.PartError: The API's module cannot be fetched.
        subprocess.CalledProcessError: The generator failed.
    """
    target = stubs()
    spec = importlib.util.spec_from_file_location(target.stem, target)
    if spec is None or spec.loader is None:
        raise ImportError(f"{target} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stubs() -> Path:
    """Return the file of CRI's messages; generate it when it is not in the cache.

    Raises:
        hack.parts.PartError: The API's module cannot be fetched.
        subprocess.CalledProcessError: The generator failed.
    """
    if (folder := parts.prebuilt()) is not None:
        return next(folder.glob("cri_*_pb2.py"))
    source = parts.module_folder(MODULE, "k8s.io/cri-api") / _PROTO
    digest = hashlib.sha256(source.read_bytes() + repr(protos.REQUIREMENTS).encode()).hexdigest()[:12]
    target = parts.cache() / "cri" / f"cri_{digest}_pb2.py"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _generate(source, target)
    return target


def _generate(source: Path, target: Path) -> None:
    name = target.stem.removesuffix("_pb2")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [str(protos.generator()), "-W", "ignore", "-m", "grpc_tools.protoc"]
        subprocess.run(
            [*command, f"--proto_path={name}.proto={source}", f"--python_out={scratch}", f"{name}.proto"], check=True
        )
        (Path(scratch) / target.name).replace(target)


@dataclass(frozen=True, slots=True)
class Pod:
    """What a sandbox is made from.

    Attributes:
        name: The pod's name.
        uid: The pod's UID.
        namespace: The pod's namespace.
        cgroup: The parent of its containers' cgroups, e.g. "/tests/pod1".
        host_network: Whether it stays in the node's network namespace.
        annotations: The pod's annotations.
        attempt: The number of the sandbox among those made for this pod.
    """

    name: str
    uid: str
    cgroup: str
    namespace: str = "default"
    host_network: bool = False
    annotations: dict[str, str] = field(default_factory=dict)
    attempt: int = 0


class CriClient:
    """Calls of CRI that tests need, over the runtime's Unix socket. A context manager."""

    def __init__(self, socket: Path) -> None:
        self._pb: Any = messages()
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def version(self) -> tuple[str, str]:
        """Return the runtime's name and version.

        Raises:
            CriError: It does not serve.
        """
        answer = self._call("Version", self._pb.VersionRequest(), wait=True)
        return answer.runtime_name, answer.runtime_version

    def ready(self) -> bool:
        """Return whether the runtime and its pod network are ready.

        Raises:
            CriError: It does not serve.
        """
        answer = self._call("Status", self._pb.StatusRequest(), wait=True)
        conditions = {condition.type: condition.status for condition in answer.status.conditions}
        return bool(conditions["RuntimeReady"] and conditions["NetworkReady"])

    def run_sandbox(self, pod: Pod, *, timeout: float = TIMEOUT) -> str:
        """Make and start a pod's sandbox.

        Args:
            pod: What to make.
            timeout: Seconds after which to give up.

        Returns:
            The sandbox's id.

        Raises:
            CriError: Refused: by a plugin, the pod network or the runtime.
        """
        request = self._pb.RunPodSandboxRequest(config=self._config(pod))
        return str(self._call("RunPodSandbox", request, timeout=timeout).pod_sandbox_id)

    def stop_sandbox(self, sandbox: str) -> None:
        """Stop a sandbox and all its containers.

        Raises:
            CriError: Refused.
        """
        self._call("StopPodSandbox", self._pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))

    def remove_sandbox(self, sandbox: str) -> None:
        """Remove a sandbox and all its containers.

        Raises:
            CriError: Refused.
        """
        self._call("RemovePodSandbox", self._pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))

    def sandboxes(self) -> dict[str, bool]:
        """Return the id of each sandbox, and whether it is ready.

        Raises:
            CriError: Refused.
        """
        items = self._call("ListPodSandbox", self._pb.ListPodSandboxRequest()).items
        return {item.id: item.state == self._pb.SANDBOX_READY for item in items}

    def netns(self, sandbox: str) -> str:
        """Return the path of a sandbox's network namespace, as the runtime sees it; "" when it has none.

        Raises:
            CriError: Refused, e.g. because there is no such sandbox.
        """
        request = self._pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        info = json.loads(self._call("PodSandboxStatus", request).info["info"])
        namespaces = info["runtimeSpec"]["linux"]["namespaces"]
        return next((item.get("path", "") for item in namespaces if item["type"] == "network"), "")

    def create_container(
        self, sandbox: str, pod: Pod, name: str, command: tuple[str, ...], *, image: str, cdi: tuple[str, ...] = ()
    ) -> str:
        """Create a container.

        Args:
            sandbox: The id of its sandbox.
            pod: What the sandbox was made from.
            name: The container's name.
            command: What it runs.
            image: The reference of an image that the runtime has.
            cdi: Names of CDI devices for it, as kubelet gives those that a driver answered in Prepare.

        Returns:
            The container's id.

        Raises:
            CriError: Refused, e.g. because a CDI device is not known.
        """
        pb = self._pb
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
            CDI_devices=[pb.CDIDevice(name=device) for device in cdi],
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(cpu_shares=2),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=self._namespaces(pod), seccomp=self._seccomp()
                ),
            ),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=self._config(pod))
        return str(self._call("CreateContainer", request).container_id)

    def start_container(self, container: str) -> None:
        """Start a created container.

        Raises:
            CriError: Refused.
        """
        self._call("StartContainer", self._pb.StartContainerRequest(container_id=container))

    def remove_container(self, container: str) -> None:
        """Stop and remove a container.

        Raises:
            CriError: Refused.
        """
        self._call("RemoveContainer", self._pb.RemoveContainerRequest(container_id=container))

    def containers(self) -> dict[str, str]:
        """Return the id and the state of each container, e.g. "CONTAINER_RUNNING".

        Raises:
            CriError: Refused.
        """
        items = self._call("ListContainers", self._pb.ListContainersRequest()).containers
        return {item.id: self._pb.ContainerState.Name(item.state) for item in items}

    def exec(self, container: str, *command: str) -> str:
        """Run a command in a running container and return what it printed.

        Raises:
            CriError: It did not end well; the message has what it printed.
        """
        request = self._pb.ExecSyncRequest(container_id=container, cmd=command, timeout=int(patience(10)))
        answer = self._call("ExecSync", request)
        if answer.exit_code:
            said = (answer.stdout + answer.stderr).decode(errors="replace")
            raise CriError("ExecSync", f"{' '.join(command)}: exit code {answer.exit_code}: {said}")
        return bytes(answer.stdout).decode()

    def _call(self, method: str, request: Any, *, timeout: float = TIMEOUT, wait: bool = False) -> Any:
        answer = getattr(self._pb, type(request).__name__.removesuffix("Request") + "Response")
        call = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return call(request, timeout=timeout, wait_for_ready=wait)
        except grpc.RpcError as error:
            raise CriError(method, f"{error.code().name}: {error.details()}") from None

    def _config(self, pod: Pod) -> Any:
        pb = self._pb
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=pod.name, uid=pod.uid, namespace=pod.namespace, attempt=pod.attempt),
            hostname="" if pod.host_network else pod.name,
            annotations=pod.annotations,
            labels={
                "io.kubernetes.pod.name": pod.name,
                "io.kubernetes.pod.namespace": pod.namespace,
                "io.kubernetes.pod.uid": pod.uid,
            },
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=pod.cgroup,
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=self._namespaces(pod), seccomp=self._seccomp()
                ),
            ),
        )

    def _namespaces(self, pod: Pod) -> Any:
        pb = self._pb
        return pb.NamespaceOption(network=pb.NODE if pod.host_network else pb.POD, pid=pb.CONTAINER, ipc=pb.POD)

    def _seccomp(self) -> Any:
        """Return the profile that kubelet gives each sandbox."""
        return self._pb.SecurityProfile(profile_type=self._pb.SecurityProfile.RuntimeDefault)
