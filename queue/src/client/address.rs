//! Address of the queue: its servers and the token that they ask for.

use crate::ConnectError;

/// Address of the queue: its servers and the token that they ask for.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    servers: Vec<String>,
    token: Option<String>,
}

impl Address {
    /// Reads `nats://[TOKEN@]host:port`, several of them comma-separated.
    ///
    /// # Errors
    /// [`ConnectError::Address`].
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let mut token = None;
        let mut servers = Vec::new();
        for part in text.split(',').map(str::trim) {
            let wrong = || ConnectError::Address(redacted(text));
            let (scheme, rest) = part.split_once("://").unwrap_or(("nats", part));
            let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
            if !matches!(scheme, "nats" | "tls") || host.is_empty() || host.contains(['/', ' ']) {
                return Err(wrong());
            }
            token = token.or(user.filter(|user| !user.is_empty()).map(str::to_owned));
            let server = format!("{scheme}://{host}");
            server.parse::<async_nats::ServerAddr>().map_err(|_| wrong())?;
            servers.push(server);
        }
        Ok(Self { servers, token })
    }

    /// Whether all servers are on this machine.
    pub fn is_loopback(&self) -> bool {
        let hosts = self.servers.iter().filter_map(|server| server.parse::<async_nats::ServerAddr>().ok());
        hosts.into_iter().all(|server| {
            let host = server.host().trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        })
    }

    /// Host and port of each server.
    pub(crate) fn servers(&self) -> Vec<&str> {
        self.servers.iter().map(String::as_str).collect()
    }

    /// Options that pass the token.
    pub(crate) fn connect_options(&self) -> async_nats::ConnectOptions {
        let options = async_nats::ConnectOptions::new();
        match &self.token {
            Some(token) => options.token(token.clone()),
            None => options,
        }
    }

    /// The same address with `token`, unless it has one.
    #[must_use]
    pub fn with_default_token(mut self, token: Option<String>) -> Self {
        self.token = self.token.or(token);
        self
    }
}

impl std::fmt::Display for Address {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.servers.join(","))
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({self})")
    }
}

fn redacted(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("nats://***@{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_hides_its_token() {
        let address = Address::parse("nats://s3cret@127.0.0.1:4222,nats://10.0.0.2:4222").expect("valid");
        assert_eq!(address.to_string(), "nats://127.0.0.1:4222,nats://10.0.0.2:4222");
        assert_eq!(address.token.as_deref(), Some("s3cret"));
        assert!(!format!("{address:?}").contains("s3cret") && !address.is_loopback());
        assert!(Address::parse("nats://localhost:1,127.0.0.1:2,[::1]:3").expect("valid").is_loopback());
        for bad in ["", "http://x:1", "nats://", "nats://s3cret@", "nats://a:b:c", "nats://s3cret@x y"] {
            let error = Address::parse(bad).expect_err(bad).to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
