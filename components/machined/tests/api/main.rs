//! The machine API as people meet it: strakectl against machined's server over real TLS on loopback. init and logd are
//! small servers on real sockets, the disk is a sparse file, etcd is the real one.

mod access;
mod cluster;
mod configs;
mod etcd;
mod look;
mod maintenance;
mod world;
