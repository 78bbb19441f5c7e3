//! Whether the firmware checked the signature of what it started, as the kernel saw it, and what the kernel makes of it. The kernel asks the
//! firmware before it reads its command line, so that no word there changes the answer (as `efi=noruntime` would hide the variables).

use std::path::Path;

/// The kernel's copy of what it was started with (`struct boot_params`).
const BOOT_PARAMETERS: &str = "sys/kernel/boot_params/data";
/// Where `secure_boot` is in it (the zero page, Documentation/arch/x86/zero-page.rst).
const OFFSET: usize = 0x1ec;
const LOCKDOWN: &str = "sys/kernel/security/lockdown";
const ENFORCED: &str = "sys/module/module/parameters/sig_enforce";

/// What the firmware does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureBoot {
    /// It starts only what is signed with a key that it trusts.
    Enabled,
    /// It starts anything.
    Disabled,
    /// It does not say; it may be no UEFI.
    Unknown,
}

impl SecureBoot {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Unknown => "unknown",
        }
    }

    /// Asks the kernel; `root` is `/` but in tests.
    pub fn of(root: &Path) -> Self {
        std::fs::read(root.join(BOOT_PARAMETERS)).map_or(Self::Unknown, |data| parse(&data))
    }
}

/// The values of the kernel's `enum efi_secureboot_mode`.
fn parse(boot_parameters: &[u8]) -> SecureBoot {
    match boot_parameters.get(OFFSET) {
        Some(3) => SecureBoot::Enabled,
        Some(2) => SecureBoot::Disabled,
        _ => SecureBoot::Unknown,
    }
}

/// What the kernel keeps even root from: `none`, `integrity` or `confidentiality`; nothing when it does not say.
pub fn lockdown(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join(LOCKDOWN)).ok()?;
    let chosen = text.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))?;
    Some(chosen.to_owned())
}

/// Whether the kernel loads only modules that are signed with its keys.
pub fn signed_modules_only(root: &Path) -> bool {
    std::fs::read_to_string(root.join(ENFORCED)).is_ok_and(|text| text.trim() == "Y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_byte_decides_and_silence_is_not_enabled() {
        for (byte, expected) in [(0, "unknown"), (1, "unknown"), (2, "disabled"), (3, "enabled"), (4, "unknown"), (255, "unknown")] {
            let mut data = vec![0; 4096];
            data[OFFSET] = byte;
            assert_eq!(parse(&data).word(), expected, "{byte}");
        }
        assert_eq!(parse(&[3; 100]), SecureBoot::Unknown);
        assert_eq!(SecureBoot::of(Path::new("/nonexistent")), SecureBoot::Unknown);
    }

    #[test]
    fn the_chosen_lockdown_is_the_one_in_brackets() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!((lockdown(root.path()), signed_modules_only(root.path())), (None, false));
        write(LOCKDOWN, "none [integrity] confidentiality\n");
        write(ENFORCED, "Y\n");
        assert_eq!((lockdown(root.path()).as_deref(), signed_modules_only(root.path())), (Some("integrity"), true));
        write(LOCKDOWN, "none integrity\n");
        write(ENFORCED, "N\n");
        assert_eq!((lockdown(root.path()), signed_modules_only(root.path())), (None, false));
    }
}
