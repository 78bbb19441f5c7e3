//! One pod: what runs of it (`observe`), what is to be done (`plan`), doing it (`apply`), what is said about it (`status`), and the worker
//! that drives these.

pub mod apply;
pub mod backoff;
pub mod hash;
pub mod observe;
pub mod plan;
pub mod qos;
pub mod status;
pub mod terminate;
pub mod worker;
