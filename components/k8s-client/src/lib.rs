//! A Kubernetes client: list, watch, patch, informers, work queues, leader election and events.
