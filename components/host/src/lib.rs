//! Effects on the host: mount, netlink, cgroup, block devices, processes and clocks, each a small trait with a Linux and a fake implementation.
