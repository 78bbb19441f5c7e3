//! The commands, each a function: what it takes, and what of the answer is of use.

use std::time::Duration;

use crate::policy::{self, Digest};
use crate::public::{self, COUNTER_ATTRIBUTES, PublicKey};
use crate::wire::{self, NO_SESSIONS, Reader, SESSIONS, WireError, Writer};
use crate::{TpmError, Transport};

/// `TPM_CC_*` that [`policy`] does not have.
const NV_DEFINE: u32 = 0x12a;
const CLEAR: u32 = 0x126;
const NV_UNDEFINE: u32 = 0x122;
const CREATE_PRIMARY: u32 = 0x131;
const NV_INCREMENT: u32 = 0x134;
const NV_READ: u32 = 0x14e;
const CREATE: u32 = 0x153;
const LOAD: u32 = 0x157;
const UNSEAL: u32 = 0x15e;
const FLUSH: u32 = 0x165;
const LOAD_EXTERNAL: u32 = 0x167;
const START_SESSION: u32 = 0x176;
const VERIFY: u32 = 0x177;
const PCR_READ: u32 = 0x17e;
const PCR_EXTEND: u32 = 0x182;
const GET_DIGEST: u32 = 0x189;

/// `TPM_RH_*` and the password session.
const OWNER: u32 = 0x4000_0001;
const NO_HANDLE: u32 = 0x4000_0007;
const PASSWORD: u32 = 0x4000_0009;
const LOCKOUT: u32 = 0x4000_000a;
const PLATFORM: u32 = 0x4000_000c;

const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const ECDSA: u16 = 0x0018;

/// "Later": `TPM_RC_YIELDED`, `TPM_RC_TESTING` and `TPM_RC_RETRY`.
const LATER: [u32; 3] = [0x908, 0x90a, 0x922];
const TRIES: u32 = 40;

/// A secret that only this TPM opens, and only under its policy. Can lie anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The encrypted part.
    pub private: Vec<u8>,
    /// The part with the policy.
    pub public: Vec<u8>,
}

/// Proof of the TPM, for itself, that it has verified a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket(Vec<u8>);

/// A sealed secret in the TPM.
#[derive(Debug, PartialEq, Eq)]
pub struct Object(u32);

/// A session in which a policy is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(u32);

/// A TPM. What it is given to keep is removed again by the caller or by the kernel.
#[derive(Debug)]
pub struct Tpm<T> {
    transport: T,
}

impl<T: Transport> Tpm<T> {
    /// The TPM at the end of this.
    pub fn new(transport: T) -> Self {
        Self { transport }
    }

    /// What a PCR holds.
    pub fn read_pcr(&mut self, pcr: u8) -> Result<Digest, TpmError> {
        let operation = "read a PCR";
        let answer = self.call(operation, PCR_READ, &[], &[], Writer::default().bytes(&policy::selection(&[pcr])), false)?;
        let mut reader = Reader(&answer.parameters);
        let read = |reader: &mut Reader<'_>| {
            reader.u32()?;
            for _ in 0..reader.u32()?.min(16) {
                reader.u16()?;
                let size = reader.u8()?;
                reader.bytes(size.into())?;
            }
            Ok(if reader.u32()? == 1 { Digest::try_from(reader.sized()?).ok() } else { None })
        };
        read(&mut reader).map_err(|source| TpmError::Wire { operation, source })?.ok_or(TpmError::NoBank)
    }

    /// Extends a PCR of SHA-256.
    pub fn extend_pcr(&mut self, pcr: u8, event: &Digest) -> Result<(), TpmError> {
        let parameters = Writer::default().u32(1).u16(SHA256).bytes(event);
        self.call("extend a PCR", PCR_EXTEND, &[pcr.into()], &[PASSWORD], parameters, false).map(drop)
    }

    /// Seals a secret of at most 128 bytes under a policy.
    pub fn seal(&mut self, secret: &[u8], policy: &Digest) -> Result<Sealed, TpmError> {
        let storage = self.storage_key()?;
        let sensitive = Writer::default().sized(&[]).sized(secret).0;
        let parameters = Writer::default().sized(&sensitive).sized(&public::sealed_data(policy)).sized(&[]).u32(0);
        let operation = "seal a key";
        let created = self.call(operation, CREATE, &[storage], &[PASSWORD], parameters, false);
        self.flush(storage)?;
        let created = created?;
        let mut reader = Reader(&created.parameters);
        let read = |reader: &mut Reader<'_>| Ok(Sealed { private: reader.sized()?.to_vec(), public: reader.sized()?.to_vec() });
        read(&mut reader).map_err(|source| TpmError::Wire { operation, source })
    }

    /// Takes a sealed secret into the TPM, if it is of this one. Whoever loads an object lets it go.
    pub fn load(&mut self, sealed: &Sealed) -> Result<Object, TpmError> {
        let storage = self.storage_key()?;
        let parameters = Writer::default().sized(&sealed.private).sized(&sealed.public);
        let loaded = self.call("load a sealed key", LOAD, &[storage], &[PASSWORD], parameters, true);
        self.flush(storage)?;
        Ok(Object(loaded?.handle))
    }

    /// Lets an object go.
    pub fn let_go(&mut self, object: Object) -> Result<(), TpmError> {
        self.flush(object.0)
    }

    /// Unseals what is loaded, if the session fulfils its policy.
    pub fn unseal(&mut self, object: &Object, session: Session) -> Result<Vec<u8>, TpmError> {
        let operation = "unseal a key";
        let opened = self.call(operation, UNSEAL, &[object.0], &[session.0], Writer::default(), false)?;
        Reader(&opened.parameters).sized().map(<[u8]>::to_vec).map_err(|source| TpmError::Wire { operation, source })
    }

    /// The storage key's handle; the same key every time.
    fn storage_key(&mut self) -> Result<u32, TpmError> {
        let sensitive = Writer::default().sized(&[]).sized(&[]).0;
        let parameters = Writer::default().sized(&sensitive).sized(&public::storage_key()).sized(&[]).u32(0);
        Ok(self.call("make the storage key", CREATE_PRIMARY, &[OWNER], &[PASSWORD], parameters, true)?.handle)
    }

    /// Begins a policy.
    pub fn start_policy(&mut self) -> Result<Session, TpmError> {
        self.start(1)
    }

    /// Begins a policy that opens nothing and whose assertions are not checked, to learn its digest.
    pub fn start_trial(&mut self) -> Result<Session, TpmError> {
        self.start(3)
    }

    fn start(&mut self, kind: u8) -> Result<Session, TpmError> {
        // Nothing in such a session is signed with its nonces.
        let parameters = Writer::default().sized(&[0; 32]).sized(&[]).u8(kind).u16(NULL).u16(SHA256);
        Ok(Session(self.call("begin a policy", START_SESSION, &[NO_HANDLE, NO_HANDLE], &[], parameters, true)?.handle))
    }

    /// Ends a session.
    pub fn end(&mut self, session: Session) -> Result<(), TpmError> {
        self.flush(session.0)
    }

    /// The digest of what was asserted so far.
    pub fn policy_digest(&mut self, session: Session) -> Result<Digest, TpmError> {
        let operation = "read a policy";
        let answer = self.call(operation, GET_DIGEST, &[session.0], &[], Writer::default(), false)?;
        let digest =
            Reader(&answer.parameters).sized().and_then(|found| Digest::try_from(found).map_err(|_| WireError::Malformed("digest")));
        digest.map_err(|source| TpmError::Wire { operation, source })
    }

    /// These PCRs hold what they hold now.
    pub fn policy_pcr(&mut self, session: Session, pcrs: &[u8]) -> Result<(), TpmError> {
        let parameters = Writer::default().sized(&[]).bytes(&policy::selection(pcrs));
        self.call("assert PCRs", policy::POLICY_PCR, &[session.0], &[], parameters, false).map(drop)
    }

    /// The key with whose signature a policy is authorized verifies a signature (`r` and `s`, 32 bytes each) of this message's hash.
    pub fn verify(&mut self, key: &PublicKey, message: &[u8], signature: &[u8; 64]) -> Result<Ticket, TpmError> {
        let parameters = Writer::default().sized(&[]).sized(&key.area()).u32(OWNER);
        let key = self.call("load the key of the signature", LOAD_EXTERNAL, &[], &[], parameters, true)?.handle;
        let (r, s) = signature.split_at(32);
        let parameters = Writer::default().sized(&policy::hash(&[message])).u16(ECDSA).u16(SHA256).sized(r).sized(s);
        let verified = self.call("verify the signature of a policy", VERIFY, &[key], &[], parameters, false);
        self.flush(key)?;
        Ok(Ticket(verified?.parameters))
    }

    /// What was asserted so far is signed: the session goes on with the key's name instead.
    pub fn policy_authorize(
        &mut self,
        session: Session,
        approved: &Digest,
        reference: &[u8],
        key: &PublicKey,
        ticket: &Ticket,
    ) -> Result<(), TpmError> {
        let parameters = Writer::default().sized(approved).sized(reference).sized(&key.name()).bytes(&ticket.0);
        self.call("authorize a policy", policy::POLICY_AUTHORIZE, &[session.0], &[], parameters, false).map(drop)
    }

    /// The counter is at most `most`.
    pub fn policy_counter_at_most(&mut self, session: Session, index: u32, most: u64) -> Result<(), TpmError> {
        let parameters = Writer::default().sized(&most.to_be_bytes()).u16(0).u16(policy::AT_MOST);
        self.call("compare a counter", policy::POLICY_NV, &[index, index, session.0], &[PASSWORD], parameters, false).map(drop)
    }

    /// One of at most eight policies is what was asserted so far.
    pub fn policy_any_of(&mut self, session: Session, policies: &[Digest]) -> Result<(), TpmError> {
        let count = u32::try_from(policies.len()).unwrap_or(u32::MAX);
        let parameters = policies.iter().fold(Writer::default().u32(count), |writer, policy| writer.sized(policy));
        self.call("choose among policies", policy::POLICY_OR, &[session.0], &[], parameters, false).map(drop)
    }

    /// Makes a counter. It begins, with its first raise, above every counter that this TPM ever had.
    pub fn define_counter(&mut self, index: u32) -> Result<(), TpmError> {
        let parameters = Writer::default().sized(&[]).sized(&public::counter(index, COUNTER_ATTRIBUTES));
        self.call("make a counter", NV_DEFINE, &[OWNER], &[PASSWORD], parameters, false).map(drop)
    }

    /// Removes a counter.
    pub fn remove_counter(&mut self, index: u32) -> Result<(), TpmError> {
        self.call("remove a counter", NV_UNDEFINE, &[OWNER, index], &[PASSWORD], Writer::default(), false).map(drop)
    }

    /// Raises a counter by one.
    pub fn raise_counter(&mut self, index: u32) -> Result<(), TpmError> {
        self.call("raise a counter", NV_INCREMENT, &[index, index], &[PASSWORD], Writer::default(), false).map(drop)
    }

    /// What a counter holds; nothing when there is none, or when it was never raised.
    pub fn read_counter(&mut self, index: u32) -> Result<Option<u64>, TpmError> {
        let operation = "read a counter";
        let answer = match self.call(operation, NV_READ, &[index, index], &[PASSWORD], Writer::default().u16(8).u16(0), false) {
            // TPM_RC_HANDLE of the first or second handle, TPM_RC_NV_UNINITIALIZED.
            Err(TpmError::Refused { code, .. }) if code & 0xbf == 0x8b || code == 0x14a => return Ok(None),
            other => other?,
        };
        let mut reader = Reader(&answer.parameters);
        let value = reader.sized().and_then(|bytes| Reader(bytes).u64());
        value.map(Some).map_err(|source| TpmError::Wire { operation, source })
    }

    /// Clears the TPM: whatever was sealed is lost. The firmware may keep systems from doing that.
    pub fn clear(&mut self) -> Result<(), TpmError> {
        let lockout = self.call("clear the TPM", CLEAR, &[LOCKOUT], &[PASSWORD], Writer::default(), false);
        lockout.or_else(|_| self.call("clear the TPM", CLEAR, &[PLATFORM], &[PASSWORD], Writer::default(), false)).map(drop)
    }

    fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        // The handle is a parameter here.
        self.call("let go of an object", FLUSH, &[], &[], Writer::default().u32(handle), false).map(drop)
    }

    /// Sends a command: its handles, what authorizes the first of them (a session, or an empty password), its parameters.
    fn call(
        &mut self,
        operation: &'static str,
        code: u32,
        handles: &[u32],
        authorizations: &[u32],
        parameters: Writer,
        has_handle: bool,
    ) -> Result<wire::Answer, TpmError> {
        let mut body = handles.iter().fold(Writer::default(), |writer, handle| writer.u32(*handle));
        let tag = if authorizations.is_empty() { NO_SESSIONS } else { SESSIONS };
        if !authorizations.is_empty() {
            // Session, no nonce, "continue", no HMAC: nine bytes each.
            body = body.u32(u32::try_from(authorizations.len() * 9).unwrap_or(u32::MAX));
            body = authorizations.iter().fold(body, |writer, session| writer.u32(*session).sized(&[]).u8(1).sized(&[]));
        }
        let command = body.bytes(&parameters.0).finish(tag, code).map_err(|source| TpmError::Wire { operation, source })?;
        for _ in 0..TRIES {
            let message = self.transport.transact(&command).map_err(|source| TpmError::Transport { operation, source })?;
            let answer = wire::answer(&message, has_handle).map_err(|source| TpmError::Wire { operation, source })?;
            match answer.code {
                0 => return Ok(answer),
                code if LATER.contains(&code) => std::thread::sleep(Duration::from_millis(50)),
                code => return Err(TpmError::Refused { operation, code }),
            }
        }
        Err(TpmError::Refused { operation, code: LATER[2] })
    }
}
