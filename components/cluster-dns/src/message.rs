//! DNS messages on the wire: reading a question, writing an answer. Pure.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record as WireRecord, RecordType};

use crate::zone::{Answer, Data, Record, TTL, Zone};

/// Longest UDP answer, whatever the client says it takes: what passes every link unfragmented.
pub const MAX_UDP: u16 = 1232;
const CLASSIC_UDP: u16 = 512;

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Name in lower case, without the final dot.
    pub name: String,
    /// Type.
    pub kind: RecordType,
    /// The longest UDP answer the client takes.
    pub max_udp: u16,
    request: Message,
}

/// What a datagram holds.
#[derive(Debug)]
pub enum Parsed {
    /// A question we can deal with.
    Question(Box<Question>),
    /// Something to refuse, with the answer to send.
    Refuse(Vec<u8>),
    /// Nothing that deserves an answer.
    Ignore,
}

/// Reads a request.
pub fn parse(bytes: &[u8]) -> Parsed {
    let Ok(request) = Message::from_vec(bytes) else {
        // The header may still be readable; a truncated or foreign datagram is not answered.
        return match bytes {
            [a, b, flags, ..] if bytes.len() >= 12 && flags & 0x80 == 0 => {
                Parsed::Refuse(refuse(u16::from_be_bytes([*a, *b]), OpCode::Query, ResponseCode::FormErr))
            }
            _ => Parsed::Ignore,
        };
    };
    let meta = request.metadata;
    if meta.message_type == MessageType::Response {
        return Parsed::Ignore;
    }
    if meta.op_code != OpCode::Query {
        return Parsed::Refuse(refuse(meta.id, meta.op_code, ResponseCode::NotImp));
    }
    let [query] = &request.queries[..] else {
        return Parsed::Refuse(refuse(meta.id, meta.op_code, ResponseCode::FormErr));
    };
    let Query { name, query_type, .. } = query;
    let name = name.to_ascii().to_lowercase().trim_end_matches('.').to_string();
    let max_udp = request.edns.as_ref().map_or(CLASSIC_UDP, |e| e.max_payload().clamp(CLASSIC_UDP, MAX_UDP));
    Parsed::Question(Box::new(Question { name, kind: *query_type, max_udp, request }))
}

fn refuse(id: u16, op_code: OpCode, code: ResponseCode) -> Vec<u8> {
    Message::error_msg(id, op_code, code).to_vec().unwrap_or_default()
}

/// An answer that says no more than a code.
pub fn failure(question: &Question, code: ResponseCode) -> Vec<u8> {
    let mut message = response(question);
    message.metadata.response_code = code;
    message.to_vec().unwrap_or_default()
}

fn response(question: &Question) -> Message {
    let request = &question.request;
    let mut message = Message::response(request.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.queries = request.queries.clone();
    if request.edns.is_some() {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(MAX_UDP);
        message.set_edns(edns);
    }
    message
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

fn record(record: &Record, zone: &Zone) -> Option<WireRecord> {
    let data = match &record.data {
        Data::Address(std::net::IpAddr::V4(a)) => RData::A(A(*a)),
        Data::Address(std::net::IpAddr::V6(a)) => RData::AAAA(AAAA(*a)),
        Data::Service { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
        Data::Pointer(target) => RData::PTR(PTR(name(target)?)),
        Data::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::Alias(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Authority => RData::SOA(SOA::new(
            name(&format!("ns.dns.{}", zone.domain))?,
            name(&format!("hostmaster.{}", zone.domain))?,
            1,
            7200,
            1800,
            86400,
            TTL,
        )),
    };
    Some(WireRecord::from_rdata(name(&record.name)?, TTL, data))
}

/// Writes the zone's answer; `rotate` moves the first of several records, so that clients spread; `more` are records of an alias' target.
pub fn write(question: &Question, zone: &Zone, answer: &Answer, more: Vec<WireRecord>, rotate: usize, udp: bool) -> Vec<u8> {
    let mut message = response(question);
    message.metadata.authoritative = true;
    if answer.no_such_name {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    let mut records: Vec<_> = answer.records.iter().filter_map(|r| record(r, zone)).collect();
    let plain = !answer.records.iter().any(|r| matches!(r.data, Data::Alias(_)));
    if plain && records.len() > 1 {
        let by = rotate % records.len();
        records.rotate_left(by);
    }
    records.extend(more);
    if records.is_empty() {
        message.add_authorities(record(&zone.authority(), zone));
    }
    message.add_answers(records);
    message.add_additionals(answer.additional.iter().filter_map(|r| record(r, zone)));
    fit(&message, question, udp)
}

fn fit(message: &Message, question: &Question, udp: bool) -> Vec<u8> {
    let bytes = message.to_vec().unwrap_or_default();
    if udp && bytes.len() > usize::from(question.max_udp) {
        // The client asks again over TCP.
        return message.truncate().to_vec().unwrap_or_default();
    }
    bytes
}

/// The question as it is sent on: the client's own bytes would do, but for the id, which must be ours to tell answers apart.
pub fn forwarded(name_text: &str, kind: RecordType, id: u16) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(name_text)?, kind));
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_max_payload(MAX_UDP);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// What a resolver answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Code.
    pub code: ResponseCode,
    /// Answers.
    pub answers: Vec<WireRecord>,
    /// Authorities, which say how long a "no" holds.
    pub authorities: Vec<WireRecord>,
    /// Cut: ask again over TCP.
    pub truncated: bool,
}

impl Resolved {
    /// Seconds it may be kept: the least of its records, or what the SOA says of a "no".
    pub fn ttl(&self) -> u32 {
        if !self.answers.is_empty() {
            return self.answers.iter().map(|r| r.ttl).min().unwrap_or(0);
        }
        let soa = self.authorities.iter().find_map(|r| if let RData::SOA(soa) = &r.data { Some(soa.minimum.min(r.ttl)) } else { None });
        match self.code {
            ResponseCode::NoError | ResponseCode::NXDomain => soa.unwrap_or(0),
            _ => 0,
        }
    }
}

/// Reads a resolver's answer; `None` when it is not the answer to this question.
pub fn resolved(bytes: &[u8], id: u16, name_text: &str, kind: RecordType) -> Option<Resolved> {
    let message = Message::from_vec(bytes).ok()?;
    let [query] = &message.queries[..] else { return None };
    let same = query.query_type == kind && query.name.to_ascii().to_lowercase().trim_end_matches('.') == name_text;
    if message.metadata.id != id || message.metadata.message_type != MessageType::Response || !same {
        return None;
    }
    Some(Resolved {
        code: message.metadata.response_code,
        answers: message.answers,
        authorities: message.authorities,
        truncated: message.metadata.truncation,
    })
}

/// Passes a resolver's answer on.
pub fn pass_on(question: &Question, resolved: &Resolved, udp: bool) -> Vec<u8> {
    let mut message = response(question);
    message.metadata.response_code = resolved.code;
    message.add_answers(resolved.answers.iter().cloned());
    message.add_authorities(resolved.authorities.iter().cloned());
    fit(&message, question, udp)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(text: &str, kind: RecordType) -> Question {
        let Parsed::Question(q) = parse(&forwarded(text, kind, 7).unwrap()) else { panic!("not a question") };
        *q
    }

    #[test]
    fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
        let zone = Zone { domain: "cluster.local".into() };
        let q = question("Many.d.svc.cluster.local", RecordType::A);
        assert_eq!(q.name, "many.d.svc.cluster.local");
        let records = (0..200u32)
            .map(|i| Record { name: q.name.clone(), data: Data::Address(std::net::Ipv4Addr::from(0x0af4_0000 + i).into()) })
            .collect();
        let answer = Answer { records, ..Answer::default() };
        let udp = Message::from_vec(&write(&q, &zone, &answer, vec![], 3, true)).unwrap();
        assert!(udp.metadata.truncation && udp.metadata.id == 7);
        let tcp = Message::from_vec(&write(&q, &zone, &answer, vec![], 3, false)).unwrap();
        assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
        assert_eq!(tcp.answers[0].data, RData::A(A([10, 244, 0, 3].into())), "rotated");
    }

    #[test]
    fn a_no_carries_the_authority() {
        let zone = Zone { domain: "cluster.local".into() };
        let bytes =
            write(&question("x.cluster.local", RecordType::A), &zone, &Answer { no_such_name: true, ..Answer::default() }, vec![], 0, true);
        let resolved = resolved(&bytes, 7, "x.cluster.local", RecordType::A).unwrap();
        assert_eq!((resolved.code, resolved.authorities.len(), resolved.ttl()), (ResponseCode::NXDomain, 1, TTL));
        assert_eq!(super::resolved(&bytes, 8, "x.cluster.local", RecordType::A), None, "another id");
        assert_eq!(super::resolved(&bytes, 7, "y.cluster.local", RecordType::A), None, "another name");
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = resolved(&bytes, 0, "a", RecordType::A);
        }
    }
}
