//! Builds the root, the initramfs, the UKI, the ISO and disk images from Debian packages.
