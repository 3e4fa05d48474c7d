"""The flags of ``nri-dranet run``: the reference's by name and default, and our own.

Both ``-flag`` and ``--flag`` are taken, ``=`` or a space before the value, and a bare boolean flag means true, as the
reference's users write them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from nri_dranet.inventory import filter as device_filter
from nri_dranet.settings import Options

DEFAULT_DRIVER: Final = "dra.net"
DEFAULT_FILTER: Final = device_filter.DEFAULT

_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DRIVER_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_POD_UID: Final = re.compile(r"[A-Za-z0-9-]{1,63}")
_INDEX: Final = re.compile(r"[0-9]{2}")
_MAX_DRIVER_NAME: Final = 63
_DEBUG_VERBOSITY: Final = 4

GATES: Final = ("DRAListTypeAttributes", "PersistentResourceSliceAttributes", "AllAlpha", "AllBeta")


def duration(text: str) -> float:
    """Read a Go duration (``2s``, ``1m30s``, ``500ms``) as seconds.

    Raises:
        argparse.ArgumentTypeError: it has another form.
    """
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 2s, 1m30s or 500ms")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def boolean(text: str) -> bool:
    """Read a Go boolean.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def gates(text: str) -> dict[str, bool]:
    """Read ``Name=bool,…``.

    Raises:
        argparse.ArgumentTypeError: an unknown gate or no boolean.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in GATES:
            raise argparse.ArgumentTypeError(f"unknown feature gate {name!r}; there are {', '.join(GATES)}")
        found[name] = boolean(value)
    return found


def driver_name(text: str) -> str:
    """Check a driver name (DNS subdomain, 63 characters at most).

    Raises:
        argparse.ArgumentTypeError: it is no such name.
    """
    if len(text) > _MAX_DRIVER_NAME or not _DRIVER_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no DNS subdomain of at most {_MAX_DRIVER_NAME} characters")
    return text


def plugin_index(text: str) -> str:
    """Check an NRI plugin index (two digits).

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not _INDEX.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of two digits, 00 to 99")
    return text


def pod_uid(text: str) -> str:
    """Check a pod's UID; it becomes a part of socket names.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if text and not _POD_UID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no pod UID: at most 63 letters, digits and hyphens")
    return text


def names(text: str) -> frozenset[str]:
    """Read names and patterns, separated by commas."""
    return frozenset(filter(None, (part.strip() for part in text.split(","))))


def taint_effect(text: str) -> str:
    """Read the effect of device taints; ``""`` where there shall be none.

    Raises:
        argparse.ArgumentTypeError: it is none that a device taint can have.
    """
    effects = {
        "": "",
        "none": "",
        "false": "",
        "true": "NoSchedule",
        "NoSchedule": "NoSchedule",
        "NoExecute": "NoExecute",
    }
    if text not in effects:
        raise argparse.ArgumentTypeError(f"{text!r} is none of none, NoSchedule, NoExecute")
    return effects[text]


def add_run_arguments(parser: argparse._ActionsContainer, only: frozenset[str] | None = None) -> None:
    """Declare the flags.

    Args:
        parser: of the command.
        only: the flags that another command shares, without dashes; one that is not given is not in its arguments.
    """
    flag = _Flags(parser, only)
    flag("kubeconfig", "", "path of a kubeconfig; empty: the pod's service account")
    flag("bind-address", ":9177", "where /healthz, /readyz and /metrics are served")
    flag("hostname-override", "", "name of the node; empty: the host's name, in lower case")
    flag(
        "filter", DEFAULT_FILTER, "CEL expression; devices for which it is false are not published; empty: publish all"
    )
    flag(
        "share",
        "",
        "CEL expression, as for --filter; devices for which it is true stay on the host, and each claim gets a "
        "sub-interface of them; empty: none",
    )
    flag("db-path", "", "the journal's file; empty: journal.db in --state-dir")
    flag("inventory-min-poll-interval", "2s", "one write of a flapping node's ResourceSlices in this time", duration)
    flag("inventory-max-poll-interval", "1m", "full scan of the node at least in this time", duration)
    flag("inventory-poll-burst", "5", "writes that may follow each other at once", int)
    flag("move-ib-interfaces", "true", "false: IPoIB interfaces stay on the host, their device is RDMA only", boolean)
    flag(
        "allow-interfaces", "", "only these interfaces, devices or PCI addresses are offered; patterns, by comma", names
    )
    flag("deny-interfaces", "", "these are never offered, even when they are allowed; patterns, by comma", names)
    flag("cloud-provider-hint", "", "accepted for compatibility; cloud providers come in a later version")
    flag("profile-provider", "cloud", "accepted for compatibility; profile providers come in a later version")
    flag("webhook-url", "", "accepted for compatibility; the webhook provider comes in a later version")
    flag("kubelet-root-dir", "/var/lib/kubelet", "parent of plugins/ and plugins_registry/")
    flag("feature-gates", "", f"Name=true|false,…; known: {', '.join(GATES)}", gates)
    flag("driver-name", DEFAULT_DRIVER, "name of the driver in claims, classes and slices", driver_name)
    flag("nri-socket", "/var/run/nri/nri.sock", "socket of the container runtime's NRI")
    flag("nri-plugin-name", "", "name among the NRI plugins; empty: the driver's name")
    flag(
        "nri-plugin-index",
        "90",
        "place among the NRI plugins: high, so that others fail before a device moves",
        plugin_index,
    )
    flag(
        "pod-uid",
        "",
        "the daemon's own pod (downward API): two instances then have sockets of their own, and the newer one takes "
        "over without a gap; empty: one instance, fixed sockets",
        pod_uid,
    )
    flag(
        "device-taints",
        "none",
        "effect of the taints on devices without carrier, with their RDMA port down or gone: none, NoSchedule (also "
        "when the flag has no value), NoExecute",
        taint_effect,
    )
    flag(
        "end-unattached-pods",
        "false",
        "true: a pod that runs without its device, and cannot get it late, is evicted through the API",
        boolean,
    )
    flag(
        "lift-memlock",
        "true",
        "false: containers of pods with an RDMA device keep their limit of locked memory (RLIMIT_MEMLOCK)",
        boolean,
    )
    flag("state-dir", "", "where the journal is; empty: plugins/DRIVER in --kubelet-root-dir")
    flag("cdi-dir", "/var/run/cdi", "folder in which the container runtime looks for CDI files")
    flag("log-level", "", "debug, info, warning or error")
    flag("log-format", "text", "text or json")
    if only is None:
        parser.add_argument("-v", "--v", type=int, default=0, metavar="N", help="4 and more: log level debug")


class _Flags:
    def __init__(self, parser: argparse._ActionsContainer, only: frozenset[str] | None) -> None:
        self._parser = parser
        self._only = only

    def __call__(self, name: str, default: str, text: str, kind: object = str) -> None:
        if self._only is not None and name not in self._only:
            return
        bare = {boolean: True, taint_effect: "NoSchedule"}
        extra = {"nargs": "?", "const": bare[kind]} if kind in bare else {}
        self._parser.add_argument(
            f"--{name}",
            f"-{name}",
            type=kind,  # type: ignore[arg-type]
            default=default if self._only is None else argparse.SUPPRESS,
            help=f"{text} (default {default!r})".replace("%", "%%"),
            **extra,  # type: ignore[arg-type]
        )


def node_name_of(args: argparse.Namespace, host_name: str) -> str:
    """Return the Node's name: the one that was given, else the machine's."""
    return str(args.hostname_override.strip() or host_name).lower()


def journal_of(args: argparse.Namespace) -> Path:
    """Return where the journal is."""
    if args.db_path:
        return Path(args.db_path)
    kubelet = Path(args.kubelet_root_dir)
    return (Path(args.state_dir) if args.state_dir else kubelet / "plugins" / args.driver_name) / "journal.db"


def run_options(args: argparse.Namespace, host_name: str) -> Options:
    """Return the options of parsed arguments.

    Args:
        args: what ``argparse`` made of the flags.
        host_name: the machine's, for when no other is given.
    """
    return Options(
        kubeconfig=args.kubeconfig,
        node_name=node_name_of(args, host_name),
        driver_name=args.driver_name,
        bind_address=args.bind_address,
        filter=args.filter,
        share=args.share,
        journal=journal_of(args),
        kubelet_root_dir=Path(args.kubelet_root_dir),
        nri_socket=Path(args.nri_socket),
        nri_name=args.nri_plugin_name or args.driver_name,
        nri_index=args.nri_plugin_index,
        pod_uid=args.pod_uid,
        cdi_dir=Path(args.cdi_dir),
        min_poll=args.inventory_min_poll_interval,
        max_poll=args.inventory_max_poll_interval,
        poll_burst=args.inventory_poll_burst,
        move_ib_interfaces=args.move_ib_interfaces,
        allow=args.allow_interfaces,
        deny=args.deny_interfaces,
        device_taints=args.device_taints,
        end_unattached_pods=args.end_unattached_pods,
        lift_memlock=args.lift_memlock,
        feature_gates=args.feature_gates,
        log_level=args.log_level or ("debug" if args.v >= _DEBUG_VERBOSITY else "info"),
        log_format=args.log_format,
    )
