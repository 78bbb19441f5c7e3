//! `cargo xtask schema`: the committed data of `k8s-schema`, made anew from the pinned packages, or compared with what they give.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use image::cache::Cache;

use crate::project::Project;

/// What `schema` takes.
#[derive(Args, Debug)]
pub struct Schema {
    /// Write nothing; fail when the committed files are not what the pinned packages give
    #[arg(long, conflicts_with = "relock")]
    check: bool,
    /// Move to the versions that the mirror has now and write the lock file
    #[arg(long)]
    relock: bool,
}

/// Fetches the packages and writes or compares the files.
pub fn command(project: &Project, wanted: &Schema) -> Result<()> {
    let crate_dir = project.root.join("components/k8s-schema");
    let lock = crate_dir.join("generate/packages.lock");
    let cache = Cache::open()?;
    let _one_at_a_time = cache.lock("schema")?;
    let dir = cache.dir("schema")?;
    if wanted.relock {
        for change in k8s_schema_generate::relock(&dir, &lock)? {
            println!("{change}");
        }
    }
    let sources = k8s_schema_generate::fetch(&dir, &lock)?;
    let made = [
        (crate_dir.join("data/schema.txt"), k8s_schema_generate::table(&sources)?.into_bytes()),
        (crate_dir.join("testdata/goldens.zst"), k8s_schema_generate::goldens(&sources)?),
    ];
    let mut stale = Vec::new();
    for (file, content) in made {
        let shown = file.strip_prefix(&project.root).unwrap_or(&file).display().to_string();
        let present = match std::fs::read(&file) {
            Ok(present) => present,
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(problem) => return Err(problem).with_context(|| format!("cannot read {}", file.display())),
        };
        match difference(&present, &content) {
            None => println!("{shown}: up to date"),
            Some(at) if wanted.check => stale.push(format!("{shown} ({at})")),
            Some(at) => {
                replace(&file, &content)?;
                println!("{shown}: written ({at})");
            }
        }
    }
    if !stale.is_empty() {
        bail!("not what the pinned packages give: {}; run `cargo xtask schema`", stale.join(", "));
    }
    Ok(())
}

/// Where two contents begin to differ: a line of text, a byte otherwise.
fn difference(present: &[u8], made: &[u8]) -> Option<String> {
    if present == made {
        return None;
    }
    let at = present.iter().zip(made).position(|(one, other)| one != other).unwrap_or(present.len().min(made.len()));
    Some(match std::str::from_utf8(made) {
        Ok(_) => format!("from line {}", made[..at].iter().filter(|byte| **byte == b'\n').count() + 1),
        Err(_) => format!("from byte {at}"),
    })
}

fn replace(file: &PathBuf, content: &[u8]) -> Result<()> {
    let partial = file.with_extension(format!("partial-{}", std::process::id()));
    std::fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, file).with_context(|| format!("cannot rename {}", partial.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_says_where_it_begins() {
        assert_eq!(difference(b"a\nb\n", b"a\nb\n"), None);
        assert_eq!(difference(b"a\nb\n", b"a\nc\n").unwrap(), "from line 2");
        assert_eq!(difference(b"a\n", b"a\nb\n").unwrap(), "from line 2");
        assert_eq!(difference(b"", b"a").unwrap(), "from line 1");
        assert_eq!(difference(&[0xff, 1, 2], &[0xff, 1, 3]).unwrap(), "from byte 2");
    }
}
