//! The Kubernetes schema table, schema-typed documents, and what is derived from them. Pure.
