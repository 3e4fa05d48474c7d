"""How an interface is on the host, read before it leaves, so that it can come back the same."""

from __future__ import annotations

import errno
import fcntl
import logging
import time
from typing import TYPE_CHECKING, Final

from nri_dranet.attach import offloads, programs, queueing
from nri_dranet.claims.plan import HostState
from nri_dranet.netlink.codec import NetlinkError
from nri_dranet.netlink.ethtool import Ethtool
from nri_dranet.netlink.namespaces import NetNs
from nri_dranet.telemetry.logs import fields

if TYPE_CHECKING:
    from nri_dranet.claims.plan import HostProgram
    from nri_dranet.netlink.links import LinkConf
    from nri_dranet.netlink.sockets import RtnlSocket

LOG = logging.getLogger(__name__)

# linux/sockios.h: the descriptor of a socket's network namespace.
_SIOCGSKNS: Final = 0x894C

# Not settings of their own: the MTU follows the link's, the mode is set by netlink, multicast forwarding by a daemon's
# socket.
_NOT_SETTINGS: Final = frozenset(
    {"ipv4/conf/mc_forwarding", "ipv6/conf/mtu", "ipv6/conf/addr_gen_mode", "ipv6/conf/mc_forwarding"}
)


def take_snapshot(host: RtnlSocket, index: int, *, ethtool: bool | Ethtool = True) -> HostState:
    """Read all of an interface that ``restore`` can bring back, by a handful of messages.

    Args:
        host: a socket in the interface's namespace.
        index: the interface.
        ethtool: read also features and private flags; over this object, where one is given, which saves making one.

    Raises:
        NetlinkError: ENODEV if there is no such interface, or the kernel refuses.
    """
    found = host.link_and_conf(index)
    if found is None:
        raise NetlinkError(errno.ENODEV, f"read link {index}")
    link, conf = found
    features: dict[str, bool] = {}
    flags: dict[str, bool] = {}
    if isinstance(ethtool, Ethtool):
        features, flags = offloads.read(ethtool, index)
    elif ethtool:
        with _namespace_of(host) as netns, Ethtool(netns) as made:
            features, flags = offloads.read(made, index)
    return HostState(
        link=link,
        taken=time.clock_gettime(time.CLOCK_BOOTTIME),
        addresses=tuple(host.addresses(index)),
        routes=tuple(host.routes(index)),
        neighbours=tuple(host.neighbours(index, permanent_only=True)),
        sysctls=settings(conf),
        features=features,
        private_flags=flags,
        port=conf.port,
        traffic=queueing.read(host, index),
        programs=_programs(host, index, conf),
    )


def _programs(host: RtnlSocket, index: int, conf: LinkConf) -> tuple[HostProgram, ...]:
    with _namespace_of(host) as netns:
        try:
            return programs.read(netns, index, conf.xdp)
        except OSError as error:
            # Without the right to ask (CAP_NET_ADMIN in the first user namespace) there is none to put back either.
            LOG.debug("BPF programs are not read", extra=fields(link=index, error=error))
            return ()


def _namespace_of(host: RtnlSocket) -> NetNs:
    """Open the namespace that a socket belongs to, which need not be this thread's."""
    try:
        descriptor = fcntl.ioctl(host.fileno(), _SIOCGSKNS)
    except PermissionError as error:
        text = "the host's network namespace cannot be opened, which takes the capability NET_ADMIN"
        raise PermissionError(error.errno, text) from error
    return NetNs(descriptor, "/proc/self/net")


def settings(conf: LinkConf) -> dict[str, str]:
    """Give per-interface settings by their names as sysctls (``ipv4/conf/arp_ignore``)."""
    found = {f"ipv4/conf/{name}": str(value) for name, value in conf.ipv4.items()}
    found.update((f"ipv6/conf/{name}", str(value)) for name, value in conf.ipv6.items())
    return {key: value for key, value in found.items() if key not in _NOT_SETTINGS}
