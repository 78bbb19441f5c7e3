//! The command line of Strake, as a library so that tests drive machines with the same client as people.

pub mod client;
pub mod commands;
pub mod context;
pub mod fetch;
pub mod output;
