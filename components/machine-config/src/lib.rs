//! Machine config documents: parse, merge, default, validate and diff. Pure.
