//! Everything against a real TPM: Debian's swtpm, over a socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use tpm::floor::{COUNTER, reference};
use tpm::policy::{self, EMPTY};
use tpm::{Digest, Floor, PublicKey, Sealed, Session, Tpm, TpmError, Transport, nv_name};

struct Socket(UnixStream);

impl Transport for Socket {
    fn transact(&mut self, command: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        let mut answer = vec![0; 10];
        self.0.read_exact(&mut answer)?;
        let size = u32::from_be_bytes(answer[2..6].try_into().unwrap()) as usize;
        answer.resize(size.clamp(10, tpm::MAX_MESSAGE), 0);
        self.0.read_exact(&mut answer[10..])?;
        Ok(answer)
    }
}

/// An emulator that ends with the test.
struct Emulator {
    child: Child,
    dir: tempfile::TempDir,
}

impl Emulator {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Self::spawn(dir.path());
        Self { child, dir }
    }

    fn spawn(dir: &Path) -> Child {
        let state = format!("dir={},mode=0600", dir.display());
        let server = format!("type=unixio,path={}/socket", dir.display());
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--tpmstate", &state, "--server", &server, "--flags", "not-need-init,startup-clear"]);
        command.stdin(Stdio::null()).spawn().expect("swtpm, which `cargo xtask` installs on the host")
    }

    fn tpm(&self) -> Tpm<Socket> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(self.dir.path().join("socket")) {
                Ok(stream) => return Tpm::new(Socket(stream)),
                Err(problem) => assert!(Instant::now() < end, "{problem}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(self.dir.path().join("socket"));
        self.child = Self::spawn(self.dir.path());
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who signs policies.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn public(&self) -> PublicKey {
        let head = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
            0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        PublicKey::from_spki(&[&head[..], self.0.public_key().as_ref()].concat()).unwrap()
    }

    fn sign(&self, approved: &Digest, reference: &[u8]) -> [u8; 64] {
        let signature = self.0.sign(&SystemRandom::new(), &policy::to_sign(approved, reference)).unwrap();
        signature.as_ref().try_into().unwrap()
    }
}

const SYSTEM: Digest = [0x11; 32];
const NEXT_SYSTEM: Digest = [0x22; 32];

fn started(system: &Digest) -> Digest {
    policy::extend(&[0; 32], system)
}

/// Unseals as a machine does: the system is signed, and PCR 7 is what it was.
fn open(tpm: &mut Tpm<Socket>, sealed: &Sealed, signer: &Signer, signed: &Digest) -> Result<Vec<u8>, TpmError> {
    let approved = policy::pcr(&EMPTY, &[11], &[*signed]);
    let session = tpm.start_policy()?;
    let opened = (|| {
        tpm.policy_pcr(session, &[11])?;
        let ticket = tpm.verify(&signer.public(), &policy::to_sign(&approved, b""), &signer.sign(&approved, b""))?;
        tpm.policy_authorize(session, &approved, b"", &signer.public(), &ticket)?;
        tpm.policy_pcr(session, &[7])?;
        unseal(tpm, sealed, session)
    })();
    tpm.end(session)?;
    opened
}

fn unseal(tpm: &mut Tpm<Socket>, sealed: &Sealed, session: Session) -> Result<Vec<u8>, TpmError> {
    let object = tpm.load(sealed)?;
    let opened = tpm.unseal(&object, session);
    tpm.let_go(object)?;
    opened
}

/// Unseals for a system that is signed as this version; nothing when it is below the floor.
fn open_as(tpm: &mut Tpm<Socket>, sealed: &Sealed, signer: &Signer, floor: &Floor, version: u32) -> Result<Option<Vec<u8>>, TpmError> {
    let (approved, reference) = (policy::pcr(&EMPTY, &[11], &[started(&SYSTEM)]), reference(version));
    let session = tpm.start_policy()?;
    let opened = (|| {
        tpm.policy_pcr(session, &[11])?;
        let signature = signer.sign(&approved, &reference);
        let ticket = tpm.verify(&signer.public(), &policy::to_sign(&approved, &reference), &signature)?;
        tpm.policy_authorize(session, &approved, &reference, &signer.public(), &ticket)?;
        if !tpm.policy_floor(session, &signer.public().name(), floor, version)? {
            return Ok(None);
        }
        unseal(tpm, sealed, session).map(Some)
    })();
    tpm.end(session)?;
    opened
}

#[test]
fn an_image_below_the_floor_gets_no_key_once_the_counter_was_raised_whatever_copies_there_are() {
    let mut machine = Emulator::start();
    let mut tpm = machine.tpm();
    let signer = Signer::new();
    tpm.extend_pcr(11, &SYSTEM).unwrap();
    let floor = Floor { counter: tpm.floor_counter().unwrap(), version: 3 };
    assert_eq!(tpm.floor_counter().unwrap(), floor.counter, "asking does not raise it");
    let sealed = tpm.seal(b"the key of a disk", &floor.policy(&signer.public().name())).unwrap();
    let key = Some(b"the key of a disk".to_vec());
    // The first and the last of a group, of the first group and of the last.
    for (version, opened) in [(2, false), (3, true), (4, true), (10, true), (11, true), (66, true), (67, false)] {
        let found = open_as(&mut tpm, &sealed, &signer, &floor, version).unwrap();
        assert_eq!(found, if opened { key.clone() } else { None }, "{version}");
    }

    let raised = tpm.raise_floor(floor.most(5).unwrap()).unwrap();
    assert_eq!((raised, floor.lowest(raised)), (floor.counter + 2, 5));
    assert_eq!(tpm.raise_floor(floor.counter).unwrap(), raised, "it never falls");
    drop(tpm);
    machine.restart();
    let mut tpm = machine.tpm();
    tpm.extend_pcr(11, &SYSTEM).unwrap();
    for (version, opened) in [(3, false), (4, false), (5, true), (66, true)] {
        let found = open_as(&mut tpm, &sealed, &signer, &floor, version).unwrap();
        assert_eq!(found, if opened { key.clone() } else { None }, "{version} after the floor was raised");
    }

    // A floor that is written lower than it was sealed for opens nothing, and neither does a counter that is made anew.
    let error = open_as(&mut tpm, &sealed, &signer, &Floor { counter: raised, ..floor }, 3).unwrap_err();
    assert!(error.is_policy(), "another floor: {error}");
    tpm.remove_counter(COUNTER).unwrap();
    assert!(open_as(&mut tpm, &sealed, &signer, &floor, 5).is_err(), "without the counter");
    assert!(tpm.floor_counter().unwrap() > raised);
    assert_eq!(open_as(&mut tpm, &sealed, &signer, &floor, 5).unwrap(), None, "a counter made anew begins above");
}

#[test]
fn a_key_is_opened_for_every_signed_system_on_this_machine_and_for_nothing_else() {
    let mut machine = Emulator::start();
    let mut tpm = machine.tpm();
    let (signer, other) = (Signer::new(), Signer::new());
    let now = tpm.read_pcr(7).unwrap();
    assert_eq!(now, [0; 32]);
    let wanted = policy::pcr(&policy::authorize(&signer.public().name(), b""), &[7], &[now]);
    let sealed = tpm.seal(b"the key of a disk", &wanted).unwrap();

    tpm.extend_pcr(11, &SYSTEM).unwrap();
    assert_eq!(tpm.read_pcr(11).unwrap(), started(&SYSTEM));
    for _ in 0..5 {
        // Nothing is left in the TPM that would fill it.
        assert_eq!(open(&mut tpm, &sealed, &signer, &started(&SYSTEM)).unwrap(), b"the key of a disk");
    }
    let error = open(&mut tpm, &sealed, &signer, &started(&NEXT_SYSTEM)).unwrap_err();
    assert!(error.is_policy(), "another system than the one that is signed: {error}");
    let error = open(&mut tpm, &sealed, &other, &started(&SYSTEM)).unwrap_err();
    assert!(error.is_policy(), "signed by somebody else: {error}");
    let damaged = Sealed { private: sealed.private.iter().map(|byte| byte ^ 1).collect(), ..sealed.clone() };
    assert!(open(&mut tpm, &damaged, &signer, &started(&SYSTEM)).is_err());
    drop(tpm);

    // The next boot starts the next system.
    machine.restart();
    let mut tpm = machine.tpm();
    tpm.extend_pcr(11, &NEXT_SYSTEM).unwrap();
    assert_eq!(open(&mut tpm, &sealed, &signer, &started(&NEXT_SYSTEM)).unwrap(), b"the key of a disk");
    tpm.extend_pcr(7, &[1; 32]).unwrap();
    let error = open(&mut tpm, &sealed, &signer, &started(&NEXT_SYSTEM)).unwrap_err();
    assert!(error.is_policy() && !error.is_foreign(), "changed PCR 7: {error}");
    tpm.extend_pcr(11, &[9; 32]).unwrap();
    assert!(open(&mut tpm, &sealed, &signer, &started(&NEXT_SYSTEM)).unwrap_err().is_policy(), "changed PCR 11");

    let elsewhere = Emulator::start();
    let mut foreign = elsewhere.tpm();
    foreign.extend_pcr(11, &NEXT_SYSTEM).unwrap();
    let error = open(&mut foreign, &sealed, &signer, &started(&NEXT_SYSTEM)).unwrap_err();
    assert!(error.is_foreign(), "another machine: {error}");

    tpm.clear().unwrap();
    drop(tpm);
    machine.restart();
    let mut tpm = machine.tpm();
    tpm.extend_pcr(11, &NEXT_SYSTEM).unwrap();
    let error = open(&mut tpm, &sealed, &signer, &started(&NEXT_SYSTEM)).unwrap_err();
    assert!(error.is_foreign(), "cleared: {error}");
}

#[test]
fn digests_of_policies_are_those_that_the_tpm_computes() {
    let machine = Emulator::start();
    let mut tpm = machine.tpm();
    let signer = Signer::new();
    tpm.extend_pcr(11, &SYSTEM).unwrap();
    tpm.define_counter(COUNTER).unwrap();
    assert_eq!(tpm.read_counter(COUNTER).unwrap(), None);
    tpm.raise_counter(COUNTER).unwrap();
    let count = tpm.read_counter(COUNTER).unwrap().unwrap();

    let session = tpm.start_policy().unwrap();
    tpm.policy_pcr(session, &[11]).unwrap();
    let approved = policy::pcr(&EMPTY, &[11], &[started(&SYSTEM)]);
    assert_eq!(tpm.policy_digest(session).unwrap(), approved);
    let ticket = tpm.verify(&signer.public(), &policy::to_sign(&approved, b"ref"), &signer.sign(&approved, b"ref")).unwrap();
    tpm.policy_authorize(session, &approved, b"ref", &signer.public(), &ticket).unwrap();
    let authorized = policy::authorize(&signer.public().name(), b"ref");
    assert_eq!(tpm.policy_digest(session).unwrap(), authorized);
    tpm.policy_counter_at_most(session, COUNTER, count + 3).unwrap();
    let bounded = policy::counter_at_most(&authorized, count + 3, &nv_name(COUNTER));
    assert_eq!(tpm.policy_digest(session).unwrap(), bounded);
    tpm.policy_any_of(session, &[[1; 32], bounded, [2; 32]]).unwrap();
    assert_eq!(tpm.policy_digest(session).unwrap(), policy::any_of(&[[1; 32], bounded, [2; 32]]));
    tpm.end(session).unwrap();

    let session = tpm.start_trial().unwrap();
    tpm.policy_pcr(session, &[7, 11]).unwrap();
    assert_eq!(tpm.policy_digest(session).unwrap(), policy::pcr(&EMPTY, &[7, 11], &[[0; 32], started(&SYSTEM)]));
    tpm.end(session).unwrap();

    let session = tpm.start_policy().unwrap();
    assert!(tpm.policy_counter_at_most(session, COUNTER, count - 1).unwrap_err().is_policy(), "the counter is higher");
    tpm.end(session).unwrap();
}

#[test]
fn a_counter_only_rises_even_when_it_is_made_anew() {
    let machine = Emulator::start();
    let mut tpm = machine.tpm();
    assert_eq!(tpm.read_counter(COUNTER).unwrap(), None);
    tpm.define_counter(COUNTER).unwrap();
    let mut last = 0;
    for _ in 0..3 {
        tpm.raise_counter(COUNTER).unwrap();
        let count = tpm.read_counter(COUNTER).unwrap().unwrap();
        assert!(count > last);
        last = count;
    }
    assert!(tpm.define_counter(COUNTER).is_err(), "it is there");
    tpm.remove_counter(COUNTER).unwrap();
    tpm.define_counter(COUNTER).unwrap();
    tpm.raise_counter(COUNTER).unwrap();
    assert!(tpm.read_counter(COUNTER).unwrap().unwrap() > last);
}
