//! Which object a body says it is, before decoding it.

use super::cursor::{Cursor, Stop};
use super::decode::DecodeError;

/// `apiVersion` and `kind` of a body, empty when absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeMeta {
    /// `apiVersion`
    pub api_version: String,
    /// `kind`
    pub kind: String,
}

const GO_TYPE: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// Reads `apiVersion` and `kind` from the top of a JSON body. The error is what upstream prints after
/// `couldn't get version/kind; json parse error: `.
pub fn peek_type_meta(text: &[u8]) -> Result<TypeMeta, DecodeError> {
    match read(text) {
        Ok(Ok(meta)) => Ok(meta),
        // Go checks the syntax of the whole body first.
        Ok(Err(message)) => Err(DecodeError::syntax_or(text, DecodeError::Type(message))),
        Err(_) => Err(DecodeError::syntax_or(text, DecodeError::TooDeep)),
    }
}

fn read(text: &[u8]) -> Result<Result<TypeMeta, String>, Stop> {
    let mut cursor = Cursor::new(text);
    let mut meta = TypeMeta::default();
    let mut wrong = None;
    match cursor.next_byte()? {
        b'{' => {
            let mut first = true;
            while cursor.next_key(&mut first)? {
                let key = cursor.key_text();
                // encoding/json matches names without regard to case.
                let name = ["apiVersion", "kind"].into_iter().find(|n| key.eq_ignore_ascii_case(n));
                let target = match name {
                    Some("apiVersion") => &mut meta.api_version,
                    Some(_) => &mut meta.kind,
                    None => {
                        cursor.skip()?;
                        continue;
                    }
                };
                match cursor.next_byte()? {
                    b'"' => *target = cursor.string_owned()?,
                    c => {
                        if c != b'n' && wrong.is_none() {
                            wrong = Some(format!(
                                "json: cannot unmarshal {} into Go struct field .{} of type string",
                                describe(c),
                                name.unwrap_or("")
                            ));
                        }
                        cursor.skip()?;
                    }
                }
            }
        }
        b'n' => cursor.skip()?,
        c => {
            wrong = Some(format!("json: cannot unmarshal {} into Go value of type {GO_TYPE}", describe(c)));
            cursor.skip()?;
        }
    }
    cursor.end()?;
    Ok(match wrong {
        Some(message) => Err(message),
        None => Ok(meta),
    })
}

/// Go's name for the kind of value that begins with a byte.
pub(crate) fn describe(c: u8) -> &'static str {
    match c {
        b'{' => "object",
        b'[' => "array",
        b'"' => "string",
        b't' | b'f' => "bool",
        _ => "number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_body_says_it_is() {
        let ok = |t: &str| peek_type_meta(t.as_bytes()).map(|m| (m.api_version, m.kind)).map_err(|e| e.to_string());
        assert_eq!(ok(r#"{"kind":"Pod","spec":{"a":[1]},"apiVersion":"v1"}"#), Ok(("v1".into(), "Pod".into())));
        assert_eq!(ok("null"), Ok(Default::default()));
        assert_eq!(ok(r#"{"apiVersion":"v1","kind":null}"#), Ok(("v1".into(), String::new())));
        for (text, want) in [
            ("", "unexpected end of JSON input"),
            ("hello", "invalid character 'h' looking for beginning of value"),
            (r#"{"apiVersion":1,"kind":"x"}"#, "json: cannot unmarshal number into Go struct field .apiVersion of type string"),
            (r#"{"apiVersion":1,"kind":"x"}}"#, "invalid character '}' after top-level value"),
            (
                "[]",
                r#"json: cannot unmarshal array into Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#,
            ),
        ] {
            assert_eq!(ok(text), Err(want.to_owned()), "{text}");
        }
    }
}
