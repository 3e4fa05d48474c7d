"""``nri-dranet run``: the daemon."""

from __future__ import annotations

import asyncio
import logging
import platform
import socket
import sys
from typing import TYPE_CHECKING

from nri_dranet import __version__
from nri_dranet.cli.options import add_run_arguments, run_options
from nri_dranet.telemetry import logs, threads
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    import argparse

LOG = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the command."""
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM.

    Returns:
        0 after a stop that was asked for, 1 when the start failed, 2 for a value that is not allowed.
    """
    from nri_dranet.driver import Driver, StartError  # noqa: PLC0415 - the help text needs none of it

    options = run_options(args, socket.gethostname())
    try:
        logs.set_up(options.log_level, options.log_format)
        threads.log_deaths()
        driver = Driver(options)
    except ValueError as error:
        print(f"nri-dranet run: {error}", file=sys.stderr)
        return 2
    LOG.info(
        "starting",
        extra=fields(
            version=__version__, python=platform.python_version(), node=options.node_name, driver=options.driver_name
        ),
    )
    for flag, value, harmless in (
        ("--cloud-provider-hint", args.cloud_provider_hint, ("", "NONE", "none")),
        ("--profile-provider", args.profile_provider, ("cloud", "none", "")),
        ("--webhook-url", args.webhook_url, ("",)),
    ):
        if value not in harmless:
            LOG.warning(
                "providers come in a later version; the flag has no effect", extra=fields(flag=flag, value=value)
            )
    try:
        asyncio.run(driver.run())
    except StartError as error:
        LOG.error("start failed", extra=fields(error=error))  # noqa: TRY400 - the text says all
        return 1
    return 0
