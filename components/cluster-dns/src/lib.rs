//! Cluster DNS: services and pods by name, forwarding for the rest.
