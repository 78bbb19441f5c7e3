//! init's control protocol: one [`Request`] per packet on the SOCK_SEQPACKET socket [`SOCKET`], answered by one
//! [`Response`] per packet, in order. Only root may connect.

use serde::{Deserialize, Serialize};

/// Where init listens (SOCK_SEQPACKET).
pub const SOCKET: &str = "/run/strake/init.sock";

/// Where init leaves [`BootInfo`] as JSON.
pub const BOOT_INFO_FILE: &str = "/run/strake/boot.json";

/// Where init leaves the public key of whoever signs what is measured, and the signatures of the image that was started: what systemd-stub puts
/// beside the initramfs of an image that has them. Machined believes neither; the TPM decides.
pub const PCR_PUBLIC_KEY_FILE: &str = "/run/strake/tpm2-pcr-public-key.pem";
/// See [`PCR_PUBLIC_KEY_FILE`].
pub const PCR_SIGNATURE_FILE: &str = "/run/strake/tpm2-pcr-signature.json";

/// Where the medium that the machine was booted from stays mounted, read-only; absent when booted from disk.
pub const MEDIA_DIR: &str = "/run/strake/media";

/// What machined asks of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Every service of init's table. Answered by [`Response::Services`].
    List,
    /// Run a service with these arguments. Idempotent: the same arguments and environment on a service that is wanted
    /// change nothing, others restart it. A service whose dependency is not running waits for it.
    /// Answered by [`Response::Done`] as soon as it is accepted.
    Start {
        /// Name of the service in init's table.
        name: String,
        /// Arguments after argv[0].
        #[serde(default)]
        args: Vec<String>,
        /// Environment, beside the small one that init gives every service.
        #[serde(default)]
        env: Vec<EnvVar>,
    },
    /// Stop a service and keep it stopped until the next [`Request::Start`].
    Stop {
        /// Name of the service in init's table.
        name: String,
    },
    /// Stop a service and start it again with what it had.
    Restart {
        /// Name of the service in init's table.
        name: String,
    },
    /// Stop everything in order, unmount, and reboot. Answered before it begins.
    Reboot {
        /// Shown on the console.
        reason: String,
    },
    /// Stop everything in order, unmount, and power off. Answered before it begins.
    PowerOff {
        /// Shown on the console.
        reason: String,
    },
    /// Replaces what the console shows.
    SetConsole(ConsoleStatus),
    /// How this system was booted. Answered by [`Response::BootInfo`].
    BootInfo,
    /// The system on trial proved good: init does not restart the machine for it any more. Any number of times, also without a trial.
    TrialPassed,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What init answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Response {
    /// The request was accepted.
    Done,
    /// Answer to [`Request::List`], in the order of init's table.
    Services {
        /// Every service init knows, also those nobody asked for yet.
        services: Vec<ServiceStatus>,
    },
    /// Answer to [`Request::BootInfo`].
    BootInfo(BootInfo),
    /// The request was refused; nothing changed.
    Error {
        /// What kind of refusal.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// No service of that name in init's table.
    UnknownService,
    /// The packet is no request, or an argument holds a NUL byte, or a bound is broken.
    BadRequest,
    /// The machine is going down.
    ShuttingDown,
    /// The service was never started, so that it cannot be restarted.
    NotStarted,
}

/// A service's life, as init sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Nobody asked for it, or it was stopped.
    Stopped,
    /// Wanted, but a dependency is not running yet.
    Waiting,
    /// Its process runs.
    Running,
    /// It ended and is started again when the back-off is over.
    BackOff,
    /// It was told to end.
    Stopping,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Name in init's table.
    pub name: String,
    /// What it does at the moment.
    pub state: ServiceState,
    /// Its process, when one runs.
    pub pid: Option<i32>,
    /// How often it was started again since it was first asked for.
    pub restarts: u32,
    /// How it ended the last time, when it did.
    pub last_exit: Option<Exit>,
    /// When it got into this state: microseconds of CLOCK_BOOTTIME (the wall clock may still jump).
    pub since_boottime_us: u64,
    /// Why it is in this state, when there is something to say ("waits for containerd", "exec /usr/bin/kube: …").
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It could not be started.
    NotStarted,
}

/// What the console shows beside what init knows itself (version, uptime).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleStatus {
    /// The machine's name; empty when it has none yet.
    #[serde(default)]
    pub hostname: String,
    /// Its addresses, without prefix lengths.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// One word for where it is: `starting`, `maintenance`, `installing`, `booting`, `running`…
    #[serde(default)]
    pub stage: String,
    /// `controlplane` or `worker`; empty before there is a config.
    #[serde(default)]
    pub role: String,
    /// Where the system that runs came from: `ROOT-A`, `ROOT-B`, or a medium.
    #[serde(default)]
    pub slot: String,
    /// How much of what it should do it does, such as `12/14`; empty when that is not known.
    #[serde(default)]
    pub health: String,
    /// What the person in front of it must know, one line each.
    #[serde(default)]
    pub errors: Vec<String>,
    /// The string that strakectl needs in maintenance mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairing: Option<String>,
}

/// How this system was booted. Also in [`BOOT_INFO_FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInfo {
    /// Where the root came from.
    pub source: BootSource,
    /// The block device of the root, or of the medium that holds it.
    pub device: String,
    /// What the root is verified against, from the kernel image that was started. Its UUID follows from it.
    pub root: verity::Parameters,
    /// The slot of an installed disk; a medium has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// The system is on trial: init restarts the machine, into the slot before, unless it is told within so many seconds of the kernel's clock
    /// that the system is good ([`Request::TrialPassed`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_seconds: Option<u64>,
}

/// One of the two places for a root on an installed disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// The partition `ROOT-A`.
    A,
    /// The partition `ROOT-B`.
    B,
}

impl Slot {
    /// The slot whose partition has this GPT name.
    pub fn of_label(label: &str) -> Option<Self> {
        [Self::A, Self::B].into_iter().find(|slot| slot.label() == label)
    }

    /// Its partition's GPT name.
    pub fn label(self) -> &'static str {
        match self {
            Self::A => "ROOT-A",
            Self::B => "ROOT-B",
        }
    }
}

/// Where the root came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootSource {
    /// A removable medium: nothing is installed that this system belongs to.
    Media,
    /// An installed disk.
    Disk,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode_packet};

    #[test]
    fn the_wire_form_is_the_documented_json() {
        let start = Request::Start {
            name: "kubelet".into(),
            args: vec!["--v=2".into()],
            env: vec![EnvVar { name: "A".into(), value: "b".into() }],
        };
        let cases: &[(Request, &str)] = &[
            (Request::List, r#"{"op":"list"}"#),
            (start, r#"{"op":"start","name":"kubelet","args":["--v=2"],"env":[{"name":"A","value":"b"}]}"#),
            (Request::PowerOff { reason: "asked".into() }, r#"{"op":"power-off","reason":"asked"}"#),
            (
                Request::SetConsole(ConsoleStatus { stage: "running".into(), ..Default::default() }),
                r#"{"op":"set-console","hostname":"","addresses":[],"stage":"running","role":"","slot":"","health":"","errors":[]}"#,
            ),
        ];
        for (request, json) in cases {
            assert_eq!(String::from_utf8(encode_packet(request).unwrap()).unwrap(), *json);
            assert_eq!(decode::<Request>(json.as_bytes()).unwrap(), *request);
        }
    }

    #[test]
    fn boot_info_is_what_the_architecture_page_shows() {
        let hash = "561c87dc42ed5a69cb12155fe5ed680736936d8b7cb5a1414e8b810f7416a33c";
        let root = verity::Parameters::new(hash.parse().unwrap(), hash.parse().unwrap(), 300).unwrap();
        let parameters = format!(r#"{{"root_hash":"{hash}","salt":"{hash}","data_blocks":300}}"#);
        let media = BootInfo { source: BootSource::Media, device: "/dev/sr0".into(), root, slot: None, trial_seconds: None };
        let slot = Slot::of_label("ROOT-A");
        let disk = BootInfo { source: BootSource::Disk, device: "/dev/vda2".into(), root, slot, trial_seconds: None };
        let trial = BootInfo { trial_seconds: Some(600), ..disk.clone() };
        for (info, json) in [
            (media, format!(r#"{{"source":"media","device":"/dev/sr0","root":{parameters}}}"#)),
            (disk, format!(r#"{{"source":"disk","device":"/dev/vda2","root":{parameters},"slot":"a"}}"#)),
            (trial, format!(r#"{{"source":"disk","device":"/dev/vda2","root":{parameters},"slot":"a","trial_seconds":600}}"#)),
        ] {
            assert_eq!(serde_json::to_string(&info).unwrap(), json);
            assert_eq!(serde_json::from_str::<BootInfo>(&json).unwrap(), info);
        }
        assert_eq!(Slot::of_label("ROOT-C"), None);
    }

    #[test]
    fn responses_round_trip() {
        let service = ServiceStatus {
            name: "containerd".into(),
            state: ServiceState::BackOff,
            pid: None,
            restarts: 3,
            last_exit: Some(Exit::Signal(9)),
            since_boottime_us: 12,
            detail: String::new(),
        };
        for response in [
            Response::Done,
            Response::Services { services: vec![service] },
            Response::Error { code: ErrorCode::UnknownService, message: "no service named x".into() },
        ] {
            assert_eq!(decode::<Response>(&encode_packet(&response).unwrap()).unwrap(), response);
        }
    }
}
