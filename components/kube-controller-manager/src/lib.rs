//! The Kubernetes controllers.
