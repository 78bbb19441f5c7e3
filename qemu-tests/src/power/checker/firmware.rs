//! The loader's variables in the firmware's store: EDK II's format for flash, a firmware volume with a list of variables in it that only
//! grows (MdeModulePkg, `VariableFormat.h`). A variable counts when its state says that it was added; one that is being replaced counts
//! until its successor was added. The store is read as the firmware does after power came back; what its fault-tolerant write driver
//! does when the list is full and is written anew is not followed.

/// systemd's vendor UUID, as it is stored.
const VENDOR: [u8; 16] = [0x82, 0xb0, 0x67, 0x4a, 0x4c, 0x0a, 0xcf, 0x41, 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f];
/// The format of a store whose variables may be authenticated.
const AUTHENTICATED: [u8; 16] = [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;
const VARIABLE: [u8; 2] = [0xaa, 0x55];
/// The states' bits are cleared one after the other, as flash allows it.
const ADDED: u8 = 0x3f;
const BEING_REPLACED: u8 = 0x3e;

/// What the loader is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoaderVariables {
    /// The entry to start once.
    pub one_shot: Option<String>,
    /// The entry that somebody made the default in the loader's menu.
    pub default: Option<String>,
}

impl LoaderVariables {
    /// Reads them.
    pub fn read(store: &[u8]) -> Result<Self, &'static str> {
        let list = list(store)?;
        let find = |name| text(list, name);
        Ok(Self { one_shot: find(slots::loader::ONE_SHOT), default: find(slots::loader::DEFAULT) })
    }
}

/// The bytes that variables follow each other in.
fn list(store: &[u8]) -> Result<&[u8], &'static str> {
    let volume = store.get(40..50).filter(|bytes| bytes.starts_with(b"_FVH")).ok_or("it is no firmware volume")?;
    let length = usize::from(u16::from_le_bytes([volume[8], volume[9]]));
    let header = store.get(length..length + STORE_HEADER).ok_or("it ends in its header")?;
    // Formatted, and healthy.
    if header[..16] != AUTHENTICATED || header[20] != 0x5a || header[21] != 0xfe {
        return Err("its list of variables is not one of authenticated variables");
    }
    let size = number(header, 16).ok_or("it ends in its header")?;
    let end = length.saturating_add(size).min(store.len());
    store.get(length + STORE_HEADER..end).ok_or("its size is wrong")
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// The text of one of the loader's variables.
fn text(list: &[u8], name: &str) -> Option<String> {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let mut at = 0;
    let mut replaced = None;
    // A variable's place counts from the store, whose header has a multiple of four bytes.
    while let Some(header) = list.get(at..at + VARIABLE_HEADER).filter(|header| header.starts_with(&VARIABLE)) {
        let (state, own_name, data) = (header[2], number(header, 36)?, number(header, 40)?);
        let begin = at + VARIABLE_HEADER;
        let end = begin.checked_add(own_name)?.checked_add(data)?;
        let Some(content) = list.get(begin..end) else { break };
        if header[44..60] == VENDOR && content.starts_with(&name) && own_name == name.len() {
            let units = content[own_name..].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let value = char::decode_utf16(units.take_while(|unit| *unit != 0)).collect::<Result<String, _>>().ok();
            match state {
                ADDED => return value,
                BEING_REPLACED => replaced = value,
                _ => {}
            }
        }
        at = end.next_multiple_of(4);
    }
    replaced
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A store with these variables: name, state, text.
    pub fn store(variables: &[(&str, u8, &str)]) -> Vec<u8> {
        let mut store = vec![0xff; 0x4000];
        store[..72].fill(0);
        store[40..44].copy_from_slice(b"_FVH");
        store[48..50].copy_from_slice(&72u16.to_le_bytes());
        store[72..88].copy_from_slice(&AUTHENTICATED);
        store[88..92].copy_from_slice(&0x3000u32.to_le_bytes());
        store[92..100].copy_from_slice(&[0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
        let mut at = 100;
        for (name, state, text) in variables {
            let bytes = |text: &str| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
            let (name, text) = (bytes(name), bytes(text));
            let mut header = vec![0; VARIABLE_HEADER];
            header[..3].copy_from_slice(&[0xaa, 0x55, *state]);
            header[36..40].copy_from_slice(&(name.len() as u32).to_le_bytes());
            header[40..44].copy_from_slice(&(text.len() as u32).to_le_bytes());
            header[44..].copy_from_slice(&VENDOR);
            let all = [header, name, text].concat();
            store[at..at + all.len()].copy_from_slice(&all);
            at = (at + all.len()).next_multiple_of(4);
        }
        store
    }

    #[test]
    fn the_vendors_are_the_published_ones() {
        let stored = |text: &str| uuid::Uuid::parse_str(text).unwrap().to_bytes_le();
        assert_eq!(VENDOR, stored("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"));
        assert_eq!(AUTHENTICATED, stored("aaf32c78-947b-439a-a180-2e144ec37792"));
    }

    #[test]
    fn a_variable_counts_when_it_was_added_and_the_old_one_until_then() {
        const ONCE: &str = "LoaderEntryOneShot";
        for (variables, expected) in [
            (&[][..], None),
            (&[(ONCE, ADDED, "b")], Some("b")),
            (&[("LoaderEntryOneSho", ADDED, "b"), (ONCE, ADDED, "c")], Some("c")),
            // Its header is there, its data is not; and one that was deleted.
            (&[(ONCE, 0x7f, "b")], None),
            (&[(ONCE, 0x3c, "b")], None),
            (&[(ONCE, BEING_REPLACED, "a"), (ONCE, 0x7f, "b")], Some("a")),
            (&[(ONCE, BEING_REPLACED, "a"), (ONCE, ADDED, "b")], Some("b")),
        ] {
            assert_eq!(LoaderVariables::read(&store(variables)).unwrap().one_shot.as_deref(), expected, "{variables:?}");
        }
        let both = LoaderVariables::read(&store(&[("LoaderEntryDefault", ADDED, "x"), (ONCE, ADDED, "y")])).unwrap();
        assert_eq!((both.default.as_deref(), both.one_shot.as_deref()), (Some("x"), Some("y")));
        let mut damaged = store(&[]);
        damaged[93] = 0xff;
        assert!(LoaderVariables::read(&damaged).is_err());
        assert!(LoaderVariables::read(&[]).is_err());
    }

    proptest! {
        #[test]
        fn no_store_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 100..300usize) {
            let mut store = store(&[("LoaderEntryOneShot", ADDED, "b")]);
            store[at..at + bytes.len()].copy_from_slice(&bytes);
            let _ = LoaderVariables::read(&store);
            store.truncate(at);
            let _ = LoaderVariables::read(&store);
        }
    }
}
