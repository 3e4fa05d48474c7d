"""What a containerd of the tests is configured with, for the runtime tests' node and for the cluster's hosts alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hack import images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

NRI_SOCKET = "/run/nri/nri.sock"
CDI_DIR = "/run/cdi"

# restrict_oom_score_adj: without CAP_SYS_RESOURCE runc could not start a sandbox.
_VERSION_2 = """version = 3
root = '{root}'
state = '/run/containerd'
[grpc]
address = '{socket}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
cdi_spec_dirs = ['{cdi}']
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{cni}']
conf_dir = '{folder}/cni'
[plugins.'io.containerd.nri.v1.nri']
plugin_request_timeout = '{timeout}'
"""

# 1.7: NRI and CDI are off unless asked for.
_VERSION_1 = """version = 2
root = '{root}'
state = '/run/containerd'
[grpc]
address = '{socket}'
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = '{pause}'
restrict_oom_score_adj = true
enable_cdi = {enable_cdi}
cdi_spec_dirs = ['{cdi}']
[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = '{cni}'
conf_dir = '{folder}/cni'
[plugins.'io.containerd.nri.v1.nri']
disable = false
plugin_request_timeout = '{timeout}'
"""

# The default validator, from containerd 2.2 on. Pods name by an annotation what they need, and so may the node for all.
_VALIDATOR = """[plugins.'io.containerd.nri.v1.nri'.default_validator]
enable = true
required_plugins = {required}
tolerate_missing_plugins_annotation = 'example.com/tolerate-missing-plugins'
"""


def write(
    folder: Path,
    version: str,
    *,
    root: str | Path,
    socket: str | Path,
    cni: Path,
    pods: Mapping[str, str],
    timeout: str = "2s",
    enable_cdi: bool = True,
    required: Sequence[str] | None = None,
) -> Path:
    """Write containerd's configuration and that of its pods' network, a bridge; return the first one's path.

    Args:
        folder: Where; it is made when it is not there.
        version: containerd's version.
        root: Where containerd keeps what it is to have after a restart.
        socket: Where it serves CRI.
        cni: The folder of the CNI plugins.
        pods: The addresses of pods, as CNI's host-local plugin takes them: "subnet" at least.
        timeout: How long it waits for an NRI plugin's answer.
        enable_cdi: Whether it looks at a container's CDI devices; containerd 2 always does.
        required: NRI plugins without which no container is created, by the default validator; None: that is off.
    """
    (folder / "cni").mkdir(parents=True, exist_ok=True)
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[pods]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
    (folder / "cni" / "10-pods.conflist").write_text(json.dumps(network), encoding="utf-8")
    template = _VERSION_1 if version.startswith("1.") else _VERSION_2
    values: dict[str, object] = {"root": root, "socket": socket, "cni": cni, "folder": folder, "timeout": timeout}
    values |= {"pause": images.PAUSE, "cdi": CDI_DIR, "enable_cdi": str(enable_cdi).lower()}
    text = template.format_map(values)
    if required is not None:
        text += _VALIDATOR.format(required=json.dumps(list(required)))
    path = folder / "containerd.toml"
    path.write_text(text, encoding="utf-8")
    return path
