//! JSON messages, either one per packet (SOCK_SEQPACKET) or one per line (a stream), both with a size bound.

use std::io::{self, BufRead, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The largest packet on a SOCK_SEQPACKET socket. A receiver's buffer must have this size.
pub const MAX_PACKET: usize = 64 * 1024;

/// The largest line on a stream, the newline included.
pub const MAX_LINE: usize = 1024 * 1024;

/// Why a message could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The message is larger than its transport allows.
    #[error("message of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Size of the message, or of what was read of it.
        size: usize,
        /// The bound it broke.
        limit: usize,
    },
    /// The message is not the JSON that was expected.
    #[error("decode message")]
    Decode(#[source] serde_json::Error),
    /// The value cannot be written as JSON.
    #[error("encode message")]
    Encode(#[source] serde_json::Error),
    /// Reading from or writing to the transport failed.
    #[error("transfer message")]
    Transfer(#[source] io::Error),
}

/// Encodes one message for a packet socket.
pub fn encode_packet<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = serde_json::to_vec(message).map_err(CodecError::Encode)?;
    bounded(bytes, MAX_PACKET)
}

/// Encodes one message as a line, with its newline. JSON escapes newlines in strings, so a line is always one message.
pub fn encode_line<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = serde_json::to_vec(message).map_err(CodecError::Encode)?;
    bytes.push(b'\n');
    bounded(bytes, MAX_LINE)
}

/// Decodes one message: a packet, or a line with or without its newline.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_LINE {
        return Err(CodecError::TooLarge { size: bytes.len(), limit: MAX_LINE });
    }
    serde_json::from_slice(bytes).map_err(CodecError::Decode)
}

/// Writes one message as a line.
pub fn write_line<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), CodecError> {
    let line = encode_line(message)?;
    writer.write_all(&line).map_err(CodecError::Transfer)
}

/// Reads the next line's message; `None` when the stream ended between two lines.
pub fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead) -> Result<Option<T>, CodecError> {
    let mut line = Vec::new();
    let size = reader.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).map_err(CodecError::Transfer)?;
    if size == 0 {
        return Ok(None);
    }
    if size > MAX_LINE {
        return Err(CodecError::TooLarge { size, limit: MAX_LINE });
    }
    if line.last() != Some(&b'\n') {
        return Err(CodecError::Transfer(io::ErrorKind::UnexpectedEof.into()));
    }
    decode(&line).map(Some)
}

fn bounded(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, CodecError> {
    if bytes.len() > limit { Err(CodecError::TooLarge { size: bytes.len(), limit }) } else { Ok(bytes) }
}

/// Splits a stream into messages for callers that read by themselves (async ones): push what was read, then take messages
/// until there is none. Holds at most [`MAX_LINE`] bytes beyond the last push.
#[derive(Debug, Default)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl LineDecoder {
    /// Adds bytes read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete message; `None` when more bytes are needed. After an error the stream is out of step: close it.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        let pending = &self.buffer[self.start..];
        match pending.iter().position(|&b| b == b'\n') {
            Some(end) => {
                let message = decode(&pending[..end]);
                self.start += end + 1;
                message.map(Some)
            }
            None if pending.len() >= MAX_LINE => Err(CodecError::TooLarge { size: pending.len(), limit: MAX_LINE }),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_survive_any_chunking(messages in prop::collection::vec(".{0,40}", 0..10), chunk in 1usize..17) {
            let mut stream = Vec::new();
            for message in &messages {
                write_line(&mut stream, message).unwrap();
            }
            let mut decoder = LineDecoder::default();
            let mut seen: Vec<String> = Vec::new();
            for part in stream.chunks(chunk) {
                decoder.push(part);
                while let Some(message) = decoder.next_message().unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(&seen, &messages);

            let mut reader = io::BufReader::with_capacity(chunk, stream.as_slice());
            let mut read: Vec<String> = Vec::new();
            while let Some(message) = read_line(&mut reader).unwrap() {
                read.push(message);
            }
            prop_assert_eq!(&read, &messages);
        }

        #[test]
        fn any_bytes_decode_or_fail_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<crate::init::Request>(&bytes);
            let _ = decode::<crate::logd::Request>(&bytes);
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_both_ways() {
        let large = "x".repeat(MAX_LINE);
        assert!(matches!(encode_packet(&large), Err(CodecError::TooLarge { .. })));
        assert!(matches!(encode_line(&large), Err(CodecError::TooLarge { .. })));
        let mut stream = vec![b'1'; MAX_LINE + 10];
        assert!(matches!(read_line::<u64>(&mut stream.as_slice()), Err(CodecError::TooLarge { .. })));
        let mut decoder = LineDecoder::default();
        stream.pop();
        decoder.push(&stream);
        assert!(matches!(decoder.next_message::<u64>(), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn a_line_cut_off_by_the_end_of_the_stream_is_an_error_not_a_message() {
        assert!(matches!(read_line::<u64>(&mut b"12".as_slice()), Err(CodecError::Transfer(_))));
        assert!(matches!(read_line::<u64>(&mut b"".as_slice()), Ok(None)));
    }
}
