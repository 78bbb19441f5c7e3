//! logd's query protocol: a client connects to the stream socket [`SOCKET`], writes one [`Request`] line and reads
//! [`Reply`] lines until [`Reply::End`], an error, or until it closes the connection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where logd answers queries (stream).
pub const SOCKET: &str = "/run/strake/logd.sock";

/// The native journal socket, which `tracing-journald` and every other journal client write to (datagram).
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// The name of the log that holds the kernel's messages.
pub const KERNEL: &str = "kernel";

/// What a client asks of logd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Entries of one log, oldest first. Answered by [`Reply::Entry`] lines, then [`Reply::End`] unless `follow`.
    Query(Query),
    /// The logs there are. Answered by one [`Reply::Logs`].
    List,
    /// From now on keep the logs in this directory, and serve what earlier boots left there. Idempotent.
    /// Answered by one [`Reply::Done`], or an error when the directory cannot be used.
    Persist {
        /// An absolute path; it is created when it is missing.
        dir: String,
    },
}

/// Which entries of which log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Name of the log: a service, or [`KERNEL`].
    pub log: String,
    /// Only the last so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Stay and send what comes.
    #[serde(default)]
    pub follow: bool,
    /// Only entries at or after this wall-clock time, in microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_us: Option<u64>,
    /// Only entries of this boot.
    #[serde(default)]
    pub this_boot: bool,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reply {
    /// One log entry.
    Entry(Entry),
    /// This many entries were lost to the client, because it or a disk was too slow.
    Lost {
        /// How many.
        count: u64,
    },
    /// Nothing more follows.
    End,
    /// Answer to [`Request::List`].
    Logs {
        /// By name.
        logs: Vec<LogInfo>,
    },
    /// The request was done.
    Done,
    /// The request failed.
    Error {
        /// For people.
        message: String,
    },
}

/// One log entry. On disk it is the same JSON, one per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When logd received it: wall-clock microseconds since 1970.
    pub time_us: u64,
    /// When logd received it: microseconds since that boot, made to grow with every entry of a log, so that entries of one
    /// boot have an order whatever the wall clock did.
    #[serde(default)]
    pub boottime_us: u64,
    /// Which boot wrote it: the kernel's boot id without dashes.
    pub boot: String,
    /// syslog priority, 0 (emergency) to 7 (debug).
    pub priority: u8,
    /// The process that wrote it, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The message; invalid UTF-8 is replaced, long ones are cut.
    pub message: String,
    /// Further journal fields (`TARGET`, `CODE_FILE`, span fields…), without the leading `F_`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogInfo {
    /// Its name.
    pub name: String,
    /// Entries in memory.
    pub entries: u64,
    /// Entries that were lost since logd's start: too fast for the writer, or for the disk.
    pub dropped: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode_line};

    #[test]
    fn the_wire_form_is_the_documented_json() {
        let query = Request::Query(Query { log: "kubelet".into(), tail: Some(5), follow: true, ..Default::default() });
        let json = "{\"op\":\"query\",\"log\":\"kubelet\",\"tail\":5,\"follow\":true,\"this_boot\":false}\n";
        assert_eq!(String::from_utf8(encode_line(&query).unwrap()).unwrap(), json);
        assert_eq!(decode::<Request>(br#"{"op":"query","log":"kubelet","tail":5,"follow":true}"#).unwrap(), query);
        assert_eq!(decode::<Request>(br#"{"op":"list"}"#).unwrap(), Request::List);
        assert!(decode::<Request>(br#"{"op":"query","log":"a","bogus":1}"#).is_err());
    }

    #[test]
    fn an_entry_survives_the_wire() {
        let entry = Entry {
            time_us: 1,
            boottime_us: 2,
            boot: "b".into(),
            priority: 6,
            pid: Some(4),
            message: "two\nlines".into(),
            fields: BTreeMap::from([("TARGET".to_owned(), "x::y".to_owned())]),
        };
        let line = encode_line(&Reply::Entry(entry.clone())).unwrap();
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        assert_eq!(decode::<Reply>(&line).unwrap(), Reply::Entry(entry));
    }
}
