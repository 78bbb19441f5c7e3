//! Compiles the table's text into the blob that [`super::Schema`] reads in place.
//!
//! Used by the build script for the built-in table, so that at run time it is nothing but clean pages of the
//! executable: every reference is an offset, nothing is relocated, nothing is parsed at start. All numbers are
//! little-endian `u32` words unless said otherwise.
//!
//! ```text
//! header   magic, then (offset, count) of: types, fields, wire, groups, kinds, names; offset of strings; two words of nothing
//! type     kind u8, flags u8, list u8, 0 | name | go name | element | first field | fields u16, groups u16 | wire start | wire length
//!          | first group | list keys | enum values | 0
//! field    name | type | number u16, group u16 | flags | merge key | default | markers | hash of the name
//! group    number | type | parent (0: the struct itself) | go name         an embedded struct, flattened in JSON
//! wire     number << 16 | what: field index, 0x4000|group: the embedded message begins, 0x8000: it ends; sorted by number
//! kind     group | version | kind | type                                   sorted
//! names    type, sorted by name: the named types
//! string   u16 length, bytes
//! ```

use std::collections::{BTreeMap, HashMap};

pub const MAGIC: u32 = 0x4b38_5302;
pub const TYPE_WORDS: usize = 12;
pub const FIELD_WORDS: usize = 8;
pub const GROUP_WORDS: usize = 4;
pub const KIND_WORDS: usize = 4;
pub const HEADER_WORDS: usize = 16;
/// Set in a type reference when the element is a pointer.
pub const POINTER: u32 = 0x8000_0000;

pub mod type_flags {
    pub const ATOMIC: u8 = 1;
    pub const WRAPPED: u8 = 2;
    pub const ENUM: u8 = 4;
    /// A struct that may have fields beside those that are declared.
    pub const OPEN: u8 = 8;
}

pub mod field_flags {
    pub const POINTER: u32 = 1;
    pub const OMIT_EMPTY: u32 = 2;
    pub const OMIT_ZERO: u32 = 4;
    pub const OPTIONAL: u32 = 8;
    pub const REQUIRED: u32 = 16;
    pub const ATOMIC: u32 = 32;
    pub const IMMUTABLE: u32 = 64;
    pub const PATCH_MERGE: u32 = 128;
    pub const PATCH_RETAIN_KEYS: u32 = 256;
    pub const PATCH_REPLACE: u32 = 512;
    /// Not written when absent: what the tags and the kind of the type come to.
    pub const SKIP_ABSENT: u32 = 1024;
}

/// Scalar and special type names of the text, at the index that is their kind's number and their type id.
pub const BUILTIN: [(&str, &str); 18] = [
    ("any", "interface {}"),
    ("bool", "bool"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("float64", "float64"),
    ("string", "string"),
    ("bytes", "[]uint8"),
    ("quantity", "resource.Quantity"),
    ("intorstring", "intstr.IntOrString"),
    ("time", "v1.Time"),
    ("microtime", "v1.MicroTime"),
    ("duration", "v1.Duration"),
    ("raw", "runtime.RawExtension"),
    ("fieldsv1", "v1.FieldsV1"),
    ("json", "v1.JSON"),
    ("schemaorbool", "v1.JSONSchemaPropsOrBool"),
    ("schemaorarray", "v1.JSONSchemaPropsOrArray"),
    ("schemaorstringarray", "v1.JSONSchemaPropsOrStringArray"),
];
pub const STRUCT: u8 = 18;
pub const LIST: u8 = 19;
pub const MAP: u8 = 20;
const SAME: u8 = 255;

#[derive(Default, Clone)]
struct Type {
    kind: u8,
    flags: u8,
    list: u8,
    name: String,
    go_name: String,
    element: u32,
    keys: String,
    values: String,
    fields: Vec<Field>,
    groups: Vec<Group>,
}

#[derive(Default, Clone)]
struct Field {
    name: String,
    ty: u32,
    number: u16,
    group: u16,
    flags: u32,
    inline: bool,
    merge_key: String,
    default: String,
    markers: String,
}

#[derive(Clone)]
struct Group {
    number: u16,
    ty: u32,
    parent: u16,
    go_name: String,
}

/// Tells names of fields apart quickly: their length, their first and their last eight bytes.
pub fn name_hash(name: &[u8]) -> u32 {
    let (first, last) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => (name.iter().fold(0, |all, b| all << 8 | u64::from(*b)), 0),
    };
    let mixed = (first ^ last.rotate_left(29) ^ name.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

/// What is wrong with the text, with the line it is about.
#[derive(Debug)]
pub struct CompileError(pub String);

/// Compiles the text of a table.
pub fn compile(text: &str) -> Result<Vec<u8>, CompileError> {
    let mut c = Compiler::default();
    for (i, (name, go)) in BUILTIN.iter().enumerate() {
        c.types.push(Type { kind: i as u8, go_name: (*go).to_owned(), ..Type::default() });
        c.ids.insert((*name).to_owned(), i as u32);
    }
    // The three unions of JSONSchemaProps refer to it.
    for line in text.lines().filter(|l| l.starts_with("type ")) {
        let name = word(line, 1)?;
        let id = c.types.len() as u32;
        if c.ids.insert(name.to_owned(), id).is_some() {
            return Err(CompileError(format!("declared twice: {line}")));
        }
        c.types.push(Type { name: name.to_owned(), ..Type::default() });
    }
    if let Some(&props) = c.ids.get("apiextensions/v1.JSONSchemaProps") {
        for union in &mut c.types[15..18] {
            union.element = props;
        }
    }
    let mut kinds = Vec::new();
    let mut current = None;
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        if let Some(rest) = line.strip_prefix("kind ") {
            let [group, version, kind, ty] = rest.split(' ').collect::<Vec<_>>()[..] else { return Err(CompileError(line.to_owned())) };
            let group = if group == "-" { "" } else { group };
            kinds.push((group.to_owned(), version.to_owned(), kind.to_owned(), c.id(ty)?));
        } else if line.starts_with("type ") {
            current = Some(c.declare(line)?);
        } else {
            let Some(owner) = current else { return Err(CompileError(format!("a field of no type: {line}"))) };
            let field = c.field(line.trim_start())?;
            c.types[owner as usize].fields.push(field);
        }
    }
    c.resolve_same();
    c.flatten()?;
    c.name_lists();
    kinds.sort();
    Ok(c.write(&kinds))
}

fn word(line: &str, n: usize) -> Result<&str, CompileError> {
    line.split(' ').nth(n).ok_or_else(|| CompileError(format!("too short: {line}")))
}

fn unquote(value: &str) -> String {
    value.replace("%2C", ",").replace("%20", " ").replace("%25", "%")
}

#[derive(Default)]
struct Compiler {
    types: Vec<Type>,
    ids: HashMap<String, u32>,
}

impl Compiler {
    /// The id of a type expression (list and map types are interned), with [`POINTER`] for `*`.
    fn id(&mut self, expression: &str) -> Result<u32, CompileError> {
        if let Some(rest) = expression.strip_prefix('*') {
            return Ok(self.id(rest)? | POINTER);
        }
        if let Some(&id) = self.ids.get(expression) {
            return Ok(id);
        }
        let (body, relation) = match expression.strip_suffix('}').and_then(|e| e.rsplit_once('{')) {
            Some((body, relation)) => (body, relation),
            None => (expression, ""),
        };
        let mut ty = if let Some(element) = body.strip_prefix("[]") {
            Type { kind: LIST, element: self.id(element)?, ..Type::default() }
        } else if let Some(element) = body.strip_prefix("map:") {
            Type { kind: MAP, element: self.id(element)?, ..Type::default() }
        } else if !relation.is_empty() {
            // A list relation on a named list, or on bytes where it says nothing.
            let id = self.id(body)?;
            let mut ty = self.types[id as usize].clone();
            if ty.kind != LIST {
                return Ok(id);
            }
            ty.name = String::new();
            ty
        } else {
            return Err(CompileError(format!("unknown type {expression}")));
        };
        let (list, keys) = relation.split_once(':').unwrap_or((relation, ""));
        ty.list = match list {
            "" => 0,
            "atomic" => 1,
            "set" => 2,
            "map" => 3,
            _ => return Err(CompileError(format!("unknown list type in {expression}"))),
        };
        ty.keys = keys.to_owned();
        let id = self.types.len() as u32;
        self.types.push(ty);
        self.ids.insert(expression.to_owned(), id);
        Ok(id)
    }

    fn declare(&mut self, line: &str) -> Result<u32, CompileError> {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, name, go_name, shape, rest @ ..] = &words[..] else { return Err(CompileError(format!("too short: {line}"))) };
        let id = self.ids[*name];
        let mut ty = Type { name: (*name).to_owned(), go_name: (*go_name).to_owned(), ..Type::default() };
        let mut flags = rest;
        match *shape {
            "struct" => ty.kind = STRUCT,
            "list" | "map" | "same" => {
                let [element, others @ ..] = rest else { return Err(CompileError(format!("no element: {line}"))) };
                ty.element = self.id(element)?;
                ty.kind = match *shape {
                    "list" => LIST,
                    "map" => MAP,
                    _ => SAME,
                };
                flags = others;
            }
            scalar => {
                let Some(kind) = BUILTIN.iter().position(|(n, _)| *n == scalar) else {
                    return Err(CompileError(format!("unknown shape: {line}")));
                };
                ty.kind = kind as u8;
            }
        }
        for flag in flags {
            match *flag {
                "atomic" => ty.flags |= type_flags::ATOMIC,
                "wrapped" => ty.flags |= type_flags::WRAPPED,
                "enum" => ty.flags |= type_flags::ENUM,
                "open" => ty.flags |= type_flags::OPEN,
                other => match other.strip_prefix("values=") {
                    Some(values) => ty.values = values.to_owned(),
                    None => return Err(CompileError(format!("unknown flag {other}: {line}"))),
                },
            }
        }
        self.types[id as usize] = ty;
        Ok(id)
    }

    fn field(&mut self, line: &str) -> Result<Field, CompileError> {
        let mut words = line.split(' ');
        let (Some(name), Some(expression), Some(number)) = (words.next(), words.next(), words.next()) else {
            return Err(CompileError(format!("too short: {line}")));
        };
        let ty = self.id(expression)?;
        let mut field = Field {
            name: unquote(name),
            ty: ty & !POINTER,
            number: number.parse().map_err(|_| CompileError(format!("no number: {line}")))?,
            flags: if ty & POINTER != 0 { field_flags::POINTER } else { 0 },
            ..Field::default()
        };
        for flag in words {
            let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
            field.flags |= match key {
                "omitempty" => field_flags::OMIT_EMPTY,
                "omitzero" => field_flags::OMIT_ZERO,
                "optional" => field_flags::OPTIONAL,
                "required" => field_flags::REQUIRED,
                "atomic" => field_flags::ATOMIC,
                "immutable" => field_flags::IMMUTABLE,
                "patch" => value.split(',').try_fold(0, |acc, s| match s {
                    "merge" => Ok(acc | field_flags::PATCH_MERGE),
                    "retainKeys" => Ok(acc | field_flags::PATCH_RETAIN_KEYS),
                    "replace" => Ok(acc | field_flags::PATCH_REPLACE),
                    _ => Err(CompileError(format!("unknown patch strategy: {line}"))),
                })?,
                "inline" => {
                    field.inline = true;
                    0
                }
                "mergekey" => {
                    field.merge_key = value.to_owned();
                    0
                }
                "default" => {
                    field.default = unquote(value);
                    0
                }
                "minimum" | "maximum" | "maxItems" | "maxLength" | "format" => {
                    if !field.markers.is_empty() {
                        field.markers.push(' ');
                    }
                    field.markers.push_str(flag);
                    0
                }
                _ => return Err(CompileError(format!("unknown flag {key}: {line}"))),
            };
        }
        Ok(field)
    }

    /// `same` types take everything but their names from the type they name.
    fn resolve_same(&mut self) {
        for id in 0..self.types.len() {
            let mut target = self.types[id].clone();
            while target.kind == SAME {
                target = self.types[(target.element & !POINTER) as usize].clone();
            }
            if self.types[id].kind == SAME {
                let ty = &mut self.types[id];
                let (name, go_name) = (std::mem::take(&mut ty.name), std::mem::take(&mut ty.go_name));
                *ty = target;
                ty.name = name;
                if go_name != "-" {
                    ty.go_name = go_name;
                }
            }
        }
    }

    /// Embedded structs: their fields stand in the JSON of the outer struct, but in a message of their own in protobuf.
    fn flatten(&mut self) -> Result<(), CompileError> {
        let declared: Vec<Vec<Field>> = self.types.iter().map(|t| t.fields.clone()).collect();
        for id in 0..self.types.len() {
            if declared[id].iter().any(|f| f.inline) {
                let (mut fields, mut groups) = (Vec::new(), Vec::new());
                inline(&declared, &self.types, &declared[id], 0, &mut fields, &mut groups, 0)?;
                self.types[id].fields = fields;
                self.types[id].groups = groups;
            }
        }
        Ok(())
    }

    fn name_lists(&mut self) {
        for id in 0..self.types.len() {
            self.go_name(id);
        }
    }

    fn go_name(&mut self, id: usize) -> String {
        if self.types[id].go_name.is_empty() {
            let element = self.types[id].element;
            let inner = self.go_name((element & !POINTER) as usize);
            let star = if element & POINTER != 0 { "*" } else { "" };
            let prefix = if self.types[id].kind == LIST { "[]" } else { "map[string]" };
            self.types[id].go_name = format!("{prefix}{star}{inner}");
        }
        self.types[id].go_name.clone()
    }

    fn write(&self, kinds: &[(String, String, String, u32)]) -> Vec<u8> {
        let mut strings = Strings::default();
        let (mut types, mut fields, mut wire, mut groups) = (Vec::new(), Vec::new(), Vec::<u32>::new(), Vec::new());
        for ty in &self.types {
            let program = wire_program(ty);
            types.extend([
                u32::from(ty.kind) | u32::from(ty.flags) << 8 | u32::from(ty.list) << 16,
                strings.add(&ty.name),
                strings.add(&ty.go_name),
                ty.element,
                (fields.len() / FIELD_WORDS) as u32,
                ty.fields.len() as u32 | (ty.groups.len() as u32) << 16,
                wire.len() as u32,
                program.len() as u32,
                (groups.len() / GROUP_WORDS) as u32,
                strings.add(&ty.keys),
                strings.add(&ty.values),
                0,
            ]);
            wire.extend(program);
            for f in &ty.fields {
                let kind = self.types[f.ty as usize].kind;
                // Bool, numbers, strings, bytes, lists, maps and interfaces can be empty in Go; structs cannot.
                let can_be_empty = kind <= 6 || kind == LIST || kind == MAP;
                let omits = f.flags & field_flags::OMIT_EMPTY != 0 && (can_be_empty || f.flags & field_flags::POINTER != 0);
                let skip = if omits || f.flags & field_flags::OMIT_ZERO != 0 { field_flags::SKIP_ABSENT } else { 0 };
                fields.extend([
                    strings.add(&f.name),
                    f.ty,
                    u32::from(f.number) | u32::from(f.group) << 16,
                    f.flags | skip,
                    strings.add(&f.merge_key),
                    strings.add(&f.default),
                    strings.add(&f.markers),
                    name_hash(f.name.as_bytes()),
                ]);
            }
            for g in &ty.groups {
                groups.extend([u32::from(g.number), g.ty, u32::from(g.parent), strings.add(&g.go_name)]);
            }
        }
        let mut kind_words = Vec::new();
        for (group, version, kind, ty) in kinds {
            kind_words.extend([strings.add(group), strings.add(version), strings.add(kind), *ty]);
        }
        let names: BTreeMap<&str, u32> =
            self.types.iter().enumerate().filter(|(_, t)| !t.name.is_empty()).map(|(i, t)| (t.name.as_str(), i as u32)).collect();
        let names: Vec<u32> = names.into_values().collect();

        let mut out = Vec::new();
        let mut header = vec![MAGIC];
        let mut body: Vec<u8> = Vec::new();
        let mut section = |bytes: Vec<u8>, count: usize, body: &mut Vec<u8>| {
            header.extend([(HEADER_WORDS * 4 + body.len()) as u32, count as u32]);
            body.extend(bytes);
            while !body.len().is_multiple_of(4) {
                body.push(0);
            }
        };
        let words = |w: &[u32]| -> Vec<u8> { w.iter().flat_map(|w| w.to_le_bytes()).collect() };
        section(words(&types), types.len() / TYPE_WORDS, &mut body);
        section(words(&fields), fields.len() / FIELD_WORDS, &mut body);
        section(words(&wire), wire.len(), &mut body);
        section(words(&groups), groups.len() / GROUP_WORDS, &mut body);
        section(words(&kind_words), kind_words.len() / KIND_WORDS, &mut body);
        section(words(&names), names.len(), &mut body);
        header.extend([(HEADER_WORDS * 4 + body.len()) as u32, 0, 0]);
        body.extend(strings.bytes);
        debug_assert_eq!(header.len(), HEADER_WORDS);
        out.extend(words(&header));
        out.extend(body);
        out
    }
}

fn inline(
    declared: &[Vec<Field>],
    types: &[Type],
    source: &[Field],
    group: u16,
    fields: &mut Vec<Field>,
    groups: &mut Vec<Group>,
    depth: usize,
) -> Result<(), CompileError> {
    if depth > 8 {
        return Err(CompileError("structs embedded in themselves".into()));
    }
    for f in source {
        if !f.inline {
            let mut f = f.clone();
            f.group = group;
            fields.push(f);
            continue;
        }
        // TypeMeta has no number: it travels in the envelope, not in the message.
        let mut inner = group;
        if f.number != 0 {
            groups.push(Group { number: f.number, ty: f.ty, parent: group, go_name: f.name.clone() });
            inner = groups.len() as u16;
        }
        let mut target = f.ty as usize;
        while types[target].kind == SAME {
            target = (types[target].element & !POINTER) as usize;
        }
        let from = fields.len();
        inline(declared, types, &declared[target], inner, fields, groups, depth + 1)?;
        if f.number == 0 {
            for inlined in &mut fields[from..] {
                inlined.number = 0;
            }
        }
    }
    Ok(())
}

fn wire_program(ty: &Type) -> Vec<u32> {
    fn level(ty: &Type, group: u16, out: &mut Vec<u32>) {
        let mut entries: Vec<(u16, u16)> =
            ty.fields.iter().enumerate().filter(|(_, f)| f.group == group && f.number != 0).map(|(i, f)| (f.number, i as u16)).collect();
        entries.extend(ty.groups.iter().enumerate().filter(|(_, g)| g.parent == group).map(|(i, g)| (g.number, 0x4000 | i as u16)));
        entries.sort_unstable();
        for (number, entry) in entries {
            out.push(u32::from(number) << 16 | u32::from(entry));
            if entry & 0x4000 != 0 {
                level(ty, (entry & 0x3fff) + 1, out);
                out.push(0x8000);
            }
        }
    }
    let mut out = Vec::new();
    level(ty, 0, &mut out);
    out
}

#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    seen: HashMap<String, u32>,
}

impl Strings {
    fn add(&mut self, s: &str) -> u32 {
        if let Some(&at) = self.seen.get(s) {
            return at;
        }
        let at = self.bytes.len() as u32;
        self.bytes.extend((s.len() as u16).to_le_bytes());
        self.bytes.extend(s.as_bytes());
        self.seen.insert(s.to_owned(), at);
        at
    }
}
