//! The machine's name: the kernel's, and the files that programs look it up in.

use std::time::Duration;

use super::{Context, Outcome, ReconcileError, Reconciler};

pub struct Hostname;

#[tonic::async_trait]
impl Reconciler for Hostname {
    fn name(&self) -> &'static str {
        "hostname"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["volumes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let hostname = cx.hostname();
        if nix::unistd::gethostname()?.to_string_lossy() != hostname {
            nix::unistd::sethostname(&hostname)?;
        }
        let paths = &cx.machine.paths;
        for (path, content) in [
            ("/etc/hostname", format!("{hostname}\n")),
            ("/etc/hosts", hosts(&hostname, &cx.addresses())),
            ("/etc/machine-id", format!("{}\n", machine_id(cx)?)),
        ] {
            write_if_different(&paths.at(path), &content)?;
        }
        // The addresses in /etc/hosts follow the network.
        Ok(Outcome::ready(hostname, Duration::from_secs(10)))
    }
}

/// Writes a small public file unless it already has this content.
pub fn write_if_different(path: &std::path::Path, content: &str) -> std::io::Result<bool> {
    if std::fs::read_to_string(path).is_ok_and(|existing| existing == content) {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)?;
    Ok(true)
}

fn hosts(hostname: &str, addresses: &[std::net::IpAddr]) -> String {
    let own = addresses.first().map(|address| format!("{address} {hostname}\n")).unwrap_or_default();
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own}")
}

/// An id that belongs to the installation: made once, kept in STATE.
fn machine_id(cx: &Context) -> Result<String, ReconcileError> {
    if let Some(id) = cx.machine.state.text("machine-id")? {
        return Ok(id.trim().to_owned());
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    cx.machine.state.write("machine-id", id.as_bytes())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_always_known() {
        assert_eq!(hosts("cp-1", &[]), "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
        assert!(hosts("cp-1", &["10.5.0.11".parse().unwrap()]).ends_with("\n10.5.0.11 cp-1\n"));
    }

    #[test]
    fn a_file_is_written_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/hostname");
        assert!(write_if_different(&path, "a\n").unwrap());
        assert!(!write_if_different(&path, "a\n").unwrap());
        assert!(write_if_different(&path, "b\n").unwrap());
    }
}
