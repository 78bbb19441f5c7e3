//! The images that every machine needs: imported from the root, and again when they are gone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::containerd::Containerd;

/// Imports `/usr/share/strake/images/*.tar`.
#[derive(Default)]
pub struct Images {
    /// What the archives held when they were imported.
    imported: BTreeSet<String>,
}

#[tonic::async_trait]
impl Reconciler for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["containerd"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let containerd = Containerd::connect(&cx.machine.paths.containerd_socket()).await?;
        let present: BTreeSet<String> = containerd.images().await?.into_iter().map(|image| image.name).collect();
        if self.imported.is_empty() || !self.imported.is_subset(&present) {
            let mut imported = BTreeSet::new();
            for archive in archives(cx)? {
                imported.extend(containerd.import(&archive, true).await?.into_iter().map(|image| image.name));
            }
            self.imported = imported;
        }
        Ok(Outcome::ready(self.imported.iter().cloned().collect::<Vec<_>>().join(", "), Duration::from_secs(60)))
    }
}

fn archives(cx: &Context) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cx.machine.paths.bundled_images())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
