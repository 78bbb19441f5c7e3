//! Builds what Strake boots from: Debian packages ([`debian`]) and our binaries become a read-only root ([`root`]) with its hash tree ([`hash_tree`]), an
//! initramfs, a UKI, a hybrid ISO ([`media`]), a disk image ([`disk`]) and an upgrade file, signed if somebody's keys are given ([`signing`]); [`build`] strings the steps together. Equal inputs give equal bytes. Nothing here needs root rights or
//! changes the builder's machine outside the cache ([`cache`]) and the output directory.

pub mod bios;
pub mod build;
pub mod cache;
mod cpio;
pub mod debian;
pub mod digest;
mod disk;
mod elf;
mod error;
mod executables;
mod firmware;
mod hash_tree;
mod kmod;
mod media;
mod menu;
mod oci;
mod process;
mod root;
mod sbom;
pub mod signing;
pub mod tools;
mod tree;
mod upgrade;

pub use build::{Image, Inputs, build};
pub use debian::store::Versions;
pub use error::Error;
pub use media::fat_image;
