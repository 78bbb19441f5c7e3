//! Virtual machines in QEMU, and scenarios that run on them.
