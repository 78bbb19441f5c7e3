//! The machine API: protobuf definitions, generated types and conversions.
