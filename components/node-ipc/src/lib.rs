//! The local protocols between init, logd and machined.
