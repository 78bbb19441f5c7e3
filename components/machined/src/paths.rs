//! Where machined finds and leaves files, and finds etcd. All files are under one root, `/` on a machine and a directory in
//! tests.

use std::path::{Path, PathBuf};

/// The root that all paths are taken from.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    etcd: String,
}

impl Default for Paths {
    fn default() -> Self {
        Paths::under("/")
    }
}

impl Paths {
    /// Paths under this directory.
    pub fn under(root: impl Into<PathBuf>) -> Paths {
        Paths { root: root.into(), etcd: "https://127.0.0.1:2379".to_owned() }
    }

    /// The same paths with etcd elsewhere, for tests that run one of their own.
    #[must_use]
    pub fn with_etcd(self, endpoint: &str) -> Paths {
        Paths { etcd: endpoint.to_owned(), ..self }
    }

    /// Where this machine's etcd member answers.
    pub fn etcd_endpoint(&self) -> &str {
        &self.etcd
    }

    /// The directory that everything is under.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an absolute path of a machine is.
    pub fn at(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The mount point of STATE.
    pub fn state(&self) -> PathBuf {
        self.at("/system/state")
    }

    /// The mount point of ETCD.
    pub fn etcd(&self) -> PathBuf {
        self.at("/system/etcd")
    }

    /// The mount point of DATA.
    pub fn var(&self) -> PathBuf {
        self.at("/var")
    }

    /// Where kept etcd snapshots are.
    pub fn snapshots(&self) -> PathBuf {
        self.at("/var/lib/strake/snapshots")
    }

    /// The installation medium, when the machine was booted from one.
    pub fn media(&self) -> PathBuf {
        self.at(node_ipc::init::MEDIA_DIR)
    }

    /// init's control socket.
    pub fn init_socket(&self) -> PathBuf {
        self.at(node_ipc::init::SOCKET)
    }

    /// logd's query socket.
    pub fn logd_socket(&self) -> PathBuf {
        self.at(node_ipc::logd::SOCKET)
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.at("/run/containerd/containerd.sock")
    }

    /// How the system was booted.
    pub fn boot_info(&self) -> PathBuf {
        self.at(node_ipc::init::BOOT_INFO_FILE)
    }

    /// What the image says about itself.
    pub fn release(&self) -> PathBuf {
        self.at("/usr/share/strake/release.json")
    }

    /// The keys whose upgrade files this image takes; an image that takes any has no such file.
    pub fn upgrade_keys(&self) -> PathBuf {
        self.at("/usr/share/strake/upgrade-keys.pem")
    }

    /// OCI archives that every machine needs.
    pub fn bundled_images(&self) -> PathBuf {
        self.at("/usr/share/strake/images")
    }
}
