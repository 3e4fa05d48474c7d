"""A real Kubernetes cluster on this machine, in namespaces. Needs root, Go 1.26 and openssl.

    python -m hack.cluster build               build what is missing, into the user's cache
    python -m hack.cluster up                  start it: one node, Kubernetes 1.37, containerd 2.4
    python -m hack.cluster exec kubectl get pods -A
    python -m hack.cluster status
    python -m hack.cluster restart kubelet     also: start, stop, kill, pause, resume, of any component
    python -m hack.cluster load IMAGES.tar     load images on every node
    python -m hack.cluster down                end all of it; the logs stay

--dir, or CLUSTER_DIR, says which cluster: several may run side by side.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from hack import images, parts
from hack.cluster.cluster import Cluster, Versions, default_folder
from hack.cluster.host import ClusterError

_ACTS = {
    "start": "start it and wait until it serves",
    "stop": "end it by SIGTERM",
    "kill": "end it by SIGKILL",
    "restart": "stop and start it",
    "pause": "stop it where it is",
    "resume": "let it go on after a pause",
}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hack.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=default_folder(), help="the cluster's folder (default %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("build", "up"):
        command = commands.add_parser(name, help="build the parts" if name == "build" else "start the cluster")
        command.add_argument("--kubernetes", default="1.37", metavar="VERSION", help="1.37 or 1.34")
        command.add_argument("--containerd", default="2.4", metavar="VERSION", help="2.4 or 1.7")
    command.add_argument("--nodes", type=int, default=1, help="1 or 2")
    command.add_argument("--gate", action="append", default=[], metavar="NAME=true", help="a feature gate, everywhere")
    commands.add_parser("down", help="end the cluster")
    commands.add_parser("status", help="say what runs")
    command = commands.add_parser("exec", help="run a command in a node")
    command.add_argument("--node", default="node-1")
    command.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    command = commands.add_parser("load", help="load an archive of images on every node")
    command.add_argument("archive", type=Path)
    for act, words in _ACTS.items():
        commands.add_parser(act, help=words).add_argument("component", help="as `status` names it")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; those of the process when not given.

    Returns:
        The exit code: 1 when it failed (the reason is on stderr).
    """
    arguments = _arguments(argv)
    try:
        return _run(arguments)
    except (ClusterError, parts.PartError) as error:
        print(f"hack.cluster: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    command: str = arguments.command
    if command == "build":
        _build(Versions.named(arguments.kubernetes, arguments.containerd))
        return 0
    cluster = Cluster(arguments.dir)
    if command == "up":
        start = time.monotonic()
        gates = {name: on == "true" for name, _, on in (gate.partition("=") for gate in arguments.gate)}
        cluster.up(Versions.named(arguments.kubernetes, arguments.containerd), nodes=arguments.nodes, gates=gates)
        print(f"up in {time.monotonic() - start:.1f} s; python -m hack.cluster exec kubectl get nodes")
    elif command == "down":
        cluster.down()
    elif command == "status":
        return _status(cluster)
    elif command == "exec":
        return _exec(cluster, arguments.node, arguments.words)
    elif command == "load":
        cluster.load(arguments.archive.resolve())
    else:
        _act(cluster, command, arguments.component)
    return 0


def _build(versions: Versions) -> None:
    for part in versions.parts:
        start, cached = time.monotonic(), parts.place(part).is_dir()
        parts.build(part)
        state = "cached" if cached else f"built in {time.monotonic() - start:.0f} s"
        print(f"{part.name} {part.version}: {state}", flush=True)
    images.archive()


def _status(cluster: Cluster) -> int:
    first = cluster.first
    print(f"cluster in {cluster.folder}, logs in {first.log('NAME')}")
    states = cluster.states()
    for name, state in states.items():
        host = next(host for host in cluster.hosts if host.name == cluster.components[name].host)
        print(f"  {name:20} {state:12} {host.pid(name) or ''}")
    if states.get("apiserver") == "serving":
        print(cluster.kubectl("get", "nodes,pods", "--all-namespaces", "--output=wide"), end="")
    return 0 if set(states.values()) == {"serving"} else 1


def _exec(cluster: Cluster, node: str, words: list[str]) -> int:
    host = next((host for host in cluster.hosts if host.name == node), None) or cluster.first
    if not words:
        raise ClusterError("exec needs a command")
    os.execvpe("nsenter", [*host.enter(), *words], cluster.environment())  # noqa: S606 - it becomes the command


def _act(cluster: Cluster, act: str, component: str) -> None:
    if act == "start":
        cluster.start(component)
    elif act == "restart":
        cluster.restart(component)
    elif act == "pause":
        cluster.pause(component)
    elif act == "resume":
        cluster.resume(component)
    else:
        cluster.end(component, kill=act == "kill")


if __name__ == "__main__":
    sys.exit(main())
