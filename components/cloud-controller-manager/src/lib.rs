//! The bare-metal cloud controller manager.
