//! Settings that the server starts with.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// Settings of one API process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address that it listens on; decides which hosts it accepts as its own.
    pub listen_ip: IpAddr,
    /// Host names that it accepts besides `localhost` and its address.
    pub allowed_hosts: Vec<String>,
    /// The largest image, bytes.
    pub upload_bytes_max: usize,
    /// Memory for request bodies, bytes.
    pub bodies_bytes_max: usize,
    /// The secret that webhooks are signed with, `whsec_` and base64.
    pub webhook_secret: String,
    /// Hosts that webhooks may reach although they are not public.
    pub webhook_allow: Vec<String>,
    /// TLS for connections; `None`: they are not encrypted.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Most connections at a time; further ones wait.
    pub connections_max: usize,
    /// All requests come through a proxy, whose headers name the client's address and the requested host.
    pub behind_proxy: bool,
    /// Where clients reach it, if not at its own address; its path is the prefix of all links.
    pub public_url: Option<reqwest::Url>,
    /// The folder that records that keys exist; several processes on one machine may share it.
    pub data_folder: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            allowed_hosts: Vec::new(),
            upload_bytes_max: 20 * MIB,
            bodies_bytes_max: 256 * MIB,
            webhook_secret: String::new(),
            webhook_allow: Vec::new(),
            tls: None,
            connections_max: 4_096,
            behind_proxy: false,
            public_url: None,
            data_folder: None,
        }
    }
}
