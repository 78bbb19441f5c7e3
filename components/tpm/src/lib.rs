//! A TPM 2.0 as a disk's key needs it: seal a secret under a policy, unseal it, look at PCRs, count. Commands and answers are the structures
//! of the TPM 2.0 Library Specification, parts 2 and 3, written and read here without a C library: about fifteen commands of more than a
//! hundred, so a general stack would be most of the code. Whatever a TPM answers is bounded and checked; nothing of it is believed.
//!
//! [`policy`] computes the digest of a policy without a TPM; a test compares it with what a TPM computes. [`floor`] is the policy that old images do not
//! fulfil any more.

#![warn(missing_docs)]

mod commands;
pub mod floor;
pub mod policy;
mod public;
mod transport;
mod wire;

pub use commands::{Object, Sealed, Session, Ticket, Tpm};
pub use floor::Floor;
pub use policy::Digest;
pub use public::{COUNTER_ATTRIBUTES, PublicKey, nv_name};
pub use transport::Transport;
pub use wire::WireError;

/// The largest command and answer (what every TPM takes, and the kernel's buffer).
pub const MAX_MESSAGE: usize = 4096;
/// PCR 11: what systemd-stub started.
pub const PCR_SYSTEM: u8 = 11;
/// PCR 7: the firmware's state of secure boot and the keys it trusts.
pub const PCR_SECURE_BOOT: u8 = 7;

/// Why a TPM did not do something.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// It could not be reached.
    #[error("{operation}: talk to the TPM")]
    Transport {
        /// What was asked for.
        operation: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It said no.
    #[error("the TPM refused to {operation} (code {code:#05x})")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// The response code.
        code: u32,
    },
    /// A command that cannot be written or an answer that cannot be read.
    #[error("{operation}: {source}")]
    Wire {
        /// What was asked for.
        operation: &'static str,
        /// Why.
        source: WireError,
    },
    /// It keeps no PCRs with SHA-256.
    #[error("the TPM has no PCRs of SHA-256; enable that bank in the firmware's settings")]
    NoBank,
}

impl TpmError {
    /// Whether an object was sealed by another TPM, or by this one before it was cleared.
    pub fn is_foreign(&self) -> bool {
        // TPM_RC_INTEGRITY of the first parameter, in format one.
        matches!(self, Self::Refused { code, .. } if code & 0xbf == 0x9f)
    }

    /// Whether a signature is not of what it should be of.
    pub fn is_signature(&self) -> bool {
        // TPM_RC_SIGNATURE in format one.
        matches!(self, Self::Refused { code, .. } if code & 0xbf == 0x9b)
    }

    /// Whether a policy does not hold.
    pub fn is_policy(&self) -> bool {
        // TPM_RC_POLICY_FAIL and TPM_RC_VALUE in format one; TPM_RC_POLICY (of TPM2_PolicyNV).
        matches!(self, Self::Refused { code, .. } if code & 0xbf == 0x9d || code & 0xbf == 0x84 || *code == 0x126)
    }
}
