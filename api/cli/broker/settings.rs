//! The broker's configuration file: users, encryption, limits. All of it is optional.
//!
//! ```toml
//! connections = 1000            # clients at a time
//! subscriptions = 10000         # per client
//! pending = "128MiB"            # buffered for one client before it is disconnected
//! ping_interval = "2m"
//! auth_timeout = "2s"
//!
//! [tls]
//! certificate = "cert.pem"      # relative to this file
//! key = "key.pem"
//! required = true
//! handshake_first = false
//!
//! [[users]]
//! name = "camera"
//! password = "…"
//! [users.permissions]
//! publish = { allow = ["jobs.>"], deny = ["jobs.secret.>"] }
//! subscribe = { allow = ["_INBOX.>"] }
//! allow_responses = { max = 1, expires = "2m" }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::broker::{Options, Tls, User};
use anyhow::{Context, bail};
use bytesize::ByteSize;
use serde::Deserialize;

/// The contents of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    connections: Option<usize>,
    subscriptions: Option<usize>,
    pending: Option<String>,
    ping_interval: Option<String>,
    auth_timeout: Option<String>,
    tls: Option<TlsSettings>,
    users: Vec<User>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSettings {
    certificate: PathBuf,
    key: PathBuf,
    #[serde(default = "yes")]
    required: bool,
    #[serde(default)]
    handshake_first: bool,
}

fn yes() -> bool {
    true
}

impl Settings {
    /// Reads the file; without one, nothing is set.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut settings: Self = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some(tls) = &mut settings.tls {
            (tls.certificate, tls.key) = (folder.join(&tls.certificate), folder.join(&tls.key));
        }
        Ok(settings)
    }

    /// Whether connections must be encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.required)
    }

    /// Applies the settings to the broker's options.
    pub(crate) fn apply(self, options: &mut Options) -> anyhow::Result<()> {
        let positive = |name: &str, value: Option<usize>, usual: usize| match value {
            Some(0) => bail!("{name} must be at least 1"),
            value => Ok(value.unwrap_or(usual)),
        };
        options.connections_max = positive("connections", self.connections, options.connections_max)?;
        options.subscriptions_max = positive("subscriptions", self.subscriptions, options.subscriptions_max)?;
        if let Some(text) = self.pending {
            let bytes: ByteSize = text.parse().map_err(|problem| anyhow::anyhow!("pending {text:?}: {problem}"))?;
            options.outbox_bytes_max = usize::try_from(bytes.as_u64()).context("pending is too large")?;
        }
        let duration = |name: &str, text: Option<String>, usual: Duration| match text {
            None => Ok(usual),
            Some(text) => humantime::parse_duration(&text).with_context(|| format!("{name} {text:?}")),
        };
        options.ping_interval = duration("ping_interval", self.ping_interval, options.ping_interval)?;
        options.auth_timeout = duration("auth_timeout", self.auth_timeout, options.auth_timeout)?;
        options.auth.users = self.users;
        options.tls = self.tls.map(|tls| Tls {
            certificate: tls.certificate,
            key: tls.key,
            required: tls.required,
            first: tls.handshake_first,
        });
        Ok(())
    }
}
