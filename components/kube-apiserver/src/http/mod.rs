//! The HTTP side: connections, what a request asks for, negotiation, and errors as clients read them. Nothing here knows a kind.

pub mod body;
pub mod chain;
pub mod drain;
mod gathered;
pub mod gzip;
pub mod impersonation;
pub mod memory;
pub mod negotiate;
pub mod options;
pub mod request_info;
pub mod serve;
pub mod status;
pub mod tls;

pub use body::{Answer, Body};
pub use negotiate::{As, Media, Offers, Wanted};
pub use request_info::{Query, RequestInfo};
pub use status::{ApiError, Group};
