//! `strakectl gen`: the secrets of a new cluster, its machines' configs, and client credentials.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use machine_config::values::{Endpoint, Host};
use machine_config::{
    CertificateAuthorities, CertificateAuthority, ClusterConfig, Config, DiskSelector, DocumentKind, Documents, InstallConfig,
    MachineConfig, MachineSecrets, Role, model::Value as _,
};
use pki::{Authority, Issued, LeafSpec, PrivateKey};
use rand::RngExt as _;

use super::Cx;
use super::config_key::ConfigKey;
use super::recovery_key::RecoveryKeyFile;
use super::secureboot_keys::SecurebootKeys;
use crate::context::{Context, StrakeConfig};

const DAY: Duration = Duration::from_secs(86400);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3650 * 86400);
const CLIENT_LIFETIME: Duration = Duration::from_secs(365 * 86400);

/// Make secrets, machine configs and client credentials.
#[derive(Debug, clap::Subcommand)]
pub enum Gen {
    /// Write secrets.yaml, controlplane.yaml, worker.yaml and strakeconfig of a new cluster.
    Cluster(Cluster),
    /// Write a machine's config from a generated one and patches.
    Machine(Machine),
    /// Write a strakeconfig with a client certificate of a role.
    Client(Client),
    SecurebootKeys(SecurebootKeys),
    ConfigKey(ConfigKey),
    RecoveryKey(RecoveryKeyFile),
}

/// `strakectl gen cluster`.
#[derive(Debug, clap::Args)]
pub struct Cluster {
    /// The cluster's name.
    name: String,
    /// The Kubernetes API as every machine reaches it, such as https://10.5.0.11:6443.
    endpoint: Endpoint,
    /// The directory the files are written to.
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
    /// Use the secrets of this file instead of new ones.
    #[arg(long, value_name = "FILE")]
    with_secrets: Option<PathBuf>,
    /// More names and addresses for the certificates of the Kubernetes and machine APIs.
    #[arg(long, value_delimiter = ',', value_name = "NAME|ADDRESS")]
    additional_sans: Vec<Host>,
    /// The disk to install to: a path under /dev, or properties such as size='>= 100GB',bus=nvme.
    #[arg(long, default_value = "size=>= 9GB", value_name = "DISK")]
    install_disk: String,
    /// Overwrite what is on the disk.
    #[arg(long)]
    wipe: bool,
    /// Let ordinary pods run on control-plane machines.
    #[arg(long)]
    allow_scheduling_on_control_planes: bool,
    /// Machines the strakeconfig names, HOST or HOST:PORT; by default the endpoint's host.
    #[arg(long, value_delimiter = ',', value_name = "HOST[:PORT]")]
    endpoints: Vec<String>,
    /// A patch for both configs; may be given several times.
    #[arg(long, value_name = "FILE")]
    config_patch: Vec<PathBuf>,
    /// A patch for the control plane's config.
    #[arg(long, value_name = "FILE")]
    config_patch_control_plane: Vec<PathBuf>,
    /// A patch for the workers' config.
    #[arg(long, value_name = "FILE")]
    config_patch_worker: Vec<PathBuf>,
    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,
}

/// `strakectl gen machine`.
#[derive(Debug, clap::Args)]
pub struct Machine {
    /// The config to start from, such as worker.yaml.
    config: PathBuf,
    /// A patch; may be given several times.
    #[arg(long, value_name = "FILE")]
    config_patch: Vec<PathBuf>,
    /// The machine's name.
    #[arg(long)]
    hostname: Option<String>,
    /// The file to write; `-` is standard output.
    #[arg(long, default_value = "-", value_name = "FILE")]
    out: PathBuf,
    /// Overwrite a file that exists.
    #[arg(long)]
    force: bool,
}

/// `strakectl gen client`.
#[derive(Debug, clap::Args)]
pub struct Client {
    /// What the client may do: admin, operator, reader or etcd-backup.
    #[arg(long, default_value = "reader", value_parser = ["admin", "operator", "reader", "etcd-backup"])]
    role: String,
    /// The person's or program's name, which stands in the audit log.
    #[arg(long, default_value = "admin", value_name = "NAME")]
    user: String,
    /// The cluster's secrets.yaml, or a control plane's config.
    #[arg(long, default_value = "secrets.yaml", value_name = "FILE")]
    secrets: PathBuf,
    /// The context's name.
    #[arg(long, default_value = "default")]
    name: String,
    /// Machines the strakeconfig names, HOST or HOST:PORT.
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST[:PORT]")]
    endpoints: Vec<String>,
    /// How long the certificate is valid, in days.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The file to write; `-` is standard output.
    #[arg(long, default_value = "strakeconfig", value_name = "FILE")]
    out: PathBuf,
    /// Overwrite a file that exists.
    #[arg(long)]
    force: bool,
}

impl Gen {
    /// Does what the command line says.
    pub fn run(self, _: &Cx) -> anyhow::Result<()> {
        match self {
            Self::Cluster(verb) => verb.run(),
            Self::Machine(verb) => verb.run(),
            Self::Client(verb) => verb.run(),
            Self::SecurebootKeys(verb) => verb.run(),
            Self::ConfigKey(verb) => verb.run(),
            Self::RecoveryKey(verb) => verb.run(),
        }
    }
}

impl Cluster {
    fn run(self) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let secrets = match &self.with_secrets {
            Some(file) => read_secrets(file)?,
            None => new_secrets(&self.name, now)?,
        };
        let files = self.files(&secrets, now)?;
        fs::create_dir_all(&self.out).with_context(|| format!("create {}", self.out.display()))?;
        let paths: Vec<PathBuf> = files.iter().map(|(name, _)| self.out.join(name)).collect();
        if let Some(exists) = paths.iter().find(|p| !self.force && p.exists()) {
            bail!("{} exists; use --force to overwrite it (a cluster's secrets cannot be made again)", exists.display());
        }
        for (path, (_, content)) in paths.iter().zip(&files) {
            write(path, content, self.force)?;
            eprintln!("wrote {}", path.display());
        }
        let strakeconfig = self.out.join("strakeconfig");
        let strakeconfig = std::path::absolute(&strakeconfig).unwrap_or(strakeconfig);
        eprintln!("next: export STRAKECONFIG={}", strakeconfig.display());
        eprintln!("      strakectl apply-config -n MACHINE --pairing STRING -f {}", self.out.join("controlplane.yaml").display());
        Ok(())
    }

    /// Every file with its content.
    fn files(&self, secrets: &MachineSecrets, now: Timestamp) -> anyhow::Result<Vec<(&'static str, String)>> {
        let config = |role, patches: &[PathBuf]| {
            let text = machine_config::render_documents(self.documents(role, secrets)?);
            let patches: Vec<&PathBuf> = self.config_patch.iter().chain(patches).collect();
            patched("the generated config", &text, &patches)
        };
        let control_plane = config(Role::ControlPlane, &self.config_patch_control_plane)?;
        let worker = config(Role::Worker, &self.config_patch_worker)?;
        let endpoints = if self.endpoints.is_empty() { vec![self.endpoint.host.to_string()] } else { self.endpoints.clone() };
        let client = client_config(secrets, &self.name, "admin", "admin", endpoints, CLIENT_LIFETIME, now)?;
        Ok(vec![
            ("secrets.yaml", machine_config::render_documents([DocumentKind::MachineSecrets(secrets.clone())])),
            ("controlplane.yaml", control_plane),
            ("worker.yaml", worker),
            ("strakeconfig", client.to_yaml()?),
        ])
    }

    fn documents(&self, role: Role, secrets: &MachineSecrets) -> anyhow::Result<Vec<DocumentKind>> {
        let mut machine = MachineConfig {
            role,
            install: InstallConfig { disk: disk_selector(&self.install_disk)?, wipe: self.wipe },
            cert_sans: Vec::new(),
            kubelet: machine_config::KubeletConfig::absent().context("a kubelet's defaults")?,
        };
        let mut cluster = ClusterConfig::new(&self.name, self.endpoint.clone()).map_err(anyhow::Error::msg)?;
        cluster.allow_scheduling_on_control_planes = self.allow_scheduling_on_control_planes;
        if role == Role::ControlPlane {
            machine.cert_sans = self.additional_sans.clone();
            cluster.api_server.cert_sans = self.additional_sans.clone();
        }
        let secrets = if role == Role::ControlPlane { secrets.clone() } else { secrets.for_worker() };
        Ok(vec![DocumentKind::MachineConfig(machine), DocumentKind::ClusterConfig(cluster), DocumentKind::MachineSecrets(secrets)])
    }
}

impl Machine {
    fn run(self) -> anyhow::Result<()> {
        let text = read(&self.config)?;
        let mut text = patched(&self.config.display().to_string(), &text, &self.config_patch.iter().collect::<Vec<_>>())?;
        if let Some(hostname) = &self.hostname {
            let patch = format!(
                "apiVersion: {}\nkind: HostnameConfig\nhostname: {}\n",
                machine_config::API_VERSION,
                serde_json::to_string(hostname)?
            );
            text = machine_config::merge::patch("config", &text, [("--hostname", patch.as_str())])?;
            Config::parse("config", &text)?;
        }
        write(&self.out, &text, self.force)
    }
}

impl Client {
    fn run(self) -> anyhow::Result<()> {
        let secrets = read_secrets(&self.secrets)?;
        let config = client_config(&secrets, &self.name, &self.user, &self.role, self.endpoints, DAY * self.days, Timestamp::now())?;
        write(&self.out, &config.to_yaml()?, self.force)
    }
}

/// A strakeconfig with a new client certificate.
fn client_config(
    secrets: &MachineSecrets,
    name: &str,
    user: &str,
    role: &str,
    endpoints: Vec<String>,
    lifetime: Duration,
    now: Timestamp,
) -> anyhow::Result<StrakeConfig> {
    let ca = &secrets.authorities.machine;
    let Some(key) = &ca.key else { bail!("the secrets hold no key of the machine authority; use the cluster's secrets.yaml") };
    let authority = Authority::from_pem(ca.cert.as_str(), key.reveal())?;
    let spec =
        LeafSpec { common_name: user.to_owned(), organization: Some(role.to_owned()), client: true, lifetime, ..LeafSpec::default() };
    let Issued { cert_pem, key_pem } = authority.issue(&spec, now)?;
    let context = Context {
        endpoints,
        nodes: Vec::new(),
        ca: STANDARD.encode(ca.cert.as_str()),
        crt: STANDARD.encode(cert_pem),
        key: STANDARD.encode(key_pem),
    };
    Ok(StrakeConfig { context: name.to_owned(), contexts: [(name.to_owned(), context)].into() })
}

/// Authorities, token and identity of a new cluster.
fn new_secrets(cluster: &str, now: Timestamp) -> anyhow::Result<MachineSecrets> {
    let authority = |what: &str| -> anyhow::Result<CertificateAuthority> {
        let made = Authority::generate(&format!("{cluster} {what}"), now, AUTHORITY_LIFETIME)?;
        let parse = |e: String| anyhow::anyhow!(e);
        Ok(CertificateAuthority { cert: made.cert_pem.parse().map_err(parse)?, key: Some(made.key_pem.parse().map_err(parse)?) })
    };
    let token = format!("{}.{}", random_text(6), random_text(16));
    Ok(MachineSecrets {
        cluster_id: random_text(24),
        join_token: token.parse().map_err(|e: String| anyhow::anyhow!(e))?,
        authorities: CertificateAuthorities {
            cluster: authority("kubernetes")?,
            machine: authority("machines")?,
            etcd: Some(authority("etcd")?),
            front_proxy: Some(authority("front-proxy")?),
        },
        service_account_key: Some(PrivateKey::generate()?.to_pem().parse().map_err(|e: String| anyhow::anyhow!(e))?),
    })
}

/// Lower-case letters and digits from the system's generator.
fn random_text(length: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// `/dev/…`, or `key=value,key=value`.
fn disk_selector(text: &str) -> anyhow::Result<DiskSelector> {
    let properties: Vec<(&str, &str)> = if text.starts_with("/dev/") {
        vec![("path", text)]
    } else {
        text.split(',')
            .map(|p| p.split_once('=').with_context(|| format!("--install-disk: {p:?} is not property=value, and not a path under /dev")))
            .collect::<Result<_, _>>()?
    };
    // Through the reader of configs, so that it refuses what it would refuse there.
    let mut yaml = format!("apiVersion: {}\nkind: MachineConfig\nrole: worker\ninstall:\n  disk:\n", machine_config::API_VERSION);
    for (key, value) in properties {
        let value = if key == "rotational" { value.to_owned() } else { serde_json::to_string(value)? };
        yaml.push_str(&format!("    {}: {value}\n", serde_json::to_string(key)?));
    }
    let documents = Documents::parse("--install-disk", &yaml)?;
    let found = documents.iter().find_map(|d| match d {
        DocumentKind::MachineConfig(machine) => Some(machine.install.disk.clone()),
        _ => None,
    });
    found.context("--install-disk names no disk")
}

/// Lays patches over a config and checks the result.
fn patched(name: &str, text: &str, patches: &[&PathBuf]) -> anyhow::Result<String> {
    let texts: Vec<(String, String)> = patches.iter().map(|p| Ok((p.display().to_string(), read(p)?))).collect::<anyhow::Result<_>>()?;
    let text = match texts.as_slice() {
        [] => text.to_owned(),
        texts => machine_config::merge::patch(name, text, texts.iter().map(|(f, t)| (f.as_str(), t.as_str())))?,
    };
    Config::parse(name, &text)?;
    Ok(text)
}

fn read_secrets(file: &Path) -> anyhow::Result<MachineSecrets> {
    let documents = Documents::parse(&file.display().to_string(), &read(file)?)?;
    let found = documents.iter().find_map(|d| match d {
        DocumentKind::MachineSecrets(secrets) => Some(secrets.clone()),
        _ => None,
    });
    found.with_context(|| format!("{} has no MachineSecrets document", file.display()))
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

/// Writes a file that only its owner can read.
fn write(path: &Path, content: &str, force: bool) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return std::io::stdout().write_all(content.as_bytes()).context("write to standard output");
    }
    let what = || format!("write {}", path.display());
    if force && path.exists() {
        fs::remove_file(path).with_context(what)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(what)?;
    file.write_all(content.as_bytes()).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Test {
        #[command(subcommand)]
        verb: Gen,
    }

    fn run(args: &[&str]) -> anyhow::Result<()> {
        let all = ["test"].iter().chain(args);
        match Test::try_parse_from(all)?.verb {
            Gen::Cluster(verb) => verb.run(),
            Gen::Machine(verb) => verb.run(),
            Gen::Client(verb) => verb.run(),
            Gen::SecurebootKeys(verb) => verb.run(),
            Gen::ConfigKey(verb) => verb.run(),
            Gen::RecoveryKey(verb) => verb.run(),
        }
    }

    #[test]
    fn a_generated_cluster_is_valid_and_its_worker_holds_no_authority_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let out = dir.path().to_str().expect("utf-8");
        run(&["cluster", "test", "https://10.5.0.11:6443", "--out", out, "--additional-sans", "127.0.0.1", "--install-disk", "/dev/vda"])
            .expect("gen cluster");
        let config = |name: &str| {
            let text = read(&dir.path().join(name)).expect(name);
            (Config::parse(name, &text).expect(name), text)
        };
        let (control_plane, _) = config("controlplane.yaml");
        assert!(control_plane.is_control_plane());
        let (worker, text) = config("worker.yaml");
        assert!(!text.contains("PRIVATE KEY"));
        assert_eq!(worker.secrets, control_plane.secrets.for_worker());
        let strakeconfig = StrakeConfig::load(&dir.path().join("strakeconfig")).expect("strakeconfig");
        let context = &strakeconfig.contexts["test"];
        assert_eq!(context.endpoints, ["10.5.0.11"]);
        let crt = String::from_utf8(STANDARD.decode(&context.crt).expect("base64")).expect("PEM");
        assert_eq!(pki::Certificate::from_pem(&crt).expect("certificate").organizations, ["admin"]);

        let again = run(&["cluster", "test", "https://10.5.0.11:6443", "--out", out]).expect_err("files exist");
        assert!(again.to_string().contains("--force"));
    }

    #[test]
    fn a_machine_gets_its_name_and_patches() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name).to_str().expect("utf-8").to_owned();
        run(&["cluster", "test", "https://10.5.0.11:6443", "--out", &at("")]).expect("gen cluster");
        fs::write(at("patch"), "apiVersion: strake.dev/v1alpha1\nkind: LinkConfig\nname: eth0\naddresses: [10.5.0.21/24]\n")
            .expect("write");
        run(&["machine", &at("worker.yaml"), "--hostname", "worker-1", "--config-patch", &at("patch"), "--out", &at("worker-1.yaml")])
            .expect("gen machine");
        let config = Config::parse("f", &read(Path::new(&at("worker-1.yaml"))).expect("read")).expect("valid");
        assert_eq!(config.hostname.map(|h| h.hostname).as_deref(), Some("worker-1"));
        assert_eq!(config.links.len(), 1);
        let bad = run(&["machine", &at("worker.yaml"), "--hostname", "Worker_1", "--out", &at("bad.yaml")]).expect_err("bad name");
        assert!(bad.to_string().contains("is not a DNS name"), "{bad}");
    }

    #[test]
    fn a_client_needs_the_authoritys_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name).to_str().expect("utf-8").to_owned();
        run(&["cluster", "test", "https://10.5.0.11:6443", "--out", &at("")]).expect("gen cluster");
        run(&[
            "client",
            "--role",
            "reader",
            "--user",
            "anna",
            "--secrets",
            &at("secrets.yaml"),
            "--endpoints",
            "10.5.0.11",
            "--out",
            &at("anna"),
        ])
        .expect("gen client");
        assert!(StrakeConfig::load(Path::new(&at("anna"))).expect("load").contexts.contains_key("default"));
        let worker = run(&["client", "--secrets", &at("worker.yaml"), "--endpoints", "a", "--out", &at("x")]).expect_err("no key");
        assert!(worker.to_string().contains("no key of the machine authority"));
        assert!(run(&["client", "--role", "root", "--endpoints", "a"]).is_err());
    }

    #[test]
    fn disks_are_named_by_path_or_properties() {
        assert_eq!(disk_selector("/dev/vda").expect("path").path.map(|p| p.to_string()).as_deref(), Some("/dev/vda"));
        let both = disk_selector("size=>= 10GB,rotational=false").expect("properties");
        assert_eq!((both.size.map(|s| s.to_string()).as_deref(), both.rotational), (Some(">= 10GB"), Some(false)));
        for bad in ["vda", "colour=red", "size=10GB", ""] {
            assert!(disk_selector(bad).is_err(), "{bad}");
        }
    }
}
