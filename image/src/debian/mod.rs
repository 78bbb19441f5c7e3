//! Debian packages: which mirror ([`mirror`]), which versions ([`lock`], resolved through a private apt in [`apt`]), and their
//! files ([`store`]). Nothing here installs anything on the builder's machine, and no maintainer script ever runs.

pub mod apt;
pub mod lock;
pub mod mirror;
pub mod store;

/// A set of packages that is resolved and locked together.
#[derive(Clone, Copy, Debug)]
pub struct PackageSet {
    /// The lock file's name without its ending.
    pub name: &'static str,
    /// What is asked for; apt adds what they need.
    pub packages: &'static [&'static str],
}

/// What the root of the machines is made from.
pub const ROOT: PackageSet = PackageSet {
    name: "root",
    packages: &[
        "busybox-static",
        "ca-certificates",
        "containerd",
        "containernetworking-plugins",
        "cryptsetup-bin",
        "e2fsprogs",
        "etcd-client",
        "etcd-server",
        "linux-image-amd64",
        "nftables",
        "runc",
        "systemd-boot-efi",
    ],
};

/// The programs that build and test: run from the cache, never installed.
pub const TOOLS: PackageSet = PackageSet {
    name: "tools",
    packages: &[
        "e2fsprogs",
        "erofs-utils",
        "etcd-client",
        "etcd-server",
        "kmod",
        "kubectl",
        "ovmf",
        "qemu-system-x86",
        "qemu-utils",
        "systemd-boot-efi",
        "systemd-ukify",
        "xorriso",
        "xz-utils",
    ],
};

/// What signs an image with somebody's keys: fetched only for that. python3-virt-firmware is there for Microsoft's certificates.
pub const SIGNING: PackageSet = PackageSet { name: "signing", packages: &["python3-virt-firmware", "sbsigntool"] };

/// The suite everything comes from.
pub const SUITE: &str = "trixie";

/// The packages that come from a newer suite, where the design asks for newer versions than [`SUITE`] has.
pub const FROM_SID: &[&str] = &["containerd", "runc", "etcd-server", "etcd-client", "containernetworking-plugins", "kubectl"];
