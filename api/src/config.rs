//! What the server is started with.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// What webhooks are signed with, `whsec_` and base64.
    pub webhook_secret: String,
    /// Hosts that webhooks may reach although they are not public.
    pub webhook_allow: Vec<String>,
    /// What connections are encrypted with; none: nothing.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Connections at a time; more wait.
    pub connections_max: usize,
    /// All requests come through a proxy, whose headers say from where and to which host.
    pub behind_proxy: bool,
    /// Where clients reach it, if not at its own address; its path stands before those of all links.
    pub public_url: Option<reqwest::Url>,
    /// Where it is noted that there are keys; several processes on one machine may share it.
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
