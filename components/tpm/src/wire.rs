//! Big-endian fields and sized buffers. Reading believes no length that the bytes do not bear out.

use crate::MAX_MESSAGE;

/// What cannot be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than a message may be.
    #[error("a message of {0} bytes, at most {MAX_MESSAGE} are taken")]
    TooLong(usize),
    /// It ends too early.
    #[error("the TPM's answer ends too early")]
    Short,
    /// More than there should be, or not what it should be.
    #[error("the TPM's answer has a wrong {0}")]
    Malformed(&'static str),
}

/// Writes a message. Too long a one is found out when it is finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A `TPM2B`: the length in two bytes, then the bytes.
    pub(crate) fn sized(self, bytes: &[u8]) -> Self {
        // A longer one makes the message too long, which `finish` refuses.
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX)).bytes(bytes)
    }

    /// Puts tag and size in front, as every command begins.
    pub(crate) fn finish(self, tag: u16, code: u32) -> Result<Vec<u8>, WireError> {
        let size = self.0.len() + 10;
        let length = u32::try_from(size).ok().filter(|_| size <= MAX_MESSAGE).ok_or(WireError::TooLong(size))?;
        Ok(Self::default().u16(tag).u32(length).u32(code).bytes(&self.0).0)
    }
}

/// Reads a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[value]| value)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn sized(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u16()?;
        self.bytes(length.into())
    }
}

/// What came back for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u32,
    /// The handle in front of the parameters, for commands that have one.
    pub(crate) handle: u32,
    pub(crate) parameters: Vec<u8>,
}

/// Reads an answer to a command that was sent with or without sessions.
pub(crate) fn answer(message: &[u8], has_handle: bool) -> Result<Answer, WireError> {
    if message.len() > MAX_MESSAGE {
        return Err(WireError::TooLong(message.len()));
    }
    let mut reader = Reader(message);
    let (tag, size, code) = (reader.u16()?, reader.u32()?, reader.u32()?);
    if usize::try_from(size) != Ok(message.len()) {
        return Err(WireError::Malformed("size"));
    }
    if code != 0 {
        return Ok(Answer { code, handle: 0, parameters: Vec::new() });
    }
    let handle = if has_handle { reader.u32()? } else { 0 };
    let parameters = match tag {
        NO_SESSIONS => reader.0,
        SESSIONS => {
            let length = reader.u32()?;
            reader.bytes(usize::try_from(length).map_err(|_| WireError::Short)?)?
        }
        _ => return Err(WireError::Malformed("tag")),
    };
    Ok(Answer { code, handle, parameters: parameters.to_vec() })
}

/// `TPM_ST_NO_SESSIONS` and `TPM_ST_SESSIONS`.
pub(crate) const NO_SESSIONS: u16 = 0x8001;
pub(crate) const SESSIONS: u16 = 0x8002;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let long = Writer::default().sized(&vec![0; 70_000]);
        assert_eq!(long.finish(NO_SESSIONS, 1), Err(WireError::TooLong(70_012)));
        let message = Writer::default().u8(7).sized(b"ab").finish(NO_SESSIONS, 0x17e).unwrap();
        assert_eq!(message, [0x80, 1, 0, 0, 0, 15, 0, 0, 1, 0x7e, 7, 0, 2, b'a', b'b']);
    }

    #[test]
    fn an_answer_is_taken_apart_as_its_tag_says() {
        let plain = Writer::default().u32(0x80ff_ffff).bytes(b"params").finish(NO_SESSIONS, 0).unwrap();
        assert_eq!(answer(&plain, true).unwrap(), Answer { code: 0, handle: 0x80ff_ffff, parameters: b"params".to_vec() });
        let with = Writer::default().u32(6).bytes(b"paramsSESSION").finish(SESSIONS, 0).unwrap();
        assert_eq!(answer(&with, false).unwrap().parameters, b"params");
        let lies = Writer::default().u32(60).bytes(b"params").finish(SESSIONS, 0).unwrap();
        assert_eq!(answer(&lies, false), Err(WireError::Short));
        let refused = Writer::default().finish(NO_SESSIONS, 0x1df).unwrap();
        assert_eq!(answer(&refused, true).unwrap().code, 0x1df);
        assert_eq!(answer(&plain[..plain.len() - 1], true), Err(WireError::Malformed("size")));
    }

    proptest! {
        #[test]
        fn no_answer_does_more_than_fail(message in proptest::collection::vec(any::<u8>(), 0..200), has_handle: bool) {
            let _ = answer(&message, has_handle);
            let mut sized = message.clone();
            if let Some(field) = sized.get_mut(..6) {
                field.copy_from_slice(&[0x80, 2, 0, 0, 0, message.len() as u8]);
                if let Some(code) = sized.get_mut(6..10) {
                    code.fill(0);
                }
                if let Ok(answer) = answer(&sized, has_handle) {
                    prop_assert!(answer.parameters.len() <= message.len());
                }
            }
        }

        #[test]
        fn what_is_written_is_read(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let written = parts.iter().fold(Writer::default(), |writer, part| writer.sized(part));
            let mut reader = Reader(&written.0);
            for part in &parts {
                prop_assert_eq!(reader.sized().unwrap(), &part[..]);
            }
            prop_assert_eq!(reader.sized(), Err(WireError::Short));
        }
    }
}
