//! Certificates and kubeconfigs of the control plane that is measured, made on the spot.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

/// An authority, in `<name>.crt` and `<name>.key`.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one and writes its files.
    pub fn make(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let mut params = subject(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).with_context(|| format!("cannot make the authority {name}"))?;
        write(dir, &format!("{name}.crt"), &certificate.pem())?;
        write(dir, &format!("{name}.key"), &key.serialize_pem())?;
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// Issues a certificate for loopback, for a server and a client, to `<name>.crt` and `<name>.key`.
    pub fn issue(&self, dir: &Path, name: &str, common_name: &str, organization: Option<&str>) -> Result<()> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let mut params = subject(common_name, organization);
        let dns = "localhost".try_into().context("localhost is no name")?;
        let service = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
        params.subject_alt_names = vec![SanType::DnsName(dns), SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), SanType::IpAddress(service)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("cannot issue {name}"))?;
        write(dir, &format!("{name}.crt"), &certificate.pem())?;
        write(dir, &format!("{name}.key"), &key.serialize_pem())?;
        Ok(())
    }
}

/// A key pair for service-account tokens: `<name>.key` and `<name>.pub`.
pub fn key_pair(dir: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate().context("cannot make a key")?;
    write(dir, &format!("{name}.key"), &key.serialize_pem())?;
    write(dir, &format!("{name}.pub"), &key.public_key_pem())?;
    Ok(())
}

/// The kubeconfig `<name>.kubeconfig` of the certificate `<name>.crt`.
pub fn kubeconfig(dir: &Path, name: &str, port: u16) -> Result<PathBuf> {
    let at = dir.display();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
         clusters:\n- name: bench\n  cluster: {{server: \"https://127.0.0.1:{port}\", certificate-authority: \"{at}/ca.crt\"}}\n\
         users:\n- name: {name}\n  user: {{client-certificate: \"{at}/{name}.crt\", client-key: \"{at}/{name}.key\"}}\n\
         contexts:\n- name: bench\n  context: {{cluster: bench, user: {name}}}\n"
    );
    write(dir, &format!("{name}.kubeconfig"), &text)
}

fn subject(common_name: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Long enough for a bench, on a host whose clock is a little off too; a CA that outlives its leaves.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 1, 1);
    params
}

/// Writes a file into the directory.
pub fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
