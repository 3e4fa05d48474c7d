"""What is asked of the kernel for a plan, against the kernel itself."""

from __future__ import annotations

import errno

from nri_dranet.dra.plan_inputs import least_gso
from nri_dranet.netlink import rtnl
from nri_dranet.netlink.sockets import RtnlSocket


def test_the_least_gso_size_is_what_the_kernel_takes() -> None:
    """The least size can be set on an interface, the next smaller one that the schema allows cannot."""
    with RtnlSocket() as host:
        least = least_gso(host)
        host.request(rtnl.new_link("ifb", "gso0"))
        link = host.link(name="gso0")
        assert link is not None
        try:
            assert host.batch([rtnl.set_link(link.index, gso_max_size=least)])[0].error is None
            # Kernels before 6.7 take every size.
            smaller = host.batch([rtnl.set_link(link.index, gso_max_size=least - 1)])[0].error
            assert smaller is None or smaller.errno == errno.ERANGE
            assert (smaller is None) == (host.batch([rtnl.set_link(link.index, gso_max_size=33)])[0].error is None)
        finally:
            host.request(rtnl.delete_link(link.index))
