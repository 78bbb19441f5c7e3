//! Writes the table's text: one line per type, one per field. `k8s-schema`'s `table/compile.rs` reads it.

use crate::go::{Field, Marker, Shape};
use crate::packages::{ApiPackage, is_api_type, type_expression};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;

const HEADER: &str = "\
# The schema table of Kubernetes' API types: facts taken from the Go types of the packages named in packages.lock
# (Copyright The Kubernetes Authors, Apache License 2.0, see LICENSE). Written by `cargo xtask schema`; do not edit.
#
# kind <group or -> <version> <kind> <type>
# type <name> <goname> struct|list|map|<scalar> [element] [flags]       a named type
#  <field> <type expression> <protobuf number, 0: none> [flags]          a field of the struct above, in Go's order
";

/// The whole table.
pub fn table(packages: &BTreeMap<String, ApiPackage>) -> Result<String> {
    let mut out = String::from(HEADER);
    for package in packages.values() {
        for kind in &package.kinds {
            if let Some(line) = kind_line(package, kind) {
                out.push_str(&line);
            }
        }
    }
    for uid in ["UID", "NodeName"] {
        writeln!(out, "type types.{uid} types.{uid} string")?;
    }
    for package in packages.values() {
        for decl in package.go.decls.iter().filter(|d| is_api_type(package, d)) {
            let name = format!("{}.{}", package.id, decl.name);
            let go_name = format!("{}.{}", package.version, decl.name);
            match &decl.shape {
                Shape::Named { target, alias } => named(&mut out, package, &name, &go_name, target, *alias, &decl.markers)?,
                Shape::Struct(fields) => {
                    let mut lines = String::new();
                    let mut complete = true;
                    for f in fields {
                        match field_line(package, f)? {
                            Line::Field(line) => lines.push_str(&line),
                            Line::Absent => {}
                            Line::Unknown => {
                                eprintln!("{name}: left out, because its field {} has the type {}", f.go_name, f.ty);
                                complete = false;
                            }
                        }
                    }
                    if complete {
                        let flags = if has(&decl.markers, "structType", "atomic") || has(&decl.markers, "mapType", "atomic") {
                            " atomic"
                        } else {
                            ""
                        };
                        writeln!(out, "type {name} {go_name} struct{flags}")?;
                        out.push_str(&lines);
                    }
                }
            }
        }
    }
    Ok(out)
}

fn kind_line(package: &ApiPackage, kind: &str) -> Option<String> {
    if package.id == "meta/v1" {
        // Registered by functions in register.go, for every group (options) or as unversioned (Status and discovery).
        let group = match kind {
            "InternalEvent" => return None,
            "Table" | "TableOptions" | "PartialObjectMetadata" | "PartialObjectMetadataList" => "meta.k8s.io",
            _ => "-",
        };
        return Some(format!("kind {group} v1 {kind} meta/v1.{kind}\n"));
    }
    if kind.contains('.') {
        return None;
    }
    let group = if package.group.is_empty() { "-" } else { &package.group };
    Some(format!("kind {group} {} {kind} {}.{kind}\n", package.version, package.id))
}

fn named(out: &mut String, package: &ApiPackage, name: &str, go_name: &str, target: &str, alias: bool, markers: &[Marker]) -> Result<()> {
    if target == "struct{}" {
        writeln!(out, "type {name} {go_name} struct")?;
        return Ok(());
    }
    let Some(expression) = type_expression(package, target) else {
        eprintln!("{name}: left out, because {target} is unknown");
        return Ok(());
    };
    if let Some(element) = expression.strip_prefix("[]") {
        let wrapped = if markers.iter().any(|m| m.key == "protobuf.nullable") { " wrapped" } else { "" };
        writeln!(out, "type {name} {go_name} list {element}{wrapped}")?;
    } else if let Some(element) = expression.strip_prefix("map:") {
        writeln!(out, "type {name} {go_name} map {element}")?;
    } else if expression.contains('.') {
        // Another name for a type of this table. `type A B` gives a new Go name, `type A = B` does not.
        let kept = if alias { "-" } else { go_name };
        writeln!(out, "type {name} {kept} same {expression}")?;
    } else {
        let mut values = String::new();
        let short = name.rsplit('.').next().unwrap_or(name);
        for (_, value) in package.go.consts.iter().filter(|(ty, _)| ty == short) {
            let separator = if values.is_empty() { " values=" } else { "," };
            write!(values, "{separator}{}", quote(value))?;
        }
        let is_enum = markers.iter().any(|m| m.key == "enum");
        writeln!(out, "type {name} {go_name} {expression}{}{values}", if is_enum { " enum" } else { "" })?;
    }
    Ok(())
}

enum Line {
    Field(String),
    Absent,
    Unknown,
}

fn field_line(package: &ApiPackage, f: &Field) -> Result<Line> {
    let json = f.tags.get("json").map_or("", String::as_str);
    if json == "-" {
        return Ok(Line::Absent);
    }
    let mut options = json.split(',');
    let json_name = options.next().unwrap_or("");
    let options: Vec<&str> = options.collect();
    let inline = f.embedded && json_name.is_empty();
    if json_name.is_empty() && !inline {
        bail!("{}.{}: neither named nor inline", package.id, f.go_name);
    }
    let Some(mut expression) = type_expression(package, &f.ty) else { return Ok(Line::Unknown) };
    let number = f.tags.get("protobuf").and_then(|t| t.split(',').nth(1)).unwrap_or("0").to_owned();
    if let Some(kind) = list_kind(&f.markers) {
        write!(expression, "{{{kind}}}")?;
    }
    let mut line = format!(" {} {expression} {number}", if inline { &f.go_name } else { json_name });
    if inline {
        line.push_str(" inline");
    }
    for option in ["omitempty", "omitzero"] {
        if options.contains(&option) {
            write!(line, " {option}")?;
        }
    }
    if f.markers.iter().any(|m| m.key == "optional") {
        line.push_str(" optional");
    }
    if f.markers.iter().any(|m| m.key == "required") {
        line.push_str(" required");
    }
    if has(&f.markers, "structType", "atomic") || has(&f.markers, "mapType", "atomic") {
        line.push_str(" atomic");
    }
    if let Some(strategy) = f.tags.get("patchStrategy") {
        write!(line, " patch={strategy}")?;
    }
    if let Some(key) = f.tags.get("patchMergeKey") {
        write!(line, " mergekey={key}")?;
    }
    for m in &f.markers {
        match m.key.as_str() {
            "default" => {
                let value = match m.value.strip_prefix("ref(").and_then(|v| v.strip_suffix(')')) {
                    Some(reference) => constant(package, reference)?,
                    None => m.value.clone(),
                };
                write!(line, " default={}", quote(&value))?;
            }
            "k8s:immutable" => line.push_str(" immutable"),
            "k8s:minimum" | "k8s:maximum" | "k8s:maxItems" | "k8s:maxLength" | "k8s:format" => {
                let value = m.value.split(" #").next().unwrap_or("").trim().trim_matches('"');
                write!(line, " {}={}", &m.key[4..], quote(value))?;
            }
            _ => {}
        }
    }
    line.push('\n');
    Ok(Line::Field(line))
}

/// `+default=ref(Name)` names a constant whose value is its own, as those two are (`Disk` suffixes dropped by upstream).
fn constant(package: &ApiPackage, name: &str) -> Result<String> {
    let value = match name {
        "AzureDataDiskCachingReadWrite" => "ReadWrite",
        "AzureSharedBlobDisk" => "Shared",
        _ => bail!("{}: the default names {name}, which is not known here", package.id),
    };
    if !package.go.consts.iter().any(|(_, v)| v == value) {
        bail!("{}: no constant has the value {value} of {name}", package.id);
    }
    Ok(format!("\"{value}\""))
}

fn list_kind(markers: &[Marker]) -> Option<String> {
    let kind = markers.iter().find(|m| m.key == "listType")?.value.clone();
    let keys: Vec<&str> = markers.iter().filter(|m| m.key == "listMapKey").map(|m| m.value.as_str()).collect();
    Some(if keys.is_empty() { kind } else { format!("{kind}:{}", keys.join(",")) })
}

fn has(markers: &[Marker], key: &str, value: &str) -> bool {
    markers.iter().any(|m| m.key == key && m.value == value)
}

/// Values stand between spaces and commas, so those and `%` are written in hexadecimal.
fn quote(value: &str) -> String {
    value.replace('%', "%25").replace(' ', "%20").replace(',', "%2C")
}
