//! The schema table: every type of the Kubernetes API as data, read in place from a blob of offsets.
//!
//! [`Schema::builtin`] is the table of the built-in types, compiled from `data/schema.txt` at build time. Nothing here
//! allocates: a [`Type`] and a [`Field`] are a reference and a number. What the table says follows Go's types, because
//! Go's encoders define the wire: field order, which zero values are written, protobuf numbers.

pub(crate) mod compile;

use compile::{FIELD_WORDS, GROUP_WORDS, HEADER_WORDS, KIND_WORDS, MAGIC, POINTER, TYPE_WORDS, field_flags, type_flags};
use std::fmt;
use std::sync::{Arc, LazyLock};

/// A type of a [`Schema`]. Numbers of different schemas have nothing to do with each other, but the lowest
/// (scalars and special types) are the same in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

impl TypeId {
    /// Any JSON value.
    pub const ANY: TypeId = TypeId(0);
    /// A string.
    pub const STRING: TypeId = TypeId(5);
}

/// The shape of a type: how its values are decoded, kept and encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Any JSON value, kept as a tree.
    Any,
    /// A boolean.
    Bool,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A 64-bit float.
    Float64,
    /// A string, also of a named type.
    String,
    /// `[]byte`: base64 in JSON.
    Bytes,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`: seconds.
    Time,
    /// `metav1.MicroTime`: microseconds.
    MicroTime,
    /// `metav1.Duration`: nanoseconds.
    Duration,
    /// `runtime.RawExtension`: JSON text kept as it came.
    Raw,
    /// `metav1.FieldsV1`: JSON text kept as it came.
    FieldsV1,
    /// `apiextensions.JSON`: JSON text kept as it came.
    Json,
    /// A boolean or a JSON schema.
    SchemaOrBool,
    /// A JSON schema or a list of them.
    SchemaOrArray,
    /// A JSON schema or a list of strings.
    SchemaOrStringArray,
    /// A struct.
    Struct,
    /// A list.
    List,
    /// A map with string keys.
    Map,
}

const KINDS: [Kind; 21] = [
    Kind::Any,
    Kind::Bool,
    Kind::Int32,
    Kind::Int64,
    Kind::Float64,
    Kind::String,
    Kind::Bytes,
    Kind::Quantity,
    Kind::IntOrString,
    Kind::Time,
    Kind::MicroTime,
    Kind::Duration,
    Kind::Raw,
    Kind::FieldsV1,
    Kind::Json,
    Kind::SchemaOrBool,
    Kind::SchemaOrArray,
    Kind::SchemaOrStringArray,
    Kind::Struct,
    Kind::List,
    Kind::Map,
];

/// `+listType` of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    /// Not said; merging treats it as atomic.
    Unset,
    /// Replaced as a whole.
    Atomic,
    /// Scalars, each at most once.
    Set,
    /// Structs told apart by their keys ([`Type::list_keys`]).
    Map,
}

/// Group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// Empty for the core group.
    pub group: String,
    /// Such as `v1`.
    pub version: String,
    /// Such as `Pod`.
    pub kind: String,
}

impl Gvk {
    /// Of its parts.
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
    }

    /// `group/version`, or the version alone for the core group.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

/// `group/version`, or the version alone for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits an apiVersion into group and version. More than one slash is an error (upstream: `unexpected GroupVersion string`).
pub fn split_api_version(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        None => Some(("", api_version)),
        Some((_, version)) if version.contains('/') => None,
        Some((group, version)) => Some((group, version)),
    }
}

/// A table. Cloning costs nothing for the built-in one and a reference count otherwise.
#[derive(Clone)]
pub enum Schema {
    /// The built-in table.
    Builtin,
    /// A table made at run time, as for custom resources.
    Shared(Arc<Table>),
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Schema::Builtin => "Schema::Builtin",
            Schema::Shared(_) => "Schema::Shared",
        })
    }
}

/// A compiled table: the blob and where its parts begin.
pub struct Table {
    blob: Blob,
    types: usize,
    type_count: u32,
    fields: usize,
    wire: usize,
    groups: usize,
    kinds: usize,
    kind_count: usize,
    names: usize,
    name_count: usize,
    strings: usize,
}

enum Blob {
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

static BUILTIN: LazyLock<Table> = LazyLock::new(|| {
    Table::open(Blob::Static(include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin")))).expect("the build script wrote it")
});

impl Schema {
    /// The table of the built-in types.
    pub fn builtin() -> Schema {
        Schema::Builtin
    }

    /// Compiles a table from text (see [`compile`]). The error names the line.
    pub fn compile(text: &str) -> Result<Schema, String> {
        let blob = compile::compile(text).map_err(|e| e.0)?;
        Table::open(Blob::Owned(blob)).map(|t| Schema::Shared(Arc::new(t))).ok_or_else(|| "the table does not open".to_owned())
    }

    pub(crate) fn table(&self) -> &Table {
        match self {
            Schema::Builtin => &BUILTIN,
            Schema::Shared(table) => table,
        }
    }

    /// Whether two handles are of one table.
    pub fn same(&self, other: &Schema) -> bool {
        std::ptr::eq(self.table(), other.table())
    }

    /// The type of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let t = self.table();
        let (mut low, mut high) = (0, t.kind_count);
        while low < high {
            let mid = (low + high) / 2;
            let row = t.kinds + mid * KIND_WORDS * 4;
            let part = |i: usize| t.string_bytes(t.word(row + i * 4));
            let order =
                part(0).cmp(group.as_bytes()).then_with(|| part(1).cmp(version.as_bytes())).then_with(|| part(2).cmp(kind.as_bytes()));
            match order {
                std::cmp::Ordering::Equal => return Some(TypeId(t.word(row + 12))),
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
            }
        }
        None
    }

    /// The type of a kind in an apiVersion.
    pub fn kind_in(&self, api_version: &str, kind: &str) -> Option<TypeId> {
        let (group, version) = split_api_version(api_version)?;
        self.kind(group, version, kind)
    }

    /// Every kind as (group, version, kind, type), sorted.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &str, &str, TypeId)> {
        let t = self.table();
        (0..t.kind_count).map(move |i| t.kind_at(i))
    }

    /// The type of a name such as `core/v1.PodSpec`.
    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        let t = self.table();
        let (mut low, mut high) = (0, t.name_count);
        while low < high {
            let mid = (low + high) / 2;
            let id = TypeId(t.word(t.names + mid * 4));
            match self.ty(id).name().cmp(name) {
                std::cmp::Ordering::Equal => return Some(id),
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
            }
        }
        None
    }

    /// Every named type, sorted by name.
    pub fn named_types(&self) -> impl Iterator<Item = Type<'_>> {
        let t = self.table();
        (0..t.name_count).map(move |i| Type { table: t, id: TypeId(t.word(t.names + i * 4)) })
    }

    /// A type. A number that is not of this table reads as [`TypeId::ANY`].
    pub fn ty(&self, id: TypeId) -> Type<'_> {
        Type::of(self.table(), id)
    }
}

impl Table {
    fn open(blob: Blob) -> Option<Table> {
        let mut table = Table {
            blob,
            types: 0,
            type_count: 0,
            fields: 0,
            wire: 0,
            groups: 0,
            kinds: 0,
            kind_count: 0,
            names: 0,
            name_count: 0,
            strings: 0,
        };
        if table.bytes().len() < HEADER_WORDS * 4 || table.word(0) != MAGIC {
            return None;
        }
        let at = |i: usize| table.word(i * 4) as usize;
        let header: [usize; 14] = std::array::from_fn(at);
        [
            _,
            table.types,
            _,
            table.fields,
            _,
            table.wire,
            _,
            table.groups,
            _,
            table.kinds,
            table.kind_count,
            table.names,
            table.name_count,
            table.strings,
        ] = header;
        table.type_count = header[2] as u32;
        Some(table)
    }

    fn bytes(&self) -> &[u8] {
        match &self.blob {
            Blob::Static(b) => b,
            Blob::Owned(b) => b,
        }
    }

    #[inline]
    fn word(&self, at: usize) -> u32 {
        match self.bytes().get(at..at + 4) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        }
    }

    #[inline]
    fn half(&self, at: usize) -> u16 {
        match self.bytes().get(at..at + 2) {
            Some(&[a, b]) => u16::from_le_bytes([a, b]),
            _ => 0,
        }
    }

    fn string(&self, offset: u32) -> &str {
        std::str::from_utf8(self.string_bytes(offset)).unwrap_or("")
    }

    #[inline]
    fn string_bytes(&self, offset: u32) -> &[u8] {
        let at = self.strings + offset as usize;
        let len = usize::from(self.half(at));
        self.bytes().get(at + 2..at + 2 + len).unwrap_or(&[])
    }

    fn kind_at(&self, i: usize) -> (&str, &str, &str, TypeId) {
        let at = self.kinds + i * KIND_WORDS * 4;
        (self.string(self.word(at)), self.string(self.word(at + 4)), self.string(self.word(at + 8)), TypeId(self.word(at + 12)))
    }
}

/// A type of a table.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    table: &'a Table,
    id: TypeId,
}

impl fmt::Debug for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Type({})", self.go_name())
    }
}

/// An instruction of the order in which a struct's message is written: see [`Type::wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// The field with this index.
    Field(u16),
    /// An embedded message begins: its number.
    Begin(u32),
    /// It ends.
    End,
}

impl<'a> Type<'a> {
    pub(crate) fn of(table: &'a Table, id: TypeId) -> Type<'a> {
        Type { table, id: if id.0 < table.type_count { id } else { TypeId::ANY } }
    }

    #[inline]
    fn at(&self, word: usize) -> u32 {
        self.table.word(self.table.types + (self.id.0 as usize * TYPE_WORDS + word) * 4)
    }

    /// Its number.
    pub fn id(&self) -> TypeId {
        self.id
    }

    /// Its shape.
    #[inline]
    pub fn kind(&self) -> Kind {
        KINDS.get(usize::from(self.at(0) as u8)).copied().unwrap_or(Kind::Any)
    }

    fn flags(&self) -> u8 {
        (self.at(0) >> 8) as u8
    }

    /// Its name in the table, such as `core/v1.PodSpec`; empty for lists, maps and scalars without one.
    pub fn name(&self) -> &'a str {
        self.table.string(self.at(1))
    }

    /// What Go's reflection calls it, as in decoding errors: `v1.PodSpec`, `[]v1.Container`, `int32`.
    pub fn go_name(&self) -> &'a str {
        self.table.string(self.at(2))
    }

    /// [`Self::go_name`] without its package: `PodSpec`.
    pub fn short_name(&self) -> &'a str {
        let name = self.go_name();
        name.rsplit('.').next().unwrap_or(name)
    }

    /// A list's or map's element. [`TypeId::ANY`] for anything else.
    #[inline]
    pub fn elem(&self) -> TypeId {
        TypeId(self.at(3) & !POINTER)
    }

    /// Whether elements are pointers, so that they may be null.
    pub fn elem_is_pointer(&self) -> bool {
        self.at(3) & POINTER != 0
    }

    /// A struct replaced as a whole by merging, or a map (`+structType=atomic`).
    pub fn is_atomic(&self) -> bool {
        self.flags() & type_flags::ATOMIC != 0
    }

    /// A struct that may have fields beside those that are declared.
    pub fn is_open(&self) -> bool {
        self.flags() & type_flags::OPEN != 0
    }

    /// A named list that is a message of its own in protobuf.
    pub fn is_wrapped(&self) -> bool {
        self.flags() & type_flags::WRAPPED != 0
    }

    /// `+listType`.
    pub fn list_type(&self) -> ListType {
        match (self.at(0) >> 16) as u8 {
            1 => ListType::Atomic,
            2 => ListType::Set,
            3 => ListType::Map,
            _ => ListType::Unset,
        }
    }

    /// `+listMapKey`s.
    pub fn list_keys(&self) -> impl Iterator<Item = &'a str> {
        self.table.string(self.at(9)).split(',').filter(|k| !k.is_empty())
    }

    /// A `+enum`: [`Self::values`] are all there are.
    pub fn is_enum(&self) -> bool {
        self.flags() & type_flags::ENUM != 0
    }

    /// The declared constants of a named string.
    pub fn values(&self) -> impl Iterator<Item = &'a str> {
        self.table.string(self.at(10)).split(',').filter(|v| !v.is_empty())
    }

    /// How many fields a struct has.
    pub fn field_count(&self) -> u16 {
        self.at(5) as u16
    }

    /// A struct's field by index, in Go's order.
    #[inline]
    pub fn field_at(&self, index: u16) -> Option<Field<'a>> {
        (index < self.field_count()).then(|| Field { table: self.table, row: self.at(4) + u32::from(index), index, owner: self.id })
    }

    /// A struct's fields in Go's order, embedded ones in their place.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + use<'a> {
        let this = *self;
        (0..this.field_count()).filter_map(move |i| this.field_at(i))
    }

    /// A struct's field by JSON name.
    pub fn field(&self, name: &str) -> Option<Field<'a>> {
        self.field_near(name, 0)
    }

    /// [`Self::field`], looking first from an index on, where it is when fields come in Go's order.
    pub(crate) fn field_near(&self, name: &str, from: u16) -> Option<Field<'a>> {
        let (first, count) = (self.at(4), usize::from(self.field_count()));
        let start = self.table.fields + first as usize * FIELD_WORDS * 4;
        let rows = self.table.bytes().get(start..start + count * FIELD_WORDS * 4)?;
        let hash = compile::name_hash(name.as_bytes()).to_le_bytes();
        let found = |range: std::ops::Range<usize>| {
            let mut part = rows.get(range.start * FIELD_WORDS * 4..range.end * FIELD_WORDS * 4)?.chunks_exact(FIELD_WORDS * 4).enumerate();
            part.find_map(|(i, row)| {
                if row.last_chunk::<4>() != Some(&hash) {
                    return None;
                }
                let index = (range.start + i) as u16;
                let field = Field { table: self.table, row: first + u32::from(index), index, owner: self.id };
                (field.name_bytes() == name.as_bytes()).then_some(field)
            })
        };
        let from = usize::from(from).min(count);
        found(from..count).or_else(|| found(0..from))
    }

    /// Whether this is a kind's struct: it embeds TypeMeta, and so has `kind` and `apiVersion` first.
    pub fn has_type_meta(&self) -> bool {
        self.kind() == Kind::Struct
            && self.field_at(0).is_some_and(|f| f.name() == "kind" && f.proto_number() == 0)
            && self.field_at(1).is_some_and(|f| f.name() == "apiVersion")
    }

    /// The order of the struct's protobuf message.
    pub fn wire(&self) -> impl Iterator<Item = Wire> + use<'a> {
        let this = *self;
        let start = this.at(6) as usize;
        (0..this.at(7) as usize).map(move |i| this.wire_at(start + i))
    }

    /// Finds a number in the level of the wire order that begins at `from`, looking first at `hint` and after it: where it
    /// is and what. Numbers come in order, so that is where it mostly is.
    pub(crate) fn wire_find(&self, from: usize, hint: usize, number: u32) -> Option<(usize, Wire)> {
        let (start, len) = (self.at(6) as usize, self.at(7) as usize);
        let words = self.table.bytes().get(self.table.wire + start * 4..self.table.wire + (start + len) * 4)?;
        for begin in [hint, from] {
            let mut nested = 0usize;
            for (i, word) in words.get(begin * 4..)?.chunks_exact(4).enumerate() {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                if nested == 0 && word >> 16 == number && word & 0x8000 == 0 {
                    return Some((begin + i, self.decode_wire(word)));
                }
                match word & 0xc000 {
                    0x8000 if nested == 0 => break,
                    0x8000 => nested -= 1,
                    0x4000 => nested += 1,
                    _ => {}
                }
            }
        }
        None
    }

    fn wire_at(&self, at: usize) -> Wire {
        self.decode_wire(self.table.word(self.table.wire + at * 4))
    }

    fn decode_wire(&self, word: u32) -> Wire {
        match word & 0xc000 {
            0x8000 => Wire::End,
            0x4000 => Wire::Begin(word >> 16),
            _ => Wire::Field(word as u16),
        }
    }
}

/// A field of a struct.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    table: &'a Table,
    row: u32,
    index: u16,
    owner: TypeId,
}

impl fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Field({})", self.name())
    }
}

impl<'a> Field<'a> {
    #[inline]
    fn at(&self, word: usize) -> u32 {
        self.table.word(self.table.fields + (self.row as usize * FIELD_WORDS + word) * 4)
    }

    /// Its place in Go's order.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its JSON name.
    pub fn name(&self) -> &'a str {
        self.table.string(self.at(0))
    }

    /// [`Self::name`], without the cost of checking that it is text.
    #[inline]
    pub(crate) fn name_bytes(&self) -> &'a [u8] {
        self.table.string_bytes(self.at(0))
    }

    /// Whether Go leaves the field out when it is absent.
    #[inline]
    pub(crate) fn skip_absent(&self) -> bool {
        self.flag(field_flags::SKIP_ABSENT)
    }

    /// The type of its value.
    pub fn type_id(&self) -> TypeId {
        TypeId(self.at(1))
    }

    /// The type of its value.
    pub fn ty(&self) -> Type<'a> {
        Type::of(self.table, self.type_id())
    }

    /// Its number within its message; 0 for what has none (TypeMeta).
    pub fn proto_number(&self) -> u32 {
        self.at(2) & 0xffff
    }

    /// The Go names of the embedded structs it stands in, outermost first: Go's decoding errors name them.
    pub fn embedded_in(&self) -> Vec<&'a str> {
        let owner = Type::of(self.table, self.owner);
        let mut group = self.at(2) >> 16;
        let mut names = Vec::new();
        while group != 0 {
            let row = (owner.at(8) + group - 1) as usize;
            let at = self.table.groups + row * GROUP_WORDS * 4;
            names.push(self.table.string(self.table.word(at + 12)));
            group = self.table.word(at + 8);
        }
        names.reverse();
        if self.proto_number() == 0 && owner.has_type_meta() && self.index < 2 {
            names.push("TypeMeta");
        }
        names
    }

    fn flag(&self, flag: u32) -> bool {
        self.at(3) & flag != 0
    }

    /// A pointer: absent and zero differ.
    pub fn is_pointer(&self) -> bool {
        self.flag(field_flags::POINTER)
    }

    /// `omitempty`.
    pub fn omit_empty(&self) -> bool {
        self.flag(field_flags::OMIT_EMPTY)
    }

    /// `omitzero`.
    pub fn omit_zero(&self) -> bool {
        self.flag(field_flags::OMIT_ZERO)
    }

    /// Required in OpenAPI: neither `omitempty` nor `+optional`.
    pub fn required(&self) -> bool {
        self.flag(field_flags::REQUIRED) || !(self.flag(field_flags::OPTIONAL) || self.omit_empty())
    }

    /// `+optional`.
    pub fn optional(&self) -> bool {
        self.flag(field_flags::OPTIONAL)
    }

    /// Replaced as a whole by server-side apply, by a marker on the field or on its type.
    pub fn is_atomic(&self) -> bool {
        self.flag(field_flags::ATOMIC) || self.ty().is_atomic()
    }

    /// `+k8s:immutable`.
    pub fn immutable(&self) -> bool {
        self.flag(field_flags::IMMUTABLE)
    }

    /// `patchStrategy` names `merge`.
    pub fn patch_merge(&self) -> bool {
        self.flag(field_flags::PATCH_MERGE)
    }

    /// `patchStrategy` names `retainKeys`.
    pub fn patch_retain_keys(&self) -> bool {
        self.flag(field_flags::PATCH_RETAIN_KEYS)
    }

    /// `patchMergeKey`.
    pub fn patch_merge_key(&self) -> Option<&'a str> {
        Some(self.table.string(self.at(4))).filter(|k| !k.is_empty())
    }

    /// `+default`, as JSON text.
    pub fn default_json(&self) -> Option<&'a str> {
        Some(self.table.string(self.at(5))).filter(|k| !k.is_empty())
    }

    /// `+k8s:` validation markers as `key=value`.
    pub fn markers(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.table.string(self.at(6)).split(' ').filter_map(|m| m.split_once('='))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_fields_and_relations_are_found() {
        let s = Schema::builtin();
        assert!(s.kinds().count() > 300);
        let deployment = s.ty(s.kind("apps", "v1", "Deployment").unwrap());
        assert_eq!(deployment.go_name(), "v1.Deployment");
        assert!(deployment.has_type_meta());
        let names: Vec<&str> = deployment.fields().map(|f| f.name()).collect();
        assert_eq!(names, ["kind", "apiVersion", "metadata", "spec", "status"]);
        let replicas = deployment.field("spec").unwrap().ty().field("replicas").unwrap();
        assert!(replicas.is_pointer() && replicas.omit_empty() && replicas.proto_number() == 1);
        assert_eq!(replicas.ty().kind(), Kind::Int32);
        let pod_spec = s.ty(s.type_named("core/v1.PodSpec").unwrap());
        let containers = pod_spec.field("containers").unwrap();
        assert_eq!(containers.ty().list_type(), ListType::Map);
        assert_eq!(containers.ty().list_keys().collect::<Vec<_>>(), ["name"]);
        assert_eq!(containers.patch_merge_key(), Some("name"));
        assert_eq!(containers.ty().go_name(), "[]v1.Container");
        assert!(pod_spec.field("nope").is_none());
        let protocol = s.ty(s.type_named("core/v1.ContainerPort").unwrap()).field("protocol").unwrap();
        assert_eq!(protocol.default_json(), Some("\"TCP\""));
        assert!(protocol.ty().is_enum());
        assert_eq!(protocol.ty().values().collect::<Vec<_>>(), ["TCP", "UDP", "SCTP"]);
    }

    #[test]
    fn embedded_structs_are_flat_in_json_and_nested_on_the_wire() {
        let s = Schema::builtin();
        let volume = s.ty(s.type_named("core/v1.Volume").unwrap());
        let empty_dir = volume.field("emptyDir").unwrap();
        assert_eq!(empty_dir.embedded_in(), ["VolumeSource"]);
        let wire: Vec<Wire> = volume.wire().collect();
        assert_eq!(wire[..3], [Wire::Field(0), Wire::Begin(2), Wire::Field(1)]);
        assert_eq!(wire.last(), Some(&Wire::End));
        let rule = s.ty(s.type_named("admissionregistration/v1.NamedRuleWithOperations").unwrap());
        assert_eq!(rule.field("apiGroups").unwrap().embedded_in(), ["RuleWithOperations", "Rule"]);
    }
}
