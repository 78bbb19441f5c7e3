//! EFI signature lists (UEFI 2.10, section 32.4.1): the form in which the firmware keeps certificates. One list per certificate, because a
//! list's entries are all equally long.

use uuid::{Uuid, uuid};

/// The certificate is X.509 in DER.
const X509: Uuid = uuid!("a5c059a1-94e4-4aa7-87b5-ab155c2bf072");
/// Type, three lengths, and in front of the certificate its owner.
const HEADER: usize = 16 + 3 * 4;
const OWNER: usize = 16;

/// The lists of these certificates (owner, DER), one behind the other. Nothing when one is longer than the form allows.
pub fn render(certificates: &[(Uuid, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (owner, der) in certificates {
        let entry = u32::try_from(OWNER + der.len()).ok()?;
        let list = u32::try_from(HEADER + OWNER + der.len()).ok()?;
        out.extend(X509.to_bytes_le());
        out.extend(list.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(entry.to_le_bytes());
        out.extend(owner.to_bytes_le());
        out.extend(der);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_the_lengths_and_the_byte_order_of_the_specification() {
        let owner = uuid!("77fa9abd-0359-4d32-bd60-28f4e78f784b");
        let list = render(&[(owner, vec![0x30, 1, 2])]).unwrap();
        let expected = [
            // a5c059a1-94e4-4aa7-87b5-ab155c2bf072, the first three groups in little endian.
            &[0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72][..],
            &[47, 0, 0, 0, 0, 0, 0, 0, 19, 0, 0, 0],
            &[0xbd, 0x9a, 0xfa, 0x77, 0x59, 0x03, 0x32, 0x4d, 0xbd, 0x60, 0x28, 0xf4, 0xe7, 0x8f, 0x78, 0x4b],
            &[0x30, 1, 2],
        ];
        assert_eq!(list, expected.concat());
        assert_eq!(render(&[(owner, vec![1]), (owner, vec![1, 2])]).unwrap().len(), 45 + 46);
        assert_eq!(render(&[]), Some(Vec::new()));
    }
}
