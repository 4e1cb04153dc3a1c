//! What the server is started with.

use std::net::{IpAddr, Ipv4Addr};

/// Settings of one API process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address that it listens on; decides which hosts are its own.
    pub listen_ip: IpAddr,
    /// Names under which it may be asked, beside `localhost` and its address.
    pub allowed_hosts: Vec<String>,
    /// The largest image, bytes.
    pub upload_bytes_max: usize,
    /// Memory for request bodies, bytes.
    pub bodies_bytes_max: usize,
    /// Connections at a time; more wait.
    pub connections_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            allowed_hosts: Vec::new(),
            upload_bytes_max: 20 * MIB,
            bodies_bytes_max: 256 * MIB,
            connections_max: 4_096,
        }
    }
}
