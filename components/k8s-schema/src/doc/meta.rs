//! The metadata that every object has, under names of its own.

use super::{Doc, Ref};

/// A view of an object's metadata.
#[derive(Debug, Clone, Copy)]
pub struct Meta<'a>(pub Ref<'a>);

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// `apiVersion` of the owner.
    pub api_version: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Whether it is the managing controller.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

impl Doc {
    /// The object's metadata.
    pub fn meta(&self) -> Meta<'_> {
        Meta(self.root().get("metadata"))
    }
}

impl<'a> Meta<'a> {
    /// `name`
    pub fn name(self) -> &'a str {
        self.0.get("name").str()
    }
    /// `generateName`
    pub fn generate_name(self) -> &'a str {
        self.0.get("generateName").str()
    }
    /// `namespace`
    pub fn namespace(self) -> &'a str {
        self.0.get("namespace").str()
    }
    /// `uid`
    pub fn uid(self) -> &'a str {
        self.0.get("uid").str()
    }
    /// `resourceVersion`
    pub fn resource_version(self) -> &'a str {
        self.0.get("resourceVersion").str()
    }
    /// `generation`
    pub fn generation(self) -> i64 {
        self.0.get("generation").int()
    }
    /// `labels`
    pub fn labels(self) -> Ref<'a> {
        self.0.get("labels")
    }
    /// One label.
    pub fn label(self, key: &str) -> Option<&'a str> {
        self.labels().get(key).as_str()
    }
    /// `annotations`
    pub fn annotations(self) -> Ref<'a> {
        self.0.get("annotations")
    }
    /// One annotation.
    pub fn annotation(self, key: &str) -> Option<&'a str> {
        self.annotations().get(key).as_str()
    }
    /// `creationTimestamp` in Unix seconds.
    pub fn creation_timestamp(self) -> Option<i64> {
        self.0.get("creationTimestamp").time_seconds()
    }
    /// `deletionTimestamp` in Unix seconds.
    pub fn deletion_timestamp(self) -> Option<i64> {
        self.0.get("deletionTimestamp").time_seconds()
    }
    /// `deletionGracePeriodSeconds`
    pub fn deletion_grace_period_seconds(self) -> Option<i64> {
        self.0.get("deletionGracePeriodSeconds").as_i64()
    }
    /// `finalizers`
    pub fn finalizers(self) -> impl Iterator<Item = &'a str> {
        self.0.get("finalizers").strings()
    }
    /// `ownerReferences`
    pub fn owner_references(self) -> impl Iterator<Item = OwnerReference<'a>> {
        self.0.get("ownerReferences").iter().map(|r| OwnerReference {
            api_version: r.get("apiVersion").str(),
            kind: r.get("kind").str(),
            name: r.get("name").str(),
            uid: r.get("uid").str(),
            controller: r.get("controller").bool(),
            block_owner_deletion: r.get("blockOwnerDeletion").bool(),
        })
    }
    /// The owner that is the managing controller.
    pub fn controller(self) -> Option<OwnerReference<'a>> {
        self.owner_references().find(|r| r.controller)
    }
}
