//! What the queue of a test run is.

/// The server behind the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Our own broker.
    Own,
    /// A NATS server.
    Nats,
    /// Three NATS servers, with three replicas of everything.
    Cluster,
}

impl Engine {
    /// The word for it after `--engine`.
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Own { "own" } else { "nats" }
    }
}

/// The engine of this run, by `SIGHTLINE_TEST_ENGINE`: `own`, unless it is `nats` or `cluster`.
pub(crate) fn engine() -> Engine {
    match std::env::var("SIGHTLINE_TEST_ENGINE").as_deref() {
        Ok("nats") => Engine::Nats,
        Ok("cluster") => Engine::Cluster,
        Ok("own") | Err(_) => Engine::Own,
        Ok(other) => panic!("SIGHTLINE_TEST_ENGINE={other}: own, nats or cluster"),
    }
}
