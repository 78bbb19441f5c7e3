//! What of this machine is signed, as the one resource of kind `security`: whether the firmware checks signatures, what the kernel keeps even
//! root from, and whose upgrade files are taken.

use std::path::Path;

use host::secure_boot::{self, SecureBoot};
use serde_json::{Value, json};

use crate::paths::Paths;
use crate::resources::Store;
use crate::upgrade::Trust;

/// The resource's kind.
pub const KIND: &str = "security";

/// Shows it. None of it changes while the system runs, but a lockdown can be tightened by whoever is root.
pub fn show(store: &Store, paths: &Paths) {
    let trust = Trust::read(&paths.upgrade_keys()).map_err(|error| crate::api::chain(&error));
    let spec = describe(paths.root(), trust.map(|trust| trust.fingerprints()));
    tracing::info!(spec = %spec, "what is signed");
    store.set(KIND, "boot", spec);
}

fn describe(root: &Path, upgrade_keys: Result<Vec<String>, String>) -> Value {
    let upgrades = match &upgrade_keys {
        Ok(keys) if keys.is_empty() => "any".to_owned(),
        Ok(_) => "signed".to_owned(),
        Err(problem) => format!("none: {problem}"),
    };
    json!({
        "secureBoot": SecureBoot::of(root).word(),
        "lockdown": secure_boot::lockdown(root).unwrap_or_else(|| "unknown".to_owned()),
        "modules": if secure_boot::signed_modules_only(root) { "signed" } else { "any" },
        "upgrades": upgrades,
        "upgradeKeys": upgrade_keys.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_known_is_never_shown_as_safe() {
        let shown = describe(Path::new("/nonexistent"), Ok(Vec::new()));
        let expected = json!({"secureBoot": "unknown", "lockdown": "unknown", "modules": "any", "upgrades": "any", "upgradeKeys": []});
        assert_eq!(shown, expected);
        assert_eq!(describe(Path::new("/nonexistent"), Ok(vec!["ab".into()]))["upgrades"], "signed");
        assert_eq!(describe(Path::new("/nonexistent"), Err("broken".into()))["upgrades"], "none: broken");
    }
}
