//! Configs and machines for tests.

use std::path::Path;
use std::sync::Arc;

use machine_config::Config;
use node_ipc::init::{BootInfo, BootSource, Slot};
use tokio::sync::watch;

use crate::api::tls::ServingCertificate;
use crate::events::Events;
use crate::init::InitHandle;
use crate::machine::{Disks, Loaded, Machine, Mode, ObservedDisk, Release};
use crate::milestones::Milestones;
use crate::paths::Paths;
use crate::reconcilers::Context;
use crate::resources::Store;
use crate::state::StateDir;
use crate::trial::Trials;

/// A worker's config whose disk selector is this.
pub fn worker_config(selector: &str) -> Config {
    worker_config_with(&format!("{{disk: {selector}}}"))
}

/// A worker's config with this install section.
pub fn worker_config_with(install: &str) -> Config {
    let (text, _) = worker_text(install);
    Config::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The text of a worker's config, and the machine CA that it trusts.
pub fn worker_text(install: &str) -> (String, pki::Issued) {
    let (ca, other) = (authority("machine"), authority("cluster"));
    (config_text("worker", install, &ca.cert_pem, None, &other.cert_pem, None), ca)
}

/// An authority that is good for a day.
pub fn authority(name: &str) -> pki::Issued {
    pki::Authority::generate(name, jiff::Timestamp::now(), std::time::Duration::from_secs(86_400)).unwrap()
}

fn config_text(
    role: &str,
    install: &str,
    machine_ca: &str,
    machine_key: Option<&str>,
    cluster_ca: &str,
    cluster_key: Option<&str>,
) -> String {
    let ca = |cert: &str, key: Option<&str>| {
        let indent = |pem: &str| pem.trim().replace('\n', "\n      ");
        let key = key.map(|key| format!("\n    key: |\n      {}", indent(key))).unwrap_or_default();
        format!("\n    cert: |\n      {}{key}", indent(cert))
    };
    format!(
        "apiVersion: strake.dev/v1alpha1\nkind: MachineConfig\nrole: {role}\ninstall: {install}\n---\n\
         apiVersion: strake.dev/v1alpha1\nkind: ClusterConfig\nname: test\ncontrolPlane: {{endpoint: \"https://10.5.0.11:6443\"}}\n---\n\
         apiVersion: strake.dev/v1alpha1\nkind: MachineSecrets\nclusterID: test-cluster-id\njoinToken: abcdef.0123456789abcdef\n\
         certificateAuthorities:\n  cluster:{}\n  machine:{}\n",
        ca(cluster_ca, cluster_key),
        ca(machine_ca, machine_key),
    )
}

/// A root image of this many equal blocks of data, with its hash tree.
pub fn root_image(data_blocks: usize, fill: u8) -> (Vec<u8>, verity::Parameters) {
    let (mut image, salt) = (vec![fill; data_blocks * verity::BLOCK], verity::Digest([9; 32]));
    let tree = verity::build(&mut &image[..], data_blocks as u64, &salt).unwrap();
    image.extend(tree.bytes);
    (image, verity::Parameters::new(tree.root_hash, salt, data_blocks as u64).unwrap())
}

/// A program for the firmware with these sections, of which each begins at a multiple of 512.
pub fn kernel_image(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; 0x40];
    file[0x3c] = 0x40;
    file.extend(b"PE\0\0\x64\x86");
    file.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
    file.extend([0; 16]);
    let first = (file.len() + sections.len() * 40).next_multiple_of(512);
    let (mut start, mut contents) = (first, Vec::new());
    for (name, content) in sections {
        let (size, padded) = (u32::try_from(content.len()).unwrap(), content.len().next_multiple_of(512));
        let mut header = [0; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[8..12].copy_from_slice(&size.to_le_bytes());
        header[16..20].copy_from_slice(&u32::try_from(padded).unwrap().to_le_bytes());
        header[20..24].copy_from_slice(&u32::try_from(start).unwrap().to_le_bytes());
        file.extend(header);
        contents.extend(*content);
        contents.resize(contents.len().next_multiple_of(512), 0);
        start += padded;
    }
    file.resize(first, 0);
    [file, contents].concat()
}

struct NoDisks;

impl Disks for NoDisks {
    fn observe(&self) -> std::io::Result<Vec<ObservedDisk>> {
        Ok(Vec::new())
    }

    fn system_partition(&self, _label: &str) -> std::io::Result<Option<(std::path::PathBuf, u64)>> {
        Ok(None)
    }

    fn installations(&self) -> std::io::Result<Vec<crate::machine::Installed>> {
        Ok(Vec::new())
    }
}

/// A running machine whose root is this directory, with a config in force and nobody behind its sockets.
pub fn machine(root: &Path, loaded: Loaded) -> Arc<Machine> {
    let boot =
        BootInfo { source: BootSource::Disk, device: String::new(), root: root_image(2, 0).1, slot: Some(Slot::A), trial_seconds: None };
    machine_on(root, loaded, boot, Release::default(), Box::new(NoDisks))
}

/// The same, started like this from these disks.
pub fn machine_on(root: &Path, loaded: Loaded, boot: BootInfo, release: Release, disks: Box<dyn Disks>) -> Arc<Machine> {
    let paths = Paths::under(root);
    std::fs::create_dir_all(paths.state()).unwrap();
    std::fs::create_dir_all(paths.at("/run/strake")).unwrap();
    let store = Store::default();
    let (_, addresses) = watch::channel(vec!["127.0.0.1".parse().unwrap()]);
    Arc::new(Machine {
        mode: Mode::Running,
        release,
        boot,
        boot_id: String::new(),
        name_seed: "seed".into(),
        init: InitHandle::new(paths.init_socket()),
        state: StateDir::new(paths.state()),
        config: watch::Sender::new(Some(Arc::new(loaded))),
        wake: watch::Sender::new(0),
        changing: Arc::default(),
        disks,
        addresses,
        events: Events::default(),
        milestones: Milestones::new(&paths, store.clone()),
        trials: Trials::default(),
        given: Default::default(),
        store,
        paths,
    })
}

/// What a reconciler of that machine works with.
pub fn context(machine: &Arc<Machine>) -> Context {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let spec =
        pki::LeafSpec { common_name: "before".into(), server: true, lifetime: std::time::Duration::from_secs(3600), ..Default::default() };
    let issued = pki::Issued::self_signed(&spec, jiff::Timestamp::now()).unwrap();
    let serving = ServingCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
    Context { machine: machine.clone(), loaded: machine.loaded().unwrap(), serving }
}
