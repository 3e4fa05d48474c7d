"""``kubectl dranet``: kubectl runs the program ``kubectl-dranet`` for it, which offers what a cluster's user needs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nri_dranet import __version__
from nri_dranet.cli import status

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the plugin.

    Args:
        argv: the arguments; those of the process when not given.

    Returns:
        The exit code of the command; 2 for wrong arguments.
    """
    parser = argparse.ArgumentParser(prog="kubectl dranet", description="Network devices of ResourceClaims.")
    parser.add_argument("--version", action="version", version=f"nri-dranet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "the devices of all claims: node, pod, interface, addresses, conditions"
    sub = commands.add_parser("status", help=text, description=text, allow_abbrev=False)
    status.add_arguments(sub)
    return status.run(parser.parse_args(argv))
