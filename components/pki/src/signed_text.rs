//! A text with its signature in front, in one file: a first line `# strake-signature: ` and the Ed25519 signature in base64, then the text, which
//! is signed byte for byte. To a reader of YAML the line is a comment.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{SigningKey, VerifyingKey};

const MARK: &str = "# strake-signature: ";

/// What is known of who wrote a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signed<'a> {
    /// One of the keys signed it; the text without the signature.
    By(&'a VerifyingKey, &'a str),
    /// It carries a signature that is none of these keys', or is of another text.
    Wrong,
    /// It carries none.
    Not,
}

/// The text with a signature in front; one that it carries already gives way.
pub fn sign(key: &SigningKey, text: &str) -> String {
    let text = split(text).map_or(text, |(_, text)| text);
    format!("{MARK}{}\n{text}", STANDARD.encode(key.sign(text.as_bytes())))
}

/// Looks whether one of these keys signed it.
pub fn check<'a>(keys: &'a [VerifyingKey], signed: &'a str) -> Signed<'a> {
    let Some((signature, text)) = split(signed) else { return Signed::Not };
    let signature = STANDARD.decode(signature.trim()).unwrap_or_default();
    match keys.iter().find(|key| key.verifies(text.as_bytes(), &signature)) {
        Some(key) => Signed::By(key, text),
        None => Signed::Wrong,
    }
}

fn split(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(MARK)?.split_once('\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (SigningKey, Vec<VerifyingKey>) {
        let key = SigningKey::generate().expect("generate");
        let public = VerifyingKey::all_from_pem(&key.public_pem()).expect("keys");
        (key, public)
    }

    #[test]
    fn a_text_is_believed_as_it_was_signed() {
        let ((key, public), (other, _)) = (pair(), pair());
        let signed = sign(&key, "kind: A\n");
        assert_eq!(check(&public, &signed), Signed::By(&public[0], "kind: A\n"));
        assert_eq!(sign(&key, &signed), signed, "signing again changes nothing");
        assert_eq!(check(&public, "kind: A\n"), Signed::Not);
        for wrong in [sign(&other, "kind: A\n"), signed.replace("kind: A", "kind: B"), signed.clone() + "x", format!("{MARK}x\nkind: A\n")]
        {
            assert_eq!(check(&public, &wrong), Signed::Wrong, "{wrong}");
        }
        assert_eq!(check(&[], &signed), Signed::Wrong);
    }

    proptest! {
        #[test]
        fn only_what_was_signed_is_believed(text in "\\PC{0,40}", other in "\\PC{0,40}") {
            let (key, public) = pair();
            let signed = sign(&key, &text);
            prop_assert!(matches!(check(&public, &signed), Signed::By(..)));
            let mixed = signed.split_once('\n').map(|(line, _)| format!("{line}\n{other}")).unwrap_or_default();
            prop_assert_eq!(matches!(check(&public, &mixed), Signed::By(..)), other == split(&signed).map(|(_, text)| text).unwrap_or_default());
        }
    }
}
