"""The chart's templates, without a cluster: what each value does, and manifests that Kubernetes' own schemas allow."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from hack import parts
from nri_dranet.cli.options import add_run_arguments

CHART: Final = Path(__file__).parents[2] / "charts" / "nri-dranet"
VERSIONS: Final = ("1.34", "1.37")
# Kinds that the Prometheus operator defines: Kubernetes has no schema of them.
FOREIGN: Final = "monitoring.coreos.com/v1"

EVERYTHING: Final[dict[str, Any]] = {
    "imagePullSecrets": [{"name": "pull"}],
    "bindAddress": "[::1]:9999",
    "filter": 'device.attributes["dra.net"].type == "device"',
    "share": 'device.attributes["dra.net"].ifName == "ens9"',
    "inventoryMinPollInterval": "1s",
    "inventoryMaxPollInterval": "2m",
    "inventoryPollBurst": 7,
    "moveIbInterfaces": False,
    "allowInterfaces": "ens*",
    "denyInterfaces": "eth0",
    "endUnattachedPods": True,
    "liftMemlock": False,
    "deviceTaints": "NoSchedule",
    "nriPluginName": "other",
    "extraArgs": ["--log-level=debug"],
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "podMonitor": {"create": True, "labels": {"team": "net"}},
    "prometheusRule": {"create": True, "labels": {"team": "net"}},
    "grafanaDashboard": {"create": True, "namespace": "grafana"},
    "seLinuxOptions": {"type": "spc_t"},
    "resources": {"limits": {"memory": "256Mi"}},
    "nodeSelector": {"net": "yes"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "net", "operator": "Exists"}]}]
            }
        }
    },
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
}


@pytest.fixture(scope="module")
def helm() -> Path:
    """Return the helm program."""
    return parts.build(parts.HELM) / "helm"


@pytest.fixture
def refused(helm: Path) -> Any:
    """Return a function that renders values which must be refused, and returns the words."""

    def render(values: dict[str, Any]) -> str:
        done = _template(helm, values)
        assert done.returncode, "the values were taken"
        return done.stderr

    return render


@pytest.fixture
def rendered(helm: Path) -> Any:
    """Return a function that renders values and returns the manifests by kind, several of a kind by kind and name."""

    def render(values: dict[str, Any] | None = None, **more: str) -> dict[str, Any]:
        done = _template(helm, values or {}, **more)
        assert not done.returncode, done.stderr
        found: dict[str, Any] = {}
        for each in yaml.safe_load_all(done.stdout):
            if each:
                assert each["kind"] not in found
                found[each["kind"]] = each
        return found

    return render


def _template(
    helm: Path, values: dict[str, Any], *, release: str = "nri-dranet", namespace: str = "kube-system"
) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [helm, "template", release, CHART, "--namespace", namespace, "--values=-"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_run_arguments(parser)
    return parser


def _pod(found: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = found["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def _container(found: dict[str, Any]) -> dict[str, Any]:
    (container,) = _pod(found)["containers"]
    assert isinstance(container, dict)
    return container


def _flag(found: dict[str, Any], name: str) -> list[str]:
    return [word.partition("=")[2] for word in _container(found)["args"] if word.partition("=")[0] == f"--{name}"]


def _mounts(found: dict[str, Any]) -> list[str]:
    return [mount["mountPath"] for mount in _container(found)["volumeMounts"]]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as it comes", "everything"])
def test_lint(helm: Path, values: dict[str, Any]) -> None:
    """Helm finds nothing to say about the chart."""
    command: list[str | Path] = [helm, "lint", "--strict", CHART, "--values=-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as it comes", "everything"])
def test_kubernetes_allows_every_manifest(rendered: Any, values: dict[str, Any], version: str) -> None:
    """The oldest and the newest Kubernetes know every kind and field of the manifests."""
    for manifest in rendered(values).values():
        if manifest["apiVersion"] != FOREIGN:
            assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_as_it_comes(rendered: Any) -> None:
    """Without values: no privileges but two capabilities, nothing of Prometheus or Grafana, nobody evicted."""
    found = rendered()
    assert set(found) == {
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "DaemonSet",
        "DeviceClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "Pod",
    }
    security = _container(found)["securityContext"]
    assert security["privileged"] is False
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]
    assert _pod(found).get("hostPID") is None
    resources = {name for rule in found["ClusterRole"]["rules"] for name in rule["resources"]}
    assert "pods/eviction" not in resources
    assert {"resourceclaims/status", "resourceclaims/driver"} <= resources
    verbs = {verb for rule in found["ClusterRole"]["rules"] for verb in rule["verbs"]}
    assert "*" not in verbs


def test_the_program_takes_every_flag_of_the_chart(rendered: Any) -> None:
    """What the chart gives the program is what its command line takes."""
    for values in ({}, EVERYTHING):
        args = [
            word.replace("$(NODE_NAME)", "n").replace("$(POD_UID)", "u")
            for word in _container(rendered(values))["args"]
        ]
        assert args.pop(0) == "run"
        _run_parser().parse_args(args)


# Value → what is to be found of it. Each value of values.yaml has its line, see below.
CASES: Final[dict[str, tuple[dict[str, Any], Any, Any]]] = {
    "image.repository": (
        {"image": {"repository": "r.example/x"}},
        lambda f: _container(f)["image"].rpartition(":")[0],
        "r.example/x",
    ),
    "image.tag": ({"image": {"tag": "7"}}, lambda f: _container(f)["image"].rpartition(":")[2], "7"),
    "image.pullPolicy": ({"image": {"pullPolicy": "Always"}}, lambda f: _container(f)["imagePullPolicy"], "Always"),
    "imagePullSecrets": ({"imagePullSecrets": [{"name": "s"}]}, lambda f: _pod(f)["imagePullSecrets"], [{"name": "s"}]),
    "driverName": (
        {"driverName": "net.example.com"},
        lambda f: (
            _flag(f, "driver-name"),
            f["DeviceClass"]["spec"]["selectors"][0]["cel"]["expression"],
            [r["resourceNames"] for r in f["ClusterRole"]["rules"] if r["resources"] == ["resourceclaims/driver"]],
            '"net.example.com"' in json.dumps(f["ValidatingAdmissionPolicy"]).replace('\\"', '"'),
        ),
        (["net.example.com"], 'device.driver == "net.example.com"', [["net.example.com"]], True),
    ),
    "bindAddress": (
        {"bindAddress": "[::1]:9999"},
        lambda f: (
            _flag(f, "bind-address"),
            _container(f)["livenessProbe"]["httpGet"]["host"],
            f["Pod"]["spec"]["containers"][0]["args"][1],
        ),
        (["[::1]:9999"], "::1", "http://[::1]:9999/readyz"),
    ),
    "filter": ({"filter": "true"}, lambda f: _flag(f, "filter"), ["true"]),
    "share": ({"share": "false"}, lambda f: _flag(f, "share"), ["false"]),
    "inventoryMinPollInterval": (
        {"inventoryMinPollInterval": "3s"},
        lambda f: _flag(f, "inventory-min-poll-interval"),
        ["3s"],
    ),
    "inventoryMaxPollInterval": (
        {"inventoryMaxPollInterval": "3m"},
        lambda f: _flag(f, "inventory-max-poll-interval"),
        ["3m"],
    ),
    "inventoryPollBurst": ({"inventoryPollBurst": 9}, lambda f: _flag(f, "inventory-poll-burst"), ["9"]),
    "moveIbInterfaces": ({"moveIbInterfaces": False}, lambda f: _flag(f, "move-ib-interfaces"), ["false"]),
    "allowInterfaces": ({"allowInterfaces": "ens*"}, lambda f: _flag(f, "allow-interfaces"), ["ens*"]),
    "denyInterfaces": ({"denyInterfaces": "eth0"}, lambda f: _flag(f, "deny-interfaces"), ["eth0"]),
    "featureGates": ({"featureGates": "A=true"}, lambda f: _flag(f, "feature-gates"), ["A=true"]),
    "endUnattachedPods": (
        {"endUnattachedPods": True},
        lambda f: (
            _flag(f, "end-unattached-pods"),
            ["pods/eviction"] in [r["resources"] for r in f["ClusterRole"]["rules"]],
        ),
        (["true"], True),
    ),
    "liftMemlock": ({"liftMemlock": False}, lambda f: _flag(f, "lift-memlock"), ["false"]),
    "deviceTaints": ({"deviceTaints": "NoSchedule"}, lambda f: _flag(f, "device-taints"), ["NoSchedule"]),
    "nriPluginName": ({"nriPluginName": "p"}, lambda f: _flag(f, "nri-plugin-name"), ["p"]),
    "nriPluginIndex": ({"nriPluginIndex": "07"}, lambda f: _flag(f, "nri-plugin-index"), ["07"]),
    "logLevel": ({"logLevel": "debug"}, lambda f: _flag(f, "log-level"), ["debug"]),
    "logFormat": ({"logFormat": "text"}, lambda f: _flag(f, "log-format"), ["text"]),
    "kubeletRootDir": (
        {"kubeletRootDir": "/k"},
        lambda f: (_flag(f, "kubelet-root-dir"), {"/k/plugins", "/k/plugins_registry"} <= set(_mounts(f))),
        (["/k"], True),
    ),
    "nriSocketDir": (
        {"nriSocketDir": "/n"},
        lambda f: (_flag(f, "nri-socket"), "/n" in _mounts(f)),
        (["/n/nri.sock"], True),
    ),
    "cdiDir": ({"cdiDir": "/c"}, lambda f: (_flag(f, "cdi-dir"), "/c" in _mounts(f)), (["/c"], True)),
    "extraArgs": ({"extraArgs": ["--x"]}, lambda f: _container(f)["args"][-1], "--x"),
    "extraEnv": (
        {"extraEnv": [{"name": "A", "value": "b"}]},
        lambda f: _container(f)["env"][-1],
        {"name": "A", "value": "b"},
    ),
    "deviceClass.create": ({"deviceClass": {"create": False}}, lambda f: "DeviceClass" in f, False),
    "deviceClass.name": ({"deviceClass": {"name": "fast"}}, lambda f: f["DeviceClass"]["metadata"]["name"], "fast"),
    "admissionPolicy.create": (
        {"admissionPolicy": {"create": False}},
        lambda f: [k for k in f if k.startswith("Validating")],
        [],
    ),
    "podMonitor.create": ({"podMonitor": {"create": True}}, lambda f: f["PodMonitor"]["apiVersion"], FOREIGN),
    "podMonitor.interval": (
        {"podMonitor": {"create": True, "interval": "7s"}},
        lambda f: f["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["interval"],
        "7s",
    ),
    "podMonitor.labels": (
        {"podMonitor": {"create": True, "labels": {"a": "b"}}},
        lambda f: f["PodMonitor"]["metadata"]["labels"]["a"],
        "b",
    ),
    "prometheusRule.create": (
        {"prometheusRule": {"create": True}},
        lambda f: f["PrometheusRule"]["apiVersion"],
        FOREIGN,
    ),
    "prometheusRule.labels": (
        {"prometheusRule": {"create": True, "labels": {"a": "b"}}},
        lambda f: f["PrometheusRule"]["metadata"]["labels"]["a"],
        "b",
    ),
    "grafanaDashboard.create": (
        {"grafanaDashboard": {"create": True}},
        lambda f: json.loads(f["ConfigMap"]["data"]["nri-dranet.json"])["title"],
        "nri-dranet",
    ),
    "grafanaDashboard.labels": (
        {"grafanaDashboard": {"create": True, "labels": {"grafana_dashboard": "yes"}}},
        lambda f: f["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"],
        "yes",
    ),
    "grafanaDashboard.namespace": (
        {"grafanaDashboard": {"create": True, "namespace": "g"}},
        lambda f: f["ConfigMap"]["metadata"]["namespace"],
        "g",
    ),
    "capabilities": (
        {"capabilities": ["NET_ADMIN"]},
        lambda f: _container(f)["securityContext"]["capabilities"]["add"],
        ["NET_ADMIN"],
    ),
    "seccompProfile": (
        {"seccompProfile": {"type": "Unconfined"}},
        lambda f: _container(f)["securityContext"]["seccompProfile"]["type"],
        "Unconfined",
    ),
    "appArmorProfile": (
        {"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}},
        lambda f: _container(f)["securityContext"]["appArmorProfile"],
        {"type": "Localhost", "localhostProfile": "p"},
    ),
    "seLinuxOptions": (
        {"seLinuxOptions": {"type": "spc_t"}},
        lambda f: _container(f)["securityContext"]["seLinuxOptions"],
        {"type": "spc_t"},
    ),
    "priorityClassName": ({"priorityClassName": "p"}, lambda f: _pod(f)["priorityClassName"], "p"),
    "maxUnavailable": (
        {"maxUnavailable": "20%", "maxSurge": 0},
        lambda f: f["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
        "20%",
    ),
    "maxSurge": (
        {"maxSurge": 1},
        lambda f: (f["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"], _container(f).get("ports")),
        ({"maxSurge": 1, "maxUnavailable": 0}, None),
    ),
    "resources": (
        {"resources": {"limits": {"cpu": "2"}}},
        lambda f: _container(f)["resources"],
        {"limits": {"cpu": "2"}, "requests": {"cpu": "10m", "memory": "64Mi"}},
    ),
    "nodeSelector": ({"nodeSelector": {"a": "b"}}, lambda f: _pod(f)["nodeSelector"], {"a": "b"}),
    "tolerations": ({"tolerations": [{"key": "x"}]}, lambda f: _pod(f)["tolerations"], [{"key": "x"}]),
    "affinity": ({"affinity": {"podAffinity": {}}}, lambda f: _pod(f)["affinity"], {"podAffinity": {}}),
    "podAnnotations": (
        {"podAnnotations": {"a": "b"}},
        lambda f: f["DaemonSet"]["spec"]["template"]["metadata"]["annotations"],
        {"a": "b"},
    ),
    "podLabels": (
        {"podLabels": {"a": "b"}},
        lambda f: f["DaemonSet"]["spec"]["template"]["metadata"]["labels"]["a"],
        "b",
    ),
}


@pytest.mark.parametrize("value", CASES)
def test_each_value(rendered: Any, value: str) -> None:
    """A value does what it is for."""
    values, look, expected = CASES[value]
    assert look(rendered(values)) == expected


def test_each_value_has_its_test() -> None:
    """No value is without a test above."""
    given = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"]
    found: set[str] = set()
    for name, value in given.items():
        inner = isinstance(value, dict) and "properties" in schema[name] and "additionalProperties" in schema[name]
        own = (
            inner
            and schema[name]["additionalProperties"] is False
            and name not in {"seccompProfile", "appArmorProfile"}
        )
        found |= {f"{name}.{key}" for key in value} if own else {name}
    assert found == set(CASES)


def test_flags_without_a_value_are_named(rendered: Any) -> None:
    """Each flag of the program has a value of the chart, but for those of a daemon that runs in no pod.

    Flags that are taken for compatibility alone have none.
    """
    own = {"kubeconfig", "state-dir", "db-path", "v", "cloud-provider-hint", "profile-provider", "webhook-url"}
    known = {name.replace("_", "-") for name in vars(_run_parser().parse_args([]))} - own
    given = {
        match[1]
        for values in ({}, EVERYTHING, {"featureGates": "A=true"})
        for word in _container(rendered(values))["args"]
        if (match := re.match(r"--([a-z-]+)=", word))
    }
    assert known - given == set()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"filtre": "true"}, "filtre"),
        ({"podMonitor": {"creat": True}}, "creat"),
        ({"logLevel": "loud"}, "logLevel"),
        ({"maxUnavailable": {}}, "maxUnavailable"),
        ({"deviceTaints": "some"}, "deviceTaints"),
        ({"nriPluginIndex": 90}, "nriPluginIndex"),
        ({"bindAddress": "9177"}, "bindAddress"),
        ({"capabilities": "NET_ADMIN"}, "capabilities"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ],
)
def test_a_wrong_value_is_refused(refused: Any, values: dict[str, Any], word: str) -> None:
    """A value that is misspelt or of another kind is refused with its name, and nothing is installed."""
    assert word in refused(values)


def test_two_releases_have_names_of_their_own(rendered: Any) -> None:
    """Objects of two releases do not collide, whatever their names are."""
    names = [
        {(kind, each["metadata"]["name"]) for kind, each in rendered(release=release).items() if kind != "DeviceClass"}
        for release in ("net", "rdma")
    ]
    assert not names[0] & names[1]


def test_the_policy_knows_the_service_account(rendered: Any) -> None:
    """The admission policy is about the account that the driver runs as, in any namespace and under any name."""
    found = rendered(release="net", namespace="system")
    account = _pod(found)["serviceAccountName"]
    assert found["ServiceAccount"]["metadata"] | {"labels": None} == {
        "name": account,
        "namespace": "system",
        "labels": None,
    }
    expression = found["ValidatingAdmissionPolicy"]["spec"]["matchConditions"][0]["expression"]
    assert expression == f'request.userInfo.username == "system:serviceaccount:system:{account}"'
    assert found["ClusterRoleBinding"]["subjects"][0]["name"] == account
