//! A rollout over machines by strakectl, as a person does it: machines whose disks are files, that serve their API, and that start again from what firmware and
//! loader would take when init is asked to restart them.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;
use machine_config::Config;
use node_ipc::init::{Request, Response};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use strakectl::commands::Cli;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::authorize::Policy;
use crate::api::tls::{self, ServingCertificate};

/// What becomes of a new system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// It proves good.
    Passes,
    /// It never does, and the machine is back in the old one.
    Fails,
}

/// A machine as a person sees it from outside.
struct Outside {
    fixture: Fixture,
    address: SocketAddr,
    trial: Trial,
    /// What init was asked for.
    asked: Arc<Mutex<Vec<Request>>>,
}

/// init's protocol on a real socket: every request is noted and accepted.
fn serve_init(fixture: &Fixture) -> Arc<Mutex<Vec<Request>>> {
    let directory = fixture.dir.path().join("root/run/strake");
    fs::create_dir_all(&directory).unwrap();
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(directory.join("init.sock")).unwrap()).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
    let notes = asked.clone();
    std::thread::spawn(move || {
        while let Ok(connection) = rustix::net::accept(&socket) {
            let mut buffer = vec![0; node_ipc::MAX_PACKET];
            while let Ok((count @ 1.., _)) = rustix::net::recv(&connection, &mut buffer[..], RecvFlags::empty()) {
                let request: Request = node_ipc::decode(&buffer[..count]).unwrap();
                let response = match request {
                    Request::List => Response::Services { services: Vec::new() },
                    _ => Response::Done,
                };
                notes.lock().unwrap().push(request);
                rustix::net::send(&connection, &node_ipc::encode_packet(&response).unwrap(), SendFlags::NOSIGNAL).unwrap();
            }
        }
    });
    asked
}

impl Outside {
    fn was_asked_to_restart(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|request| matches!(request, Request::Reboot { .. })).count()
    }

    /// A boot: the machine, and its API until it ends.
    async fn boot(&self, text: &str, slot: Slot, number: usize) -> (Arc<Machine>, CancellationToken) {
        let system = if slot == Slot::A { &self.fixture.old } else { &self.fixture.new };
        let mut machine = self.fixture.boot_with(text, slot, system);
        Arc::get_mut(&mut machine).unwrap().boot_id = format!("boot-{number}");
        at_boot(&machine);
        let config = Config::parse("test", text).unwrap();
        let authority = &config.secrets.authorities.machine;
        let issuer = pki::Authority::from_pem(authority.cert.as_str(), authority.key.as_ref().unwrap().reveal()).unwrap();
        let lifetime = Duration::from_secs(3600);
        let spec = pki::LeafSpec {
            common_name: "machine".into(),
            dns_names: vec!["strake-machine".into()],
            server: true,
            lifetime,
            ..Default::default()
        };
        let issued = issuer.issue(&spec, jiff::Timestamp::now()).unwrap();
        let serving = ServingCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
        let tls = tls::with_client_ca(serving, authority.cert.as_str()).unwrap();
        // The boot before may not have let go of it yet.
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let stop = CancellationToken::new();
        tokio::spawn(crate::api::serve(machine.clone(), Policy::Roles, tls, listener, stop.clone()));
        (machine, stop)
    }

    /// Runs the machine: whenever it is told to restart, it starts what the loader would.
    async fn run(self: Arc<Self>, text: String) {
        let (mut slot, mut number) = (Slot::A, 1);
        loop {
            let (machine, stop) = self.boot(&text, slot, number).await;
            let layout = Layout::of(&machine).unwrap();
            let on_trial = record::upgrade(&layout.read().unwrap()).filter(|upgrade| upgrade.state == State::Trying);
            match (on_trial, self.trial) {
                (Some(mut upgrade), Trial::Passes) => judge::commit(&machine, &layout, &mut upgrade).await.unwrap(),
                (Some(mut upgrade), Trial::Fails) => {
                    upgrade.because("not as healthy as before: kubelet");
                    layout.change(|meta| record::set_upgrade(meta, &upgrade)).unwrap();
                    // init ends the trial.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    stop.cancel();
                    (slot, number) = (Slot::A, number + 1);
                    continue;
                }
                (None, _) => {}
            }
            let asked = self.was_asked_to_restart();
            while self.was_asked_to_restart() == asked {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stop.cancel();
            let tried = layout.variables.read(slots::loader::ONE_SHOT).unwrap().is_some();
            layout.variables.remove(slots::loader::ONE_SHOT).unwrap();
            slot = if tried { layout.other() } else { layout.boot.default_slot().unwrap().unwrap() };
            number += 1;
        }
    }
}

/// Machines of one cluster, whose trials end so, and a directory with the person's files.
async fn machines(trials: &[Trial]) -> (Vec<Arc<Outside>>, tempfile::TempDir) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let person = tempfile::tempdir().unwrap();
    let out = format!("{}/", person.path().display());
    strakectl(&person, &["gen", "cluster", "test", "https://127.0.0.1:6443", "--install-disk", "size=>= 9GB", "--out", &out])
        .await
        .unwrap();
    let mut machines = Vec::new();
    for (number, trial) in (1..).zip(trials) {
        let hostname = format!("---\napiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: cp-{number}\n");
        let text = fs::read_to_string(person.path().join("controlplane.yaml")).unwrap() + &hostname;
        let fixture = fixture();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let asked = serve_init(&fixture);
        let machine = Arc::new(Outside { fixture, address, trial: *trial, asked });
        tokio::spawn(machine.clone().run(text));
        machines.push(machine);
    }
    fs::write(person.path().join("strake.upgrade"), &machines[0].fixture.file).unwrap();
    (machines, person)
}

async fn strakectl(person: &tempfile::TempDir, arguments: &[&str]) -> anyhow::Result<()> {
    let strakeconfig = person.path().join("strakeconfig").display().to_string();
    let all = ["strakectl", "--strakeconfig", &strakeconfig].into_iter().chain(arguments.iter().copied());
    Cli::try_parse_from(all)?.run().await
}

async fn roll_out(machines: &[Arc<Outside>], person: &tempfile::TempDir, more: &[&str]) -> Result<(), String> {
    let nodes: Vec<String> = machines.iter().map(|machine| machine.address.to_string()).collect();
    let (nodes, image) = (nodes.join(","), person.path().join("strake.upgrade").display().to_string());
    let words = ["upgrade", "-n", &nodes, "--image", &image, "--drain-seconds", "0"].into_iter().chain(more.iter().copied());
    let done = tokio::time::timeout(Duration::from_secs(120), strakectl(person, &words.collect::<Vec<_>>())).await;
    done.expect("the rollout ends").map_err(|error| format!("{error:#}"))
}

/// What a machine would start, what META says of its last upgrade, and whether its idle slot can be started.
fn stands(machine: &Outside) -> (Option<Slot>, Option<State>, bool) {
    let looked_at = machine.fixture.boot(Slot::A, &machine.fixture.old);
    let layout = Layout::of(&looked_at).unwrap();
    let state = record::upgrade(&layout.read().unwrap()).map(|upgrade| upgrade.state);
    (layout.boot.default_slot().unwrap(), state, layout.boot.has(Slot::B).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_stops_at_the_machine_that_fails_and_leaves_the_others_alone() {
    let (machines, person) = machines(&[Trial::Passes, Trial::Fails, Trial::Passes]).await;
    roll_out(&machines, &person, &["--dry-run"]).await.unwrap();
    assert!(machines.iter().all(|machine| stands(machine) == (Some(Slot::A), None, false)), "a dry run writes nothing");

    let error = roll_out(&machines, &person, &[]).await.unwrap_err();
    let [first, second, third] = [0, 1, 2].map(|number: usize| machines[number].address.to_string());
    for part in [
        format!("the rollout stopped; upgraded: {first}; not touched: {third}"),
        format!(
            "{second}: the upgrade is failed: the new system was not good in time; the last that it said: not as healthy as before: kubelet"
        ),
    ] {
        assert!(error.contains(&part), "{error}: {part}");
    }
    assert_eq!(stands(&machines[0]), (Some(Slot::B), Some(State::Good), true));
    assert_eq!(stands(&machines[1]).0, Some(Slot::A), "back in the old system");
    assert_eq!((stands(&machines[2]), machines[2].was_asked_to_restart()), ((Some(Slot::A), None, false), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_one_by_one_and_passes_over_who_is_done() {
    let (machines, person) = machines(&[Trial::Passes, Trial::Passes]).await;
    roll_out(&machines[..1], &person, &["--wait"]).await.unwrap();
    assert_eq!(machines[1].was_asked_to_restart(), 0);
    roll_out(&machines, &person, &[]).await.unwrap();
    for machine in &machines {
        assert_eq!((stands(machine), machine.was_asked_to_restart()), ((Some(Slot::B), Some(State::Good), true), 1));
    }
    let again = roll_out(&machines[..1], &person, &[]).await.unwrap_err();
    assert!(again.contains("running already"), "{again}");
}
