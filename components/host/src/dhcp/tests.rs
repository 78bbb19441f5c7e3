//! Messages, packets, and a whole exchange with a server of the test's own on a veth pair.

use proptest::prelude::*;

use super::socket::{CLIENT_PORT, SERVER_PORT, unwrap, wrap};
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn reply(kind: Kind, to: &Message) -> Message {
    let mut message = Message::discover(to.transaction, to.mac, None);
    message.kind = kind;
    message.reply = true;
    message.your_address = ip("10.8.0.50");
    message.server = Some(ip("10.8.0.1"));
    message.prefix = Some(22);
    message.lease_seconds = Some(600);
    message.routers = vec![ip("10.8.0.1")];
    message.dns = vec![ip("10.8.0.2"), ip("10.8.0.3")];
    message.domain = Some("example.test".into());
    message.mtu = Some(1400);
    message
}

#[test]
fn messages_survive_the_wire() {
    let discover = Message::discover(7, MAC, Some("cp-1"));
    for message in [
        discover.clone(),
        Message::request(7, MAC, None, ip("10.8.0.50"), Some(ip("10.8.0.1"))),
        reply(Kind::Offer, &discover),
        reply(Kind::Ack, &discover),
    ] {
        let bytes = message.encode();
        assert!(bytes.len() >= 300);
        assert_eq!(Message::decode(&bytes), Some(message));
    }
}

#[test]
fn an_acknowledgement_becomes_a_lease_and_a_useless_one_does_not() {
    let ack = reply(Kind::Ack, &Message::discover(7, MAC, None));
    let lease = ack.lease().unwrap();
    assert_eq!(lease.address, "10.8.0.50/22".parse().unwrap());
    assert_eq!((lease.duration, lease.renew_after()), (Duration::from_secs(600), Duration::from_secs(300)));
    assert_eq!((lease.mtu, lease.domain.as_deref()), (Some(1400), Some("example.test")));
    let endless = Message { lease_seconds: Some(u32::MAX), ..ack.clone() }.lease().unwrap();
    assert_eq!(endless.renew_after(), Duration::MAX);
    for broken in [
        Message { your_address: Ipv4Addr::UNSPECIFIED, ..ack.clone() },
        Message { your_address: Ipv4Addr::BROADCAST, ..ack.clone() },
        Message { server: None, ..ack.clone() },
    ] {
        assert_eq!(broken.lease(), None);
    }
}

#[test]
fn names_from_the_network_are_names_or_nothing() {
    let mut ack = reply(Kind::Ack, &Message::discover(7, MAC, None));
    for (sent, seen) in [("node-1.a", Some("node-1.a")), ("a b", None), ("a\nnameserver 1.2.3.4", None), ("../etc", None)] {
        ack.hostname = Some(sent.into());
        assert_eq!(Message::decode(&ack.encode()).unwrap().hostname.as_deref(), seen);
    }
}

#[test]
fn packets_are_for_the_client_or_not_ours() {
    let packet = wrap(b"payload", [10, 8, 0, 1], SERVER_PORT, CLIENT_PORT);
    assert_eq!(unwrap(&packet, CLIENT_PORT), Some(&b"payload"[..]));
    assert_eq!(unwrap(&packet, 69), None);
    let mut fragment = packet.clone();
    fragment[6] = 0x20;
    assert_eq!(unwrap(&fragment, CLIENT_PORT), None);
    let mut tcp = packet.clone();
    tcp[9] = 6;
    assert_eq!(unwrap(&tcp, CLIENT_PORT), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Message::decode(&bytes);
        let _ = unwrap(&bytes, CLIENT_PORT);
        let mut framed = Message::discover(1, MAC, None).encode();
        framed.truncate(240);
        framed.extend_from_slice(&[53, 1, 5]);
        framed.extend_from_slice(&bytes);
        let decoded = Message::decode(&framed);
        prop_assert!(decoded.is_some());
        let _ = decoded.unwrap().lease();
    }

    #[test]
    fn payloads_of_any_size_survive_their_packet(payload in prop::collection::vec(any::<u8>(), 0..600)) {
        let packet = wrap(&payload, [0; 4], SERVER_PORT, CLIENT_PORT);
        prop_assert_eq!(unwrap(&packet, CLIENT_PORT), Some(payload.as_slice()));
    }
}

/// The kernel checks our checksums: the server is an ordinary UDP socket. Needs root; says so and passes without.
#[test]
fn a_lease_is_acquired_and_renewed_over_a_real_link() {
    let worker = std::thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped, no network namespace: {error}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let link = runtime.block_on(veth());
        let server = std::net::UdpSocket::bind(("0.0.0.0", SERVER_PORT)).unwrap();
        server.set_broadcast(true).unwrap();
        // A thread inherits the namespace of the one that starts it.
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            let mut kinds = Vec::new();
            while kinds.len() < 3 {
                let (size, _) = server.recv_from(&mut buffer).unwrap();
                let question = Message::decode(&buffer[..size]).unwrap();
                let kind = if question.kind == Kind::Discover { Kind::Offer } else { Kind::Ack };
                server.send_to(&reply(kind, &question).encode(), (Ipv4Addr::BROADCAST, CLIENT_PORT)).unwrap();
                kinds.push((question.kind, question.hostname));
            }
            kinds
        });
        let lease = acquire(&link, Some("cp-1"), 77, Duration::from_secs(10)).unwrap();
        assert_eq!(lease.address, "10.8.0.50/22".parse().unwrap());
        let renewed = renew(&link, None, &lease, 78, Duration::from_secs(10)).unwrap();
        assert_eq!(renewed, lease);
        let name = Some("cp-1".to_owned());
        assert_eq!(serving.join().unwrap(), [(Kind::Discover, name.clone()), (Kind::Request, name), (Kind::Request, None)]);
        assert!(matches!(acquire(&link, None, 79, Duration::from_millis(50)), Err(DhcpError::NoAnswer { .. })));
    });
    worker.join().unwrap();
}

async fn veth() -> Link {
    use crate::net::{Desired, DesiredLink, DesiredRoute, LinuxNetwork, Network, apply_all, plan};
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle.link().add(rtnetlink::LinkVeth::new("client", "server").build()).execute().await.unwrap();
    let network = LinuxNetwork::connect().unwrap();
    let desired = Desired {
        links: vec![
            DesiredLink { name: "client".into(), up: true, ..DesiredLink::default() },
            DesiredLink { name: "server".into(), up: true, mtu: None, addresses: vec!["10.8.0.1/22".parse().unwrap()] },
        ],
        routes: vec![DesiredRoute {
            destination: "255.255.255.255/32".parse().unwrap(),
            gateway: None,
            link: Some("server".into()),
            metric: 0,
        }],
        route_protocol: 83,
    };
    let steps = plan(&desired, &network.observe().await.unwrap());
    for (step, result) in apply_all(&network, steps).await {
        result.unwrap_or_else(|error| panic!("{step}: {error}"));
    }
    let observed = network.observe().await.unwrap();
    let client = observed.link("client").unwrap();
    Link { name: client.name.clone(), index: client.index, mac: client.mac.unwrap() }
}
