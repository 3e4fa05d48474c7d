"""The numbers of addresses, routes, rules and neighbours in rtnetlink.

Source: ``linux/rtnetlink.h``, ``linux/if_addr.h``, ``linux/fib_rules.h``, ``linux/neighbour.h``.
"""

from __future__ import annotations

from typing import Final

from nri_dranet.netlink import codec

RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

RT_TABLE_MAIN: Final = 254
RT_TABLE_LOCAL: Final = 255
# rtm_table and the rule's table have one byte; larger numbers stand in an attribute, with 0 (unspecified) here.
TABLE_IN_HEADER: Final = 256

IFA_F_SECONDARY: Final = 0x01
IFA_F_NODAD: Final = 0x02
IFA_F_OPTIMISTIC: Final = 0x04
IFA_F_DADFAILED: Final = 0x08
IFA_F_HOMEADDRESS: Final = 0x10
IFA_F_DEPRECATED: Final = 0x20
IFA_F_TENTATIVE: Final = 0x40
IFA_F_PERMANENT: Final = 0x80
IFA_F_MANAGETEMPADDR: Final = 0x100
IFA_F_NOPREFIXROUTE: Final = 0x200
IFA_F_MCAUTOJOIN: Final = 0x400
# What a request may set; the other flags are states that the kernel reports.
IFA_SETTABLE: Final = (
    IFA_F_NODAD | IFA_F_OPTIMISTIC | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN
)

RTNH_F_PERVASIVE: Final = 0x2
RTNH_F_ONLINK: Final = 0x4
RTNH_SETTABLE: Final = RTNH_F_PERVASIVE | RTNH_F_ONLINK

RTN_UNICAST: Final = 1
RTN_BLACKHOLE: Final = 6
RTN_UNREACHABLE: Final = 7
RTN_PROHIBIT: Final = 8
RTN_THROW: Final = 9
# Routes that lead nowhere: they have no interface (IPv6 shows the loopback's).
WITHOUT_INTERFACE: Final = frozenset({RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW})

FIB_RULE_INVERT: Final = 0x2

NUD_PERMANENT: Final = 0x80
# What a request may set: use, self, master, proxy, extern_learn, sticky, router.
NTF_SETTABLE: Final = 0xFF

# RTAX_*, by the names that iproute2 shows. 1 (lock) is a bit mask over the others, 16 (congestion control) is text.
METRICS: Final = {
    1: "lock",
    2: "mtu",
    3: "window",
    4: "rtt",
    5: "rttvar",
    6: "ssthresh",
    7: "cwnd",
    8: "advmss",
    9: "reordering",
    10: "hoplimit",
    11: "initcwnd",
    12: "features",
    13: "rto_min",
    14: "initrwnd",
    15: "quickack",
    17: "fastopen_no_cookie",
}
RTAX_CC_ALGO: Final = 16

# IPv6 route lifetimes are dumped in clock ticks of USER_HZ, which is 100 on every platform that we know.
USER_HZ: Final = 100


def add_flags(*, replace: bool) -> int:
    """Give the message flags of a request that adds: fail if it is there, or take its place."""
    return codec.NLM_F_CREATE | (codec.NLM_F_REPLACE if replace else codec.NLM_F_EXCL)
