"""The cluster's own code, without a cluster: versions, folders, files."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from hack import parts
from hack.cluster import __main__ as command
from hack.cluster import files, sysctls
from hack.cluster.cluster import Cluster, Versions
from hack.cluster.host import ClusterError, Host

if TYPE_CHECKING:
    from pathlib import Path


def test_versions_are_named_by_their_beginning() -> None:
    """A minor version means the release that is pinned of it; a number that only begins like one does not."""
    old = Versions.named("1.34", "1.7")
    assert (old.kubernetes, old.containerd) == (parts.KUBERNETES_OLD, parts.CONTAINERD_1)
    assert Versions.named("1.37.2", "2.4") == Versions()
    with pytest.raises(ClusterError, match=r"Kubernetes 1\.3: there are 1\.37\.2 and 1\.34\.4"):
        Versions.named("1.3", "2.4")
    with pytest.raises(ClusterError, match=r"containerd 2\.0: there are"):
        Versions.named("1.37", "2.0")


def test_every_part_of_a_cluster_has_its_module() -> None:
    """Whatever pair is chosen, go.mod and go.sum are there."""
    for versions in (Versions(), Versions.named("1.34", "1.7")):
        for part in versions.parts:
            assert (part.module / "go.mod").exists()
            assert (part.module / "go.sum").exists()


def test_kubernetes_says_its_version() -> None:
    """The linker is told version, major and minor."""
    told = {name.rpartition(".")[2]: value for name, value in parts.KUBERNETES_OLD.variables.items()}
    assert told == {"gitVersion": "v1.34.4", "gitMajor": "1", "gitMinor": "34", "gitTreeState": "clean"}


def test_a_folder_that_hosts_hide_is_refused(tmp_path: Path) -> None:
    """A cluster in /var/lib would not see its own files."""
    with pytest.raises(ClusterError, match="its hosts have a /var/lib of their own"):
        Cluster(tmp_path.__class__("/var/lib/cluster"))


@pytest.mark.usefixtures("knob")
def test_a_cluster_that_is_down_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands say how to start one; down has nothing to do."""
    for words in (["status"], ["exec", "true"], ["restart", "kubelet"]):
        assert command.main(["--dir", str(tmp_path), *words]) == 1
        assert "down" in (said := capsys.readouterr().err) or "up" in said
    assert command.main(["--dir", str(tmp_path), "down"]) == 0


@pytest.fixture
def knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a sysctl that stands for those that kubelet sets."""
    (tmp_path / "kernel" / "random").mkdir(parents=True)
    (tmp_path / "kernel" / "random" / "boot_id").write_text("first\n", encoding="ascii")
    knob = tmp_path / "kernel" / "panic"
    knob.write_text("0\n", encoding="ascii")
    monkeypatch.setattr(sysctls, "_TREE", tmp_path)
    monkeypatch.setattr(sysctls, "NAMES", ("kernel/panic",))
    monkeypatch.setattr(sysctls, "RECORD", tmp_path / "record.json")
    return knob


def test_sysctls_are_put_back(knob: Path, tmp_path: Path) -> None:
    """What kubelet changed has its value of before."""
    sysctls.note(tmp_path, lambda _: True)
    knob.write_text("10\n", encoding="ascii")
    Cluster(tmp_path).down()
    assert knob.read_text(encoding="ascii") == "0"


def test_sysctls_are_put_back_by_the_last_of_two_clusters(knob: Path, tmp_path: Path) -> None:
    """The second cluster takes the first one's values for the machine's no more than the first puts them back early."""
    one, two = tmp_path / "one", tmp_path / "two"
    sysctls.note(one, lambda _: True)
    knob.write_text("10\n", encoding="ascii")
    sysctls.note(two, lambda _: True)
    sysctls.restore(one, lambda _: True)
    assert knob.read_text(encoding="ascii") == "10\n"
    sysctls.restore(two, lambda _: True)
    assert knob.read_text(encoding="ascii") == "0"
    assert not sysctls.RECORD.exists()
    knob.write_text("5", encoding="ascii")
    sysctls.restore(two, lambda _: True)
    assert knob.read_text(encoding="ascii") == "5", "what nobody noted is nobody's to put back"


def test_sysctls_of_a_cluster_that_was_killed(knob: Path, tmp_path: Path) -> None:
    """It never put them back: the next one does, but not those of before the machine's last start."""
    one, two = tmp_path / "one", tmp_path / "two"
    sysctls.note(one, lambda _: True)
    knob.write_text("10\n", encoding="ascii")
    sysctls.note(two, lambda folder: folder == two)
    sysctls.restore(two, lambda folder: folder == two)
    assert knob.read_text(encoding="ascii") == "0"
    sysctls.note(one, lambda _: True)
    (tmp_path / "kernel" / "random" / "boot_id").write_text("second\n", encoding="ascii")
    knob.write_text("7", encoding="ascii")
    sysctls.note(two, lambda folder: folder == two)
    knob.write_text("10", encoding="ascii")
    sysctls.restore(two, lambda folder: folder == two)
    assert knob.read_text(encoding="ascii") == "7"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_the_files_of_two_nodes(tmp_path: Path) -> None:
    """The control plane is on the first host; each host has containerd and kubelet."""
    hosts = [Host(f"node-{number}", tmp_path / f"node-{number}", "x") for number in (1, 2)]
    layout = files.Layout(tmp_path, "2.4.2", tmp_path / "cni", {"SomeGate": True})
    files.write(layout, hosts)
    assert {name for name, component in layout.components.items() if component.host == "node-2"} == {
        "node-2/containerd",
        "node-2/kubelet",
    }
    assert "--feature-gates=SomeGate=true" in layout.components["apiserver"].command
    kubelet = json.loads((tmp_path / "node-2/etc/kubelet.yaml").read_text(encoding="utf-8"))
    assert kubelet["cgroupRoot"] == "/nri-dranet-cluster-x/node-2"
    assert kubelet["featureGates"] == {"SomeGate": True}
    assert "--node-ip=10.244.2.1" in layout.components["node-2/kubelet"].command
    tokens = layout.pki / "tokens.csv"
    assert tokens.stat().st_mode & 0o077 == 0
    assert '"system:nodes"' in tokens.read_text(encoding="utf-8")


def test_containerd_1_gets_nri_and_cdi_turned_on(tmp_path: Path) -> None:
    """Its configuration is of its own version, where both are off by default."""
    host = Host("node-1", tmp_path / "node-1", "x")
    for version, words in (("1.7.35", "enable_cdi = true"), ("2.4.2", "version = 3")):
        files._node(files.Layout(tmp_path, version, tmp_path / "cni"), host, 1)
        assert words in (tmp_path / "node-1/etc/containerd.toml").read_text(encoding="utf-8")
