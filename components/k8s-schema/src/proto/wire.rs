//! Protobuf's wire format: varints, tags, and a reader that cannot run past its end.

/// Wire types in use.
pub const VARINT: u32 = 0;
pub const FIXED64: u32 = 1;
pub const BYTES: u32 = 2;
pub const FIXED32: u32 = 5;

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends a field's tag.
pub fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u32) {
    put_varint(out, u64::from(number << 3 | wire_type));
}

/// Appends a length-delimited field.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The length of a length-delimited field whose number is below 16.
pub fn field_len(content: usize) -> usize {
    // Seven bits a byte.
    let prefix = (content.max(1).ilog2() / 7 + 1) as usize;
    1 + prefix + content
}

/// Appends a varint field.
pub fn put_uint(out: &mut Vec<u8>, number: u32, v: u64) {
    put_tag(out, number, VARINT);
    put_varint(out, v);
}

/// Begins a length-delimited field whose length is not known yet: one byte is left for it.
pub fn begin(out: &mut Vec<u8>, number: u32) -> usize {
    put_tag(out, number, BYTES);
    out.push(0);
    out.len()
}

/// Ends it: writes the length, moving the content when that takes more than the one byte.
pub fn end(out: &mut Vec<u8>, start: usize) {
    let len = out.len() - start;
    if len < 0x80 {
        out[start - 1] = len as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(5);
    put_varint(&mut prefix, len as u64);
    let more = prefix.len() - 1;
    let old_end = out.len();
    out.resize(old_end + more, 0);
    out.copy_within(start..old_end, start + more);
    out[start - 1..start + more].copy_from_slice(&prefix);
}

/// Reads a message; the errors are those of upstream's generated code.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    pub at: usize,
    pub end: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, end: bytes.len() }
    }

    pub fn part(bytes: &'a [u8], at: usize, end: usize) -> Self {
        Reader { bytes, at, end: end.min(bytes.len()) }
    }

    pub fn done(&self) -> bool {
        self.at >= self.end
    }

    pub fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            if self.done() {
                return Err("unexpected EOF".to_owned());
            }
            let b = self.bytes[self.at];
            self.at += 1;
            if shift < 64 {
                value |= u64::from(b & 0x7f) << shift;
            }
            if b < 0x80 {
                return Ok(value);
            }
        }
        Err("proto: integer overflow".to_owned())
    }

    /// A field's number and wire type.
    pub fn tag(&mut self) -> Result<(u32, u32), String> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "proto: integer overflow".to_owned())?;
        let wire_type = (tag & 7) as u32;
        if wire_type == 4 {
            return Err("proto: wiretype end group for non-group".to_owned());
        }
        if number == 0 {
            return Err(format!("proto: illegal tag {number} (wire type {wire_type})"));
        }
        Ok((number, wire_type))
    }

    /// The extent of a length-delimited value, which is passed over.
    pub fn bytes(&mut self) -> Result<(usize, usize), String> {
        let len = self.varint()?;
        if len > i32::MAX as u64 {
            return Err("proto: negative length found during unmarshaling".to_owned());
        }
        let start = self.at;
        let end = start + len as usize;
        if end > self.end {
            return Err("unexpected EOF".to_owned());
        }
        self.at = end;
        Ok((start, end))
    }

    pub fn fixed64(&mut self) -> Result<u64, String> {
        match self.bytes.get(self.at..self.at + 8) {
            Some(&[a, b, c, d, e, f, g, h]) if self.at + 8 <= self.end => {
                self.at += 8;
                Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => Err("unexpected EOF".to_owned()),
        }
    }

    /// Passes over a value that nobody knows.
    pub fn skip(&mut self, wire_type: u32) -> Result<(), String> {
        match wire_type {
            VARINT => self.varint().map(|_| ()),
            FIXED64 => self.fixed64().map(|_| ()),
            BYTES => self.bytes().map(|_| ()),
            FIXED32 if self.at + 4 <= self.end => {
                self.at += 4;
                Ok(())
            }
            FIXED32 => Err("unexpected EOF".to_owned()),
            // Groups are not used anywhere in the API; upstream skips them, nested ones too.
            3 => {
                let mut depth = 1usize;
                while depth > 0 {
                    let tag = self.varint()?;
                    match (tag & 7) as u32 {
                        3 => depth += 1,
                        4 => depth -= 1,
                        other => self.skip_scalar(other)?,
                    }
                }
                Ok(())
            }
            _ => Err(format!("proto: illegal wireType {wire_type}")),
        }
    }

    fn skip_scalar(&mut self, wire_type: u32) -> Result<(), String> {
        if wire_type == 3 { Err("proto: unexpected end of group".to_owned()) } else { self.skip(wire_type) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_any_size_are_patched_in() {
        for len in [0usize, 1, 127, 128, 20_000, 3_000_000] {
            let mut out = vec![9];
            let start = begin(&mut out, 3);
            out.extend(std::iter::repeat_n(7u8, len));
            end(&mut out, start);
            out.push(8);
            let mut want = vec![9];
            put_bytes(&mut want, 3, &vec![7u8; len]);
            want.push(8);
            assert!(out == want, "{len}");
        }
    }
}
