//! The kubelet: runs pods through CRI.
