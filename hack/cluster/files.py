"""What the programs of a cluster are configured with: certificates, users, configuration files, command lines.

Addresses of a cluster: node N is 10.244.N.1 on its pods' bridge and its pods are in 10.244.N.0/24. The API server
listens on the service address itself, which the first host has on its loopback: nothing is translated, and no
kube-proxy is needed.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hack import containerd_config
from hack.cluster.host import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from hack.cluster.host import Host

SERVICE_ADDRESS = "10.96.0.1"
_SERVICES = "10.96.0.0/16"
_ETCD = "http://127.0.0.1:2379"
_CONTAINERD = "/run/containerd/containerd.sock"

# Kubeconfig to user and group. Authorisation is that of a real cluster: nodes may do what nodes may do.
_USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


@dataclass(frozen=True, slots=True)
class Component:
    """One program of the cluster.

    Attributes:
        host: The name of the host that it runs on.
        command: The program and its arguments.
        ready: The URL that answers 200 when it serves, as the host sees it; "" when its socket says so.
    """

    host: str
    command: list[str]
    ready: str = ""


@dataclass(slots=True)
class Layout:
    """Where a cluster's files are and what it is made of.

    Attributes:
        folder: Of the cluster.
        containerd: Its version.
        cni: The folder of the CNI plugins.
        gates: Feature gates of all components.
        components: By name: "kubelet", and "node-2/kubelet" on any host but the first.
    """

    folder: Path
    containerd: str
    cni: Path
    gates: dict[str, bool] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict)

    @property
    def pki(self) -> Path:
        """The folder of keys, certificates and tokens."""
        return self.folder / "pki"

    def kubeconfig(self, user: str) -> Path:
        """Return the path of a user's kubeconfig.

        Args:
            user: "admin", "controller-manager", "scheduler" or a node's name.
        """
        return self.pki / f"{user}.conf"


def address(number: int) -> str:
    """Return a node's address.

    Args:
        number: 1 for the first.
    """
    return f"10.244.{number}.1"


def write(layout: Layout, hosts: list[Host]) -> None:
    """Write all files, and name all components.

    Args:
        layout: Where.
        hosts: The hosts; the control plane is on the first.

    Raises:
        ClusterError: Certificates cannot be made.
    """
    layout.pki.mkdir(parents=True, exist_ok=True)
    addresses = [address(number) for number in range(1, len(hosts) + 1)]
    _certificate(layout.pki / "tls", "nri-dranet cluster", addresses)
    _certificate(layout.pki / "accounts", "nri-dranet service accounts", [])
    users = _USERS | {host.name: (f"system:node:{host.name}", "system:nodes") for host in hosts}
    tokens = {user: secrets.token_hex(16) for user in users}
    lines = [f'{tokens[user]},{name},{name},"{group}"\n' for user, (name, group) in users.items()]
    _secret(layout.pki / "tokens.csv", "".join(lines))
    for user, token in tokens.items():
        _secret(layout.kubeconfig(user), json.dumps(_kubeconfig(layout.pki / "tls.crt", token)))
    _control_plane(layout, hosts[0].name)
    for number, host in enumerate(hosts, 1):
        _node(layout, host, number)


def _certificate(stem: Path, name: str, addresses: list[str]) -> None:
    names = [f"IP:{each}" for each in (SERVICE_ADDRESS, "127.0.0.1", *addresses)]
    names += ["DNS:localhost", "DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{stem}.key"]
    command = ["openssl", "req", "-x509", *key, "-days", "3650", "-subj", f"/CN={name}", "-out", f"{stem}.crt"]
    command += ["-addext", f"subjectAltName={','.join(names)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"openssl cannot make the certificate {stem.name}: {done.stderr.strip()[-500:]}")


def _secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def _kubeconfig(certificate: Path, token: str) -> dict[str, Any]:
    server = {"server": f"https://{SERVICE_ADDRESS}", "certificate-authority": str(certificate)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "cluster",
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "user"}}],
        "clusters": [{"name": "cluster", "cluster": server}],
        "users": [{"name": "user", "user": {"token": token}}],
    }


def _control_plane(layout: Layout, host: str) -> None:
    pki = layout.pki
    gates = []
    if layout.gates:
        gates = ["--feature-gates=" + ",".join(f"{name}={str(on).lower()}" for name, on in layout.gates.items())]
    # The controller manager's own limit costs five seconds at start.
    loop = ["--leader-elect=false", "--bind-address=127.0.0.1", "--kube-api-qps=500", "--kube-api-burst=1000", *gates]
    etcd = ["etcd", "--data-dir", str(layout.folder / "etcd"), "--log-level=warn", "--unsafe-no-fsync"]
    etcd += [f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}"]
    peer = "http://127.0.0.1:2380"
    etcd += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"]
    server = [
        "kube-apiserver",
        f"--etcd-servers={_ETCD}",
        "--secure-port=443",
        f"--advertise-address={address(1)}",
        f"--service-cluster-ip-range={_SERVICES}",
        f"--tls-cert-file={pki}/tls.crt",
        f"--tls-private-key-file={pki}/tls.key",
        f"--token-auth-file={pki}/tokens.csv",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/accounts.crt",
        f"--service-account-signing-key-file={pki}/accounts.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--kubelet-preferred-address-types=InternalIP",
        *gates,
    ]
    manager = ["kube-controller-manager", f"--kubeconfig={layout.kubeconfig('controller-manager')}", *loop]
    manager += ["--use-service-account-credentials", f"--service-account-private-key-file={pki}/accounts.key"]
    manager += [f"--root-ca-file={pki}/tls.crt"]
    scheduler = ["kube-scheduler", f"--kubeconfig={layout.kubeconfig('scheduler')}", *loop]
    layout.components |= {
        "etcd": Component(host, etcd, f"{_ETCD}/health"),
        "apiserver": Component(host, server, "https://127.0.0.1/readyz"),
        "controller-manager": Component(host, manager, "https://127.0.0.1:10257/healthz"),
        "scheduler": Component(host, scheduler, "https://127.0.0.1:10259/healthz"),
    }


def _node(layout: Layout, host: Host, number: int) -> None:
    etc = host.folder / "etc"
    pods = {"subnet": f"10.244.{number}.0/24", "rangeStart": f"10.244.{number}.10", "gateway": address(number)}
    runtime = containerd_config.write(
        etc, layout.containerd, root="/var/lib/containerd", socket=_CONTAINERD, cni=layout.cni, pods=pods
    )
    (etc / "kubelet.yaml").write_text(json.dumps(_kubelet(layout, host)), encoding="utf-8")
    kubelet = ["kubelet", f"--config={etc}/kubelet.yaml", f"--kubeconfig={layout.kubeconfig(host.name)}", "--v=2"]
    kubelet += [f"--hostname-override={host.name}", f"--node-ip={address(number)}"]
    prefix = "" if number == 1 else f"{host.name}/"
    layout.components |= {
        f"{prefix}containerd": Component(host.name, ["containerd", "--config", str(runtime)]),
        f"{prefix}kubelet": Component(host.name, kubelet, "http://127.0.0.1:10248/healthz"),
    }


def _kubelet(layout: Layout, host: Host) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{_CONTAINERD}",
        # Nobody but the cluster itself is in its network.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": f"{layout.pki}/tls.crt",
        "tlsPrivateKeyFile": f"{layout.pki}/tls.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": host.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        # Without CAP_SYS_RESOURCE neither can be set as kubelet would.
        "oomScoreAdj": 0,
        "maxOpenFiles": 65536,
        "makeIPTablesUtilChains": False,
        "resolvConf": "",
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        # The machine's disk is not the cluster's to judge.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        # What follows a failed Prepare waits this long for the next try: a minute and a half by default.
        "syncFrequency": "10s",
        "featureGates": layout.gates,
    }
