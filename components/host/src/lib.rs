//! The effects that Strake has on its host, each a small trait with a Linux implementation and, beside it, a fake that tests
//! of reconcilers use. Knows no product types, and is the home of `unsafe`: only the modules that say so use it.
//!
//! | module | what |
//! |---|---|
//! | [`block`] | disks, partitions, re-reading a partition table, discarding |
//! | [`loop_device`] | a read-only loop device over a file |
//! | [`device_mapper`] | devices that the kernel makes of others |
//! | [`mount`] | mounting, unmounting, what is mounted, how full it is |
//! | [`net`] | links, addresses and routes: observe, plan, apply |
//! | [`dhcp`] | a DHCPv4 client |
//! | [`clock`] | wall and monotonic time, setting the clock |
//! | [`sntp`] | asking a time server |
//! | [`cgroup`] | one cgroup v2 directory |
//! | [`process`] | child processes, bounded in time and output |
//! | [`seqpacket`] | a call over a SOCK_SEQPACKET unix socket |
//! | [`loader_variables`] | what the boot loader and the system tell each other through the firmware |
//! | [`secure_boot`] | whether the firmware and the kernel take only what is signed |
//! | [`system`] | the hostname |

pub mod block;
pub mod boot_option;
pub mod cgroup;
pub mod clock;
pub mod device_mapper;
pub mod dhcp;
pub mod loader_variables;
pub mod loop_device;
pub mod mount;
pub mod net;
pub mod process;
pub mod secure_boot;
pub mod seqpacket;
pub mod sntp;
pub mod system;
