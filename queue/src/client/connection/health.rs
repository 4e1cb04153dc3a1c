//! How far a queue's server can be relied on: checked once, when a process starts.

use serde::Serialize;

use super::Connection;

/// The server name of our own broker.
const OWN_SERVER: &str = "sightline";
/// Older servers have lost acknowledged messages.
const OLDEST: (u64, u64, u64) = (2, 12, 7);
/// The message size that an upload of the usual limit needs.
const USUAL_PAYLOAD: usize = (20 << 20) + (64 << 10);

/// What a server reports about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The cluster that it belongs to.
    pub cluster: Option<String>,
    /// The largest message that it accepts, bytes.
    pub max_payload: usize,
    /// Whether it is our own broker.
    pub is_own: bool,
}

/// Something about a queue that may cost jobs or uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doubt {
    /// Stable: `replicas`, `version`, `max_payload`, `sync`.
    pub code: &'static str,
    /// What it is, what it risks, and what to do.
    pub message: String,
}

impl Doubt {
    /// A doubt with a stable code.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Connection {
    /// The server that this connection is to.
    pub fn server(&self) -> Server {
        let info = self.client().server_info();
        Server {
            is_own: info.server_name == OWN_SERVER,
            name: info.server_name,
            version: info.version,
            cluster: info.cluster,
            max_payload: info.max_payload,
        }
    }
}

impl Server {
    /// What may be wrong with it for topics with this many replicas. `syncs` is whether it writes to
    /// disk before it acknowledges, if that is known.
    pub fn doubts(&self, replicas: usize, syncs: Option<bool>) -> Vec<Doubt> {
        if self.is_own {
            return Vec::new();
        }
        let mut doubts = Vec::new();
        if replicas < 3 {
            let place = if self.cluster.is_some() { "" } else { ", on a cluster" };
            doubts.push(Doubt::new(
                "replicas",
                format!(
                    "{replicas} replica(s): if the disk of one server is lost, so are its jobs; pass --replicas 3{place}"
                ),
            ));
        }
        if version(&self.version).is_some_and(|version| version < OLDEST) {
            let (major, minor, patch) = OLDEST;
            let text = format!(
                "nats-server {} is older than {major}.{minor}.{patch}: such servers have lost acknowledged messages; update it",
                self.version
            );
            doubts.push(Doubt::new("version", text));
        }
        if self.max_payload < USUAL_PAYLOAD {
            let text = format!(
                "max_payload is {} bytes: larger images are refused with 413; set max_payload: 32MB on the servers",
                self.max_payload
            );
            doubts.push(Doubt::new("max_payload", text));
        }
        match syncs {
            Some(true) => {}
            Some(false) => doubts.push(Doubt::new(
                "sync",
                "the servers acknowledge before they write to disk: a power cut that takes most of them loses accepted jobs; set jetstream { sync_interval: always }",
            )),
            None => doubts.push(Doubt::new(
                "sync",
                "whether the servers write to disk before they acknowledge is not known; name one's monitoring address with --queue-monitor http://HOST:8222",
            )),
        }
        doubts
    }
}

fn version(text: &str) -> Option<(u64, u64, u64)> {
    let mut numbers = text.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_weakness_of_a_server_is_named_once() {
        let server = |version: &str, max_payload| Server {
            name: "n1".into(),
            version: version.into(),
            cluster: Some("c".into()),
            max_payload,
            is_own: false,
        };
        let codes = |server: Server, replicas, syncs| {
            server.doubts(replicas, syncs).iter().map(|doubt| doubt.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(server("2.15.1", 32 << 20), 3, Some(true)), Vec::<&str>::new());
        assert_eq!(codes(server("2.15.1", 32 << 20), 1, None), ["replicas", "sync"]);
        assert_eq!(codes(server("2.12.6", 1 << 20), 3, Some(false)), ["version", "max_payload", "sync"]);
        assert_eq!(codes(server("2.14.0-RC.1", 32 << 20), 3, Some(true)), Vec::<&str>::new());
        let own = Server { is_own: true, ..server("2.14.0", 1) };
        assert_eq!(codes(own, 1, None), Vec::<&str>::new());
    }
}
