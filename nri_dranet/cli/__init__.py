"""The commands. Each is a module of its own, imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Final

from nri_dranet import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = {
    "run": "the node daemon: joins kubelet and the container runtime, serves claims",
    "devices": "what this node would publish, and why each other interface is not",
    "status": "the devices of all claims of a cluster: node, pod, interface, addresses, conditions",
    "explain": "what would happen with a claim on this node: values and their origin, the plan, every error",
    "demo": "one pod from its claim to its end on this machine, without a cluster",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; those of the process when not given.

    Returns:
        The exit code: 0 on success, 2 for wrong arguments, else 1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="nri-dranet", description="Kubernetes network driver through DRA and NRI.")
    parser.add_argument("--version", action="version", version=f"nri-dranet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), "")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == asked:
            module = importlib.import_module(f"nri_dranet.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(words)
    code: int = args.run(args)
    return code
