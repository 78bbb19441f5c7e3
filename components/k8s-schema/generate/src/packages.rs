//! The Go packages of the table, where their sources are, and how type expressions of one name types of another.

use crate::go::{Decl, Package, Shape};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// One API package: `core/v1` of group `""`.
pub struct ApiPackage {
    /// `<directory>/<version>`, the prefix of its type names in the table.
    pub id: String,
    pub group: String,
    pub version: String,
    pub go: Package,
    /// Kinds from `register.go`: (kind, type expression).
    pub kinds: Vec<String>,
}

/// The sources of aggregated API types, which Debian does not package.
const API_REGISTRATION: &str = include_str!("apiregistration.go.txt");

/// Reads every package below `root`, the `src` directory of the unpacked Debian packages.
pub fn read_all(root: &Path) -> Result<BTreeMap<String, ApiPackage>> {
    let mut all = BTreeMap::new();
    let api = root.join("k8s.io/api");
    for group in sorted_dirs(&api)? {
        if group == "testdata" {
            continue;
        }
        for version in sorted_dirs(&api.join(&group))? {
            let dir = api.join(&group).join(&version);
            if dir.join("types.go").exists() {
                let id = format!("{group}/{version}");
                all.insert(id.clone(), read_package(&dir, id, &version)?);
            }
        }
    }
    let extensions = root.join("k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1");
    all.insert("apiextensions/v1".into(), read_package(&extensions, "apiextensions/v1".into(), "v1")?);
    let meta = root.join("k8s.io/apimachinery/pkg/apis/meta/v1");
    all.insert("meta/v1".into(), read_package(&meta, "meta/v1".into(), "v1")?);
    let mut go = Package::default();
    go.read(API_REGISTRATION);
    all.insert(
        "apiregistration/v1".into(),
        ApiPackage {
            id: "apiregistration/v1".into(),
            group: "apiregistration.k8s.io".into(),
            version: "v1".into(),
            go,
            kinds: vec!["APIService".into(), "APIServiceList".into()],
        },
    );
    Ok(all)
}

fn sorted_dirs(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn read_package(dir: &Path, id: String, version: &str) -> Result<ApiPackage> {
    let mut go = Package::default();
    let mut files: Vec<String> = std::fs::read_dir(dir)?
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|n| {
            (n.starts_with("types") || n == "watch.go" || n == "group_version.go")
                && n.ends_with(".go")
                && !n.ends_with("_test.go")
                && !n.contains("swagger_doc")
        })
        .collect();
    files.sort();
    for file in files {
        go.read(&read(&dir.join(file))?);
    }
    let register = read(&dir.join("register.go"))?;
    let Some(group) = register.lines().find_map(|l| l.strip_prefix("const GroupName = \"")?.strip_suffix('"')) else {
        bail!("{id}: register.go names no group");
    };
    Ok(ApiPackage { id, group: group.to_owned(), version: version.to_owned(), go, kinds: registered(&register) })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The `&Kind{}` entries of a register.go.
fn registered(source: &str) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    for line in source.lines() {
        for part in line.split('&').skip(1) {
            if let Some(name) = part.split("{}").next().filter(|_| part.contains("{}"))
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
                && !kinds.iter().any(|k| k == name)
            {
                kinds.push(name.to_owned());
            }
        }
    }
    kinds
}

/// The table's name for the import path of an API package.
pub fn package_id(path: &str) -> Option<String> {
    if let Some(rest) = path.strip_prefix("k8s.io/api/") {
        return Some(rest.to_owned());
    }
    match path {
        "k8s.io/apimachinery/pkg/apis/meta/v1" => Some("meta/v1".into()),
        "k8s.io/apimachinery/pkg/api/resource" => Some("resource".into()),
        "k8s.io/apimachinery/pkg/util/intstr" => Some("intstr".into()),
        "k8s.io/apimachinery/pkg/runtime" => Some("runtime".into()),
        "k8s.io/apimachinery/pkg/types" => Some("types".into()),
        _ => None,
    }
}

/// A Go type expression in the table's notation: `*core/v1.Pod`, `[]string`, `map:quantity`.
pub fn type_expression(package: &ApiPackage, go: &str) -> Option<String> {
    if let Some(rest) = go.strip_prefix('*') {
        return Some(format!("*{}", type_expression(package, rest)?));
    }
    if go == "[]byte" {
        return Some("bytes".into());
    }
    if let Some(rest) = go.strip_prefix("[]") {
        return Some(format!("[]{}", type_expression(package, rest)?));
    }
    if let Some(rest) = go.strip_prefix("map[") {
        let (_key, value) = rest.split_once(']')?;
        return Some(format!("map:{}", type_expression(package, value)?));
    }
    let name = match go {
        "string" | "bool" | "int32" | "int64" | "float64" => return Some(go.to_owned()),
        "int" => return Some("int64".into()),
        "interface{}" | "any" => return Some("any".into()),
        _ => match go.split_once('.') {
            None => format!("{}.{go}", package.id),
            Some((alias, name)) => format!("{}.{name}", package_id(package.go.imports.get(alias)?)?),
        },
    };
    Some(special(&name).map_or(name, str::to_owned))
}

/// Types with an encoding of their own.
fn special(name: &str) -> Option<&'static str> {
    Some(match name {
        "resource.Quantity" => "quantity",
        "intstr.IntOrString" => "intorstring",
        "meta/v1.Time" => "time",
        "meta/v1.MicroTime" => "microtime",
        "meta/v1.Duration" => "duration",
        "meta/v1.FieldsV1" => "fieldsv1",
        "runtime.RawExtension" => "raw",
        "apiextensions/v1.JSON" => "json",
        "apiextensions/v1.JSONSchemaPropsOrBool" => "schemaorbool",
        "apiextensions/v1.JSONSchemaPropsOrArray" => "schemaorarray",
        "apiextensions/v1.JSONSchemaPropsOrStringArray" => "schemaorstringarray",
        _ => return None,
    })
}

/// Whether a declaration is one of the types above, or machinery that is no part of the API.
pub fn is_api_type(package: &ApiPackage, decl: &Decl) -> bool {
    if special(&format!("{}.{}", package.id, decl.name)).is_some() {
        return false;
    }
    if package.id == "meta/v1" && matches!(decl.name.as_str(), "Timestamp" | "InternalEvent" | "ObjectMetaAccessor") {
        return false;
    }
    match &decl.shape {
        Shape::Struct(fields) => fields.iter().all(|f| f.tags.contains_key("json") || f.embedded),
        Shape::Named { target, .. } => !target.starts_with("interface"),
    }
}
