//! Names, labels and their like: what is wrong with a string, in upstream's words; nothing when it is good.

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const DNS1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_MSG: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// A rule for names: the name, and whether it is only the beginning of one (generateName).
pub type NameRule = fn(&str, bool) -> Vec<String>;

pub fn max_len(n: usize) -> String {
    format!("must be no more than {n} characters")
}

pub fn empty() -> String {
    "must be non-empty".into()
}

/// A message with the regular expression and examples.
pub fn regex(msg: &str, fmt: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{msg} (regex used for validation is '{fmt}')");
    }
    let mut s = format!("{msg} (e.g. ");
    for (i, e) in examples.iter().enumerate() {
        if i > 0 {
            s.push_str(" or ");
        }
        s.push_str(&format!("'{e}', "));
    }
    s.push_str(&format!("regex used for validation is '{fmt}')"));
    s
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    matches!((b.first(), b.last()), (Some(f), Some(l)) if alnum(*f) && alnum(*l)) && b.iter().all(|c| alnum(*c) || *c == b'-')
}

pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.len() > 63 {
        e.push(max_len(63));
    }
    if !is_label(s) {
        if is_subdomain(s) {
            // A subdomain was given where a label is wanted: say what is different.
            e.push("must not contain dots".into());
        } else {
            e.push(regex(LABEL_MSG, LABEL_FMT, &["my-name", "123-abc"]));
        }
    }
    e
}

fn is_subdomain(s: &str) -> bool {
    s.split('.').all(is_label)
}

pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.len() > 253 {
        e.push(max_len(253));
    }
    if !is_subdomain(s) {
        e.push(regex(SUBDOMAIN_MSG, &format!("{LABEL_FMT}(\\.{LABEL_FMT})*"), &["example.com"]));
    }
    e
}

/// `*.` and a subdomain.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    const MSG: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(max_len(253));
    }
    if !s.strip_prefix("*.").is_some_and(|r| dns1123_subdomain(r).is_empty()) {
        out.push(regex(MSG, "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", &["*.example.com"]));
    }
    out
}

pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.len() > 63 {
        e.push(max_len(63));
    }
    if !is_label(s) || !s.starts_with(|c: char| c.is_ascii_lowercase()) {
        e.push(regex(DNS1035_MSG, DNS1035_FMT, &["my-name", "abc-123"]));
    }
    e
}

fn is_qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    matches!((b.first(), b.last()), (Some(f), Some(l)) if f.is_ascii_alphanumeric() && l.is_ascii_alphanumeric())
        && b.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

/// `[prefix/]name`, as label keys are.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                e.push(format!("prefix part {}", empty()));
            } else {
                e.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            *name
        }
        _ => {
            let m = regex(QUALIFIED_MSG, QUALIFIED_FMT, &["MyName", "my.name", "123-abc"]);
            e.push(format!("a qualified name {m} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"));
            return e;
        }
    };
    if name.is_empty() {
        e.push(format!("name part {}", empty()));
    } else if name.len() > 63 {
        e.push(format!("name part {}", max_len(63)));
    }
    if !is_qualified_part(name) {
        e.push(format!("name part {}", regex(QUALIFIED_MSG, QUALIFIED_FMT, &["MyName", "my.name", "123-abc"])));
    }
    e
}

pub fn label_value(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.len() > 63 {
        e.push(max_len(63));
    }
    if !s.is_empty() && !is_qualified_part(s) {
        e.push(regex(LABEL_VALUE_MSG, "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", &["MyValue", "my_value", "12345"]));
    }
    e
}

/// Keys of ConfigMaps and Secrets.
pub fn config_key(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.len() > 253 {
        e.push(max_len(253));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c)) {
        e.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', \
             regex used for validation is '[-._a-zA-Z0-9]+')"
                .into(),
        );
    }
    if s == "." {
        e.push("must not be '.'".into());
    } else if s == ".." {
        e.push("must not be '..'".into());
    } else if s.starts_with("..") {
        e.push("must not start with '..'".into());
    }
    e
}

/// Names of environment variables: anything printable but `=`.
pub fn env_var_name(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.is_empty() || !s.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        e.push("a valid environment variable name must consist only of printable ASCII characters other than '='".into());
    }
    e
}

/// IANA service names: names of ports.
pub fn port_name(s: &str) -> Vec<String> {
    let mut e = Vec::new();
    if s.len() > 15 {
        e.push(max_len(15));
    }
    if !s.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        e.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        e.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        e.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        e.push("must not begin or end with a hyphen".into());
    }
    e
}

/// What generateName gives must be a valid beginning: a trailing dash stands for what follows.
fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(n) if prefix && name.len() > 1 => format!("{n}a"),
        _ => name.to_owned(),
    }
}

pub fn subdomain_name(name: &str, prefix: bool) -> Vec<String> {
    dns1123_subdomain(&masked(name, prefix))
}

pub fn label_name(name: &str, prefix: bool) -> Vec<String> {
    dns1123_label(&masked(name, prefix))
}

pub fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ['/', '%'].into_iter().filter(|c| name.contains(*c)).map(|c| format!("may not contain '{c}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_have_no_complaints() {
        for (f, good) in [
            (dns1123_label as fn(&str) -> Vec<String>, "a-1"),
            (dns1123_subdomain, "a.b-c.d"),
            (dns1035_label, "a1"),
            (qualified_name, "example.com/My_Name.1"),
            (label_value, ""),
            (config_key, "a.b_c-D"),
            (port_name, "http-1"),
        ] {
            assert_eq!(f(good), Vec::<String>::new(), "{good}");
        }
    }

    #[test]
    fn bad_names_are_told_why() {
        assert_eq!(dns1123_label("A").len(), 1);
        assert!(dns1123_subdomain(&"a".repeat(254))[0].contains("253"));
        assert!(qualified_name("/x")[0].starts_with("prefix part must be non-empty"));
        assert_eq!(
            config_key("a/b"),
            [
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            ]
        );
        assert_eq!(port_name("-").len(), 2);
        assert!(subdomain_name("a-", true).is_empty());
    }
}
