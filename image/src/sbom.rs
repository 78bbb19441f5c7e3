//! What the system is made of, as a software bill of materials: SPDX 2.3 in JSON, from the two lock files, which name every package by version
//! and SHA-256. Nothing in it depends on when or where it is written.
//!
//! Of the Rust crates it lists what our programs' packages need, directly or not, as `Cargo.lock` has it; crates that only their tests use
//! are among them, because the lock file does not tell them apart.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::debian::lock::Lock;
use crate::digest;
use crate::error::Error;

/// Where it stands in the root.
pub const PATH: &str = "usr/share/spdx/strake.spdx.json";
/// [`crate::media::SOURCE_DATE_EPOCH`] as SPDX writes dates.
const CREATED: &str = "2026-01-01T00:00:00Z";
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// A package of `Cargo.lock`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Crate {
    name: String,
    version: String,
    /// Empty for our own.
    source: String,
    checksum: String,
    /// `name` or `name version`, as far as it takes to be unambiguous.
    dependencies: Vec<String>,
}

impl Crate {
    fn id(&self) -> String {
        id("crate", &format!("{}-{}", self.name, self.version))
    }
}

/// The document for a system of this version, whose programs are packages of these names.
pub fn document(version: &str, debs: &Lock, cargo_lock: &str, programs: &[&str]) -> Result<String, Error> {
    let crates = parse(cargo_lock).map_err(|problem| Error::malformed("Cargo.lock", problem))?;
    let used = closure(&crates, programs).map_err(|problem| Error::malformed("Cargo.lock", problem))?;
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-strake", "name": "strake", "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "Apache-2.0", "copyrightText": "NOASSERTION", "primaryPackagePurpose": "OPERATING-SYSTEM",
    })];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-strake")];
    for deb in debs.debs() {
        let id = id("deb", &deb.name);
        relationships.push(relationship("SPDXRef-strake", "CONTAINS", &id));
        let purl = format!("pkg:deb/debian/{}@{}", deb.name, escape(&deb.version));
        packages.push(package(&id, &deb.name, &deb.version, &deb.sha256, "NOASSERTION", &purl));
    }
    for (number, one) in crates.iter().enumerate().filter(|(number, _)| used.contains(number)) {
        let ours = one.source.is_empty();
        let license = if ours { "Apache-2.0" } else { "NOASSERTION" };
        let purl = format!("pkg:cargo/{}@{}", one.name, escape(&one.version));
        packages.push(package(&one.id(), &one.name, &one.version, &one.checksum, license, &purl));
        if programs.contains(&one.name.as_str()) && ours {
            relationships.push(relationship("SPDXRef-strake", "CONTAINS", &one.id()));
        }
        for needed in dependencies(&crates, number).map_err(|problem| Error::malformed("Cargo.lock", problem))? {
            relationships.push(relationship(&one.id(), "DEPENDS_ON", &crates[needed].id()));
        }
    }
    let mut document = json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": format!("strake-{version}"),
        "documentNamespace": "", "creationInfo": {"created": CREATED, "creators": [format!("Tool: strake-image-{version}")]},
        "packages": packages, "relationships": relationships,
    });
    // Another one for other content, and the same for the same.
    let digest = digest::hex(&digest::of_bytes(document.to_string().as_bytes()));
    document["documentNamespace"] = json!(format!("https://strake.dev/spdx/strake-{version}-{digest}"));
    let text = serde_json::to_string_pretty(&document).map_err(|problem| Error::malformed(PATH, problem.to_string()))?;
    Ok(text + "\n")
}

fn package(id: &str, name: &str, version: &str, sha256: &str, license: &str, purl: &str) -> Value {
    let mut package = json!({
        "SPDXID": id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": license, "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}],
    });
    if !sha256.is_empty() {
        package["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": sha256}]);
    }
    package
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

/// An identifier has letters, digits, `.` and `-` only (SPDX 2.3, 7.2).
fn id(kind: &str, name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c.to_string() } else { format!("-{:x}-", u32::from(c)) };
    format!("SPDXRef-{kind}-{}", name.chars().map(plain).collect::<String>())
}

/// A version as a package URL has it.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The packages of a `Cargo.lock`, of which only what cargo writes is understood.
fn parse(text: &str) -> Result<Vec<Crate>, String> {
    let mut crates: Vec<Crate> = Vec::new();
    let mut in_list = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let bad = || format!("line {}: {line:?} is not what cargo writes", number + 1);
        if line.is_empty() || line.starts_with('#') {
        } else if line == "[[package]]" {
            crates.push(Crate::default());
        } else if in_list {
            in_list = line != "]";
            if in_list {
                let name = line.trim_end_matches(',').strip_prefix('"').and_then(|name| name.strip_suffix('"')).ok_or_else(bad)?;
                crates.last_mut().ok_or_else(bad)?.dependencies.push(name.to_owned());
            }
        } else if let Some((key, value)) = line.split_once(" = ") {
            let Some(current) = crates.last_mut() else { if key == "version" { continue } else { return Err(bad()) } };
            let text = || value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).map(str::to_owned).ok_or_else(bad);
            match key {
                "name" => current.name = text()?,
                "version" => current.version = text()?,
                "source" => current.source = text()?,
                "checksum" => current.checksum = text()?,
                "dependencies" => in_list = value != "[]",
                _ => return Err(bad()),
            }
        } else {
            return Err(bad());
        }
    }
    match crates.iter().find(|one| !one.source.is_empty() && (one.source != REGISTRY || one.checksum.is_empty())) {
        Some(other) => Err(format!("{} {} has no checksum of the registry", other.name, other.version)),
        None => Ok(crates),
    }
}

/// The crates that one needs, as indices.
fn dependencies(crates: &[Crate], number: usize) -> Result<Vec<usize>, String> {
    let find = |wanted: &String| {
        let mut words = wanted.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        let fits = |one: &Crate| one.name == name && version.is_none_or(|version| one.version == version);
        crates.iter().position(fits).ok_or_else(|| format!("{} needs {wanted}, which is not there", crates[number].name))
    };
    crates[number].dependencies.iter().map(find).collect()
}

/// The programs' packages and everything that they need.
fn closure(crates: &[Crate], programs: &[&str]) -> Result<BTreeSet<usize>, String> {
    let ours: BTreeMap<&str, usize> =
        crates.iter().enumerate().filter(|(_, one)| one.source.is_empty()).map(|(number, one)| (one.name.as_str(), number)).collect();
    let find = |name: &&str| ours.get(name).copied().ok_or_else(|| format!("there is no package {name}"));
    let mut left: Vec<usize> = programs.iter().map(find).collect::<Result<_, _>>()?;
    let mut used = BTreeSet::new();
    while let Some(number) = left.pop() {
        if used.insert(number) {
            left.extend(dependencies(crates, number)?);
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "# This file is automatically @generated by Cargo.\nversion = 4\n\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n\
                        dependencies = [\n \"serde\",\n \"syn 2.0.1\",\n]\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\n\
                        source = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"aa\"\n\n[[package]]\nname = \"syn\"\n\
                        version = \"1.0.9\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"bb\"\n\n[[package]]\n\
                        name = \"syn\"\nversion = \"2.0.1\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"cc\"\n\
                        dependencies = []\n";

    #[test]
    fn what_the_programs_need_is_listed_and_nothing_else() {
        let crates = parse(LOCK).unwrap();
        assert_eq!(closure(&crates, &["ours"]).unwrap(), BTreeSet::from([0, 1, 3]));
        assert!(closure(&crates, &["serde"]).is_err(), "it is not ours");
        let text = document("1.2.3", &Lock::new([]), LOCK, &["ours"]).unwrap();
        let found: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = found["packages"].as_array().unwrap().iter().map(|package| package["SPDXID"].as_str().unwrap()).collect();
        assert_eq!(names, ["SPDXRef-strake", "SPDXRef-crate-ours-0.1.0", "SPDXRef-crate-serde-1.0.1", "SPDXRef-crate-syn-2.0.1"]);
        assert_eq!(found["packages"][3]["checksums"][0]["checksumValue"], "cc");
        for bad in ["name = \"x\"", "[[package]]\nname = x", "[[package]]\nwhat\n", "[[package]]\nname = \"x\"\nsource = \"git+https://x\""]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_projects_own_locks_give_one_sound_document() {
        let project = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |name: &str| std::fs::read_to_string(project.join(name)).unwrap();
        let (cargo, debs) = (read("Cargo.lock"), Lock::parse(&read("image/locks/root.lock")).unwrap());
        let programs = crate::root::OUR_PROGRAMS;
        let text = document("1.2.3", &debs, &cargo, programs).unwrap();
        assert_eq!(document("1.2.3", &debs, &cargo, programs).unwrap(), text);
        let found: Value = serde_json::from_str(&text).unwrap();
        let of = |list: &str, field: &str| -> Vec<String> {
            found[list].as_array().unwrap().iter().map(|one| one[field].as_str().unwrap().to_owned()).collect()
        };
        let ids: BTreeSet<String> = of("packages", "SPDXID").into_iter().collect();
        assert_eq!(ids.len(), of("packages", "SPDXID").len(), "no two packages have one identifier");
        assert!(ids.iter().all(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))));
        for end in of("relationships", "relatedSpdxElement").iter().chain(&of("relationships", "spdxElementId")) {
            assert!(end == "SPDXRef-DOCUMENT" || ids.contains(end), "{end}");
        }
        for name in ["containerd", "etcd-server", "machined", "tokio", "rustls"] {
            assert!(of("packages", "name").iter().any(|found| found == name), "{name}");
        }
        assert_ne!(document("1.2.4", &debs, &cargo, programs).unwrap(), text);
    }

    #[test]
    fn its_date_is_that_of_the_image() {
        let seconds = crate::media::SOURCE_DATE_EPOCH.parse().unwrap();
        assert_eq!(jiff::Timestamp::from_second(seconds).unwrap().to_string(), CREATED);
    }
}
