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
    /// What is asked for.
    pub packages: &'static [&'static str],
    /// Whether apt adds what they need.
    pub with_dependencies: bool,
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
    with_dependencies: true,
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
    with_dependencies: true,
};

/// What signs an image with somebody's keys: fetched only for that. python3-virt-firmware is there for Microsoft's certificates.
pub const SIGNING: PackageSet = PackageSet { name: "signing", packages: &["python3-virt-firmware", "sbsigntool"], with_dependencies: true };

/// What servers may need of their makers: none of it is in an image that does not ask for it. What these depend on is only for installing them.
pub const FIRMWARE: PackageSet = PackageSet {
    name: "firmware",
    packages: &[
        "amd64-microcode",
        "firmware-amd-graphics",
        "firmware-ast",
        "firmware-bnx2",
        "firmware-bnx2x",
        "firmware-cavium",
        "firmware-intel-misc",
        "firmware-misc-nonfree",
        "firmware-myricom",
        "firmware-netronome",
        "firmware-netxen",
        "firmware-qlogic",
        "firmware-realtek",
        "intel-microcode",
    ],
    with_dependencies: false,
};

/// The suite everything comes from.
pub const SUITE: &str = "trixie";

/// The packages that come from a newer suite, where the design asks for newer versions than [`SUITE`] has.
pub const FROM_SID: &[&str] = &["containerd", "runc", "etcd-server", "etcd-client", "containernetworking-plugins", "kubectl"];
