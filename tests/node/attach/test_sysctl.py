"""Sysctls where /proc/sys is read-only, as in a container that is not privileged."""

from __future__ import annotations

import subprocess
import sys

_READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec setpriv --bounding-set=-all,+net_admin,+sys_admin "$@"
"""

_SET = """
import ctypes, pathlib
from nri_dranet.attach import sysctl
from nri_dranet.netlink.namespaces import NetNs

try:
    pathlib.Path("/proc/sys/net/ipv4/conf/lo/forwarding").write_text("1")
except OSError as error:
    print("read-only:", error.errno)
pod = NetNs.current()
assert ctypes.CDLL(None).unshare(0x40000000) == 0
assert not pod.same(NetNs.current())
key = "ipv4/conf/lo/forwarding"
print(sysctl.apply(pod, "lo", {"ipv4/conf/forwarding": "1"}))
print(sysctl.read_namespace(pod, [key]), sysctl.read_namespace(NetNs.current(), [key]))
"""


_REFUSED = """
from nri_dranet.attach import sysctl
from nri_dranet.netlink.namespaces import NetNs

def refused():
    raise PermissionError(1, "Operation not permitted")

sysctl._own_sys = refused
((key, error),) = sysctl.apply(NetNs.current(), "lo", {"ipv4/conf/forwarding": "1"})
print(key, error.strerror)
"""


def _run(code: str) -> list[str]:
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", _READ_ONLY, "sh", sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_sysctls_are_set_although_proc_sys_is_read_only() -> None:
    """With CAP_NET_ADMIN and CAP_SYS_ADMIN alone, the sysctl of the asked namespace is set, and of no other."""
    assert _run(_SET) == [
        "read-only: 30",
        "[]",
        "{'ipv4/conf/lo/forwarding': '1'} {'ipv4/conf/lo/forwarding': '0'}",
    ]


def test_what_is_missing_is_told_when_no_proc_can_be_had() -> None:
    """The error belongs to the sysctl, and names what the container lacks."""
    (line,) = _run(_REFUSED)
    assert line.startswith("ipv4/conf/forwarding /proc/sys is read-only")
    assert "needs CAP_SYS_ADMIN" in line
