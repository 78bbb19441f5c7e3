//! Power cuts, replayed. A machine runs on a disk and a variable store that a recorder serves ([`recorder`]); every write and flush of both
//! is in one log, in one order ([`log`]). From the log come the disks that a cut could have left: every prefix, and samples in which
//! writes that were not flushed are lost or torn ([`replay`], over [`contents`]). A pure checker says what firmware, loader and init
//! would make of each ([`checker`]).

pub mod checker;
pub mod contents;
pub mod log;
pub mod recorder;
pub mod replay;
