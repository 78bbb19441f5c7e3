//! The parts of the Kubernetes API the kubelet reads and writes, as narrow owned structs.
//!
//! Only fields the kubelet uses are here; everything else in an object is dropped on decode. Objects decoded this way are never put back as a
//! whole: the kubelet patches, creates (mirror pods from their full manifest) and deletes.

pub mod node;
pub mod pod;
pub mod quantity;
pub mod status;
pub mod time;

use serde::{Deserialize, Deserializer};

/// Whether a field holds its zero value, which is then left out of the encoding.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads `null` as the zero value, as Go's decoder does.
pub(crate) fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Declares a JSON object: camelCase names, absent and null fields are zero values, zero values are left out when writing.
macro_rules! object {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {$(
            $(#[$fmeta])*
            #[serde(skip_serializing_if = "crate::model::is_default", deserialize_with = "crate::model::null_default")]
            pub $field: $ty,
        )*}
    )*};
}
pub(crate) use object;
