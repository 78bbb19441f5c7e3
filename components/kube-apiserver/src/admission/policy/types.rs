//! The types of served kinds, as expressions about their objects are checked against them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cel::{Type, types::ObjectType};
use k8s_schema::{Schema, TypeId, table};

use crate::{custom::cel::declare, registry::Resource};

/// Types of the table, each made once, so that what many fields have in common is shared.
pub struct Types<'a> {
    schema: &'a Schema,
    made: HashMap<TypeId, Type>,
}

impl<'a> Types<'a> {
    pub fn new(schema: &'a Schema) -> Self {
        Self { schema, made: HashMap::new() }
    }

    /// What objects of a resource look like; none where nothing is known of them.
    pub fn of_resource(&mut self, res: &Resource) -> Option<Type> {
        let Some(custom) = &res.custom else {
            return self.schema.kind(&res.group, &res.version, &res.kind).map(|ty| self.of(ty));
        };
        let declared = declare(&custom.version().schema, &res.kind, true)?.ty;
        let Type::Object(object) = &declared else { return Some(declared) };
        // Objects have all the metadata there is, while their own rules see little of it.
        let mut object = ObjectType::clone(object);
        let meta = self.schema.type_named("meta/v1.ObjectMeta")?;
        object.fields.insert("metadata".into(), self.of(meta));
        Some(Type::Object(Arc::new(object)))
    }

    /// The type of a type of the table. What has a form of its own in JSON may be anything.
    fn of(&mut self, id: TypeId) -> Type {
        if let Some(t) = self.made.get(&id) {
            return t.clone();
        }
        let t = self.schema.ty(id);
        match t.kind() {
            table::Kind::Bool => Type::Bool,
            table::Kind::Int32 | table::Kind::Int64 => Type::Int,
            table::Kind::Float64 => Type::Double,
            table::Kind::String | table::Kind::Duration => Type::String,
            table::Kind::Bytes => Type::Bytes,
            table::Kind::Time | table::Kind::MicroTime => Type::Timestamp,
            table::Kind::List => Type::list(self.of(t.elem())),
            table::Kind::Map => Type::map(Type::String, self.of(t.elem())),
            table::Kind::Struct => {
                // A type within itself (schemas of definitions) ends there.
                self.made.insert(id, Type::Dyn);
                let fields: BTreeMap<String, Type> = t.fields().map(|f| (f.name().to_owned(), self.of(f.type_id()))).collect();
                let made = Type::Object(Arc::new(ObjectType { name: t.name().to_owned(), fields, open: false }));
                self.made.insert(id, made.clone());
                made
            }
            _ => Type::Dyn,
        }
    }
}
