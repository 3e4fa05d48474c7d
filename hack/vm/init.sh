#!/bin/sh
# The guest's first process: file systems, loopback, then the tests; when they have ended, so does the guest.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/netns /run/lock /var/lib
hostname guest
ip link set lo up
cd /project
export PYTHONPATH=/usr/lib/site:/project NRI_DRANET_GUEST=1 NRI_DRANET_PATIENCE=10 NRI_DRANET_PREBUILT=/runtime PYTHONDONTWRITEBYTECODE=1
/usr/bin/python3 -m hack.vm.inside </dev/null
sync
reboot -f
