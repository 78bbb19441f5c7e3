//! What a file of the project may look like: no file grows too long to read, none names a place of one person's machine or a
//! server to download from, and every Rust file says at its top what it is for.

/// The longest a Rust file may be.
const MAX_LINES: usize = 800;
/// The largest a tracked file may be.
const MAX_BYTES: usize = 4 << 20;

/// What no file may name. In pieces, so that this file does not name it either.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("/work", "/main", "a place on one machine"),
    ("/work", "/shared", "a place on one machine"),
    ("/tmp", "/notes", "a place on one machine"),
    ("/home", "/", "a place on one machine"),
    ("deb.", "debian.org", "a package server; the address comes from the host's configuration"),
    ("snapshot.", "debian.org", "a package server; the address comes from the host's configuration"),
    ("index.", "crates.io", "a package server; the address comes from the host's configuration"),
    ("static.", "crates.io", "a package server; the address comes from the host's configuration"),
    ("files.", "pythonhosted.org", "a package server; the address comes from the host's configuration"),
    ("registry.", "npmjs.org", "a package server; the address comes from the host's configuration"),
];

/// Files that are written by a program.
const WRITTEN_BY_PROGRAMS: &[&str] = &["Cargo.lock"];

/// Complaints about one file.
pub fn check(path: &str, bytes: &[u8]) -> Vec<String> {
    let mut complaints = Vec::new();
    if bytes.len() > MAX_BYTES {
        complaints.push(format!("{path} has {} bytes; large data does not belong here", bytes.len()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return complaints };
    if WRITTEN_BY_PROGRAMS.contains(&path) {
        return complaints;
    }
    for (index, line) in text.lines().enumerate() {
        for (first, second, reason) in FORBIDDEN {
            if line.contains(&format!("{first}{second}")) {
                complaints.push(format!("{path}:{}: names {first}{second}: {reason}", index + 1));
            }
        }
    }
    if path.ends_with(".rs") {
        complaints.extend(check_rust(path, text));
    }
    if path.ends_with("Cargo.toml") && path != "Cargo.toml" && !text.contains("[lints]\nworkspace = true") {
        complaints.push(format!("{path}: does not take the workspace's lints"));
    }
    complaints
}

fn check_rust(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let generated = text.lines().take(5).any(|line| line.contains("@generated"));
    let lines = text.lines().count();
    if lines > MAX_LINES && !generated {
        complaints.push(format!("{path} has {lines} lines; split it at the seam of its stories (at most {MAX_LINES})"));
    }
    let documented = text.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| line.starts_with("//!"));
    let test_module = path.ends_with("tests.rs");
    if path.contains("/src/") && !documented && !generated && !test_module {
        complaints.push(format!("{path} does not begin with what it is for (`//!`)"));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_names_the_file_and_the_reason() {
        let long = format!("//! Doc.\n{}", "fn f() {}\n".repeat(MAX_LINES));
        let place = ["/work", "/shared"].concat();
        for (path, text, expected) in [
            ("a/src/lib.rs", "//! Doc.\nfn f() {}\n", ""),
            ("a/src/lib.rs", "fn f() {}\n", "does not begin with"),
            ("a/build.rs", "fn main() {}\n", ""),
            ("a/src/plan_tests.rs", "use super::*;\n", ""),
            ("a/src/lib.rs", long.as_str(), "has 801 lines"),
            ("docs/x.md", &format!("see {place}/x"), "docs/x.md:1: names"),
            ("Cargo.lock", &format!("see {place}/x"), ""),
            ("a/Cargo.toml", "[package]\n", "lints"),
            ("a/Cargo.toml", "[lints]\nworkspace = true\n", ""),
        ] {
            let complaints = check(path, text.as_bytes()).join("; ");
            assert!(if expected.is_empty() { complaints.is_empty() } else { complaints.contains(expected) }, "{path}: {complaints}");
        }
        assert_eq!(check("big.bin", &vec![0xff; MAX_BYTES + 1]).len(), 1);
    }
}
