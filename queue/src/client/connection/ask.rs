//! Requests to the server, and streams that are created when they are needed.

use std::time::SystemTime;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, Config};
use async_nats::jetstream::{Error, ErrorCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Connection, bounded};
use crate::{QueueError, Timestamp, TopicError};

/// The stream already exists, with another configuration.
const NAME_IN_USE: ErrorCode = ErrorCode(10058);
/// A server without a cluster, and a cluster that is too small.
const TOO_MANY_REPLICAS: [ErrorCode; 2] = [ErrorCode(10074), ErrorCode(10005)];

impl Connection {
    /// Sends a request to the server; a refusal and a missing answer are different errors.
    pub(in crate::client) async fn ask<V: DeserializeOwned>(
        &self,
        action: &'static str,
        subject: &str,
        payload: &impl Serialize,
    ) -> Result<V, Ask> {
        let answer = bounded(self.jetstream.request(subject.to_owned(), payload)).await;
        let answer = answer.map_err(QueueError::unavailable(action))?;
        match answer.map_err(QueueError::unavailable(action))? {
            Response::Ok(value) => Ok(value),
            Response::Err { error } => Err(Ask::Refused { action, error }),
        }
    }

    /// Creates a stream; an existing one stays as it is.
    pub(in crate::client) async fn ensure_stream(&self, config: Config) -> Result<(), QueueError> {
        match self.make_stream(config).await {
            Ok(()) => Ok(()),
            Err(TopicError::Queue(error)) => Err(error),
            Err(error) => Err(QueueError::Unavailable { action: "create a stream", problem: error.to_string() }),
        }
    }

    /// The same for a stream that every call needs: once per connection, since the stream stays.
    pub(in crate::client) async fn ensure_stream_once(&self, config: Config) -> Result<(), QueueError> {
        if !self.ensured.read().expect("no panic holds this lock").contains(&config.name) {
            let name = config.name.clone();
            self.ensure_stream(config).await?;
            self.ensured.write().expect("no panic holds this lock").insert(name);
        }
        Ok(())
    }

    /// The same, with errors that separate what the server can never do from what it cannot do now.
    pub(in crate::client) async fn make_stream(&self, config: Config) -> Result<(), TopicError> {
        let made: Result<Value, Ask> =
            self.ask("create a stream", &format!("STREAM.CREATE.{}", config.name), &config).await;
        match made {
            Err(Ask::Refused { error, .. }) if error.error_code() == NAME_IN_USE => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    pub(in crate::client) async fn update_stream(&self, config: Config) -> Result<(), TopicError> {
        let subject = format!("STREAM.UPDATE.{}", config.name);
        Ok(self.ask::<Value>("change a stream", &subject, &config).await.map(drop)?)
    }

    pub(in crate::client) async fn stream_info(&self, stream: &str) -> Result<stream::Info, TopicError> {
        Ok(self.ask("describe a stream", &format!("STREAM.INFO.{stream}"), &serde_json::json!({})).await?)
    }

    pub(in crate::client) async fn stream_config(&self, stream: &str) -> Result<Config, TopicError> {
        Ok(self.stream_info(stream).await?.config)
    }

    /// Configurations of the streams whose subjects match this pattern.
    pub(in crate::client) async fn stream_configs(&self, subject: &str) -> Result<Vec<Config>, QueueError> {
        Ok(self.stream_infos(subject).await?.into_iter().map(|info| info.config).collect())
    }

    /// All that is known of the streams whose subjects match this pattern.
    pub(in crate::client) async fn stream_infos(&self, subject: &str) -> Result<Vec<stream::Info>, QueueError> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            streams: Option<Vec<Value>>,
        }
        let mut infos = Vec::new();
        loop {
            let wanted = json!({ "offset": infos.len(), "subject": subject });
            let asked = SystemTime::now();
            let page: Page = self.ask("list its topics", "STREAM.LIST", &wanted).await?;
            let listed = page.streams.unwrap_or_default();
            // Every description contains the time of the server's clock.
            if let Some(server) = listed.first().and_then(|first| first["ts"].as_str()?.parse().ok()) {
                Timestamp::compare(server, asked, SystemTime::now());
            }
            let damaged = |error: serde_json::Error| QueueError::Damaged {
                what: "the list of streams".into(),
                problem: error.to_string(),
            };
            let streams = listed.into_iter().map(serde_json::from_value).collect::<Result<Vec<stream::Info>, _>>();
            let streams = streams.map_err(damaged)?;
            let is_last = streams.is_empty();
            infos.extend(streams);
            if is_last || infos.len() >= page.total {
                return Ok(infos);
            }
        }
    }
}

/// A request failed.
#[derive(Debug)]
pub(in crate::client) enum Ask {
    /// The server refused.
    Refused { action: &'static str, error: Error },
    /// No answer.
    Silent(QueueError),
}

impl Ask {
    /// Whether the object of the request was not found.
    pub(in crate::client) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.code() == 404)
    }
}

impl From<QueueError> for Ask {
    fn from(error: QueueError) -> Self {
        Self::Silent(error)
    }
}

impl From<Ask> for QueueError {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::Refused { action, error } => Self::unavailable(action)(error),
            Ask::Silent(error) => error,
        }
    }
}

impl From<Ask> for TopicError {
    fn from(ask: Ask) -> Self {
        match ask {
            // A cluster without a leader answers 503, which is not a refusal.
            Ask::Refused { error, .. } if TOO_MANY_REPLICAS.contains(&error.error_code()) => {
                Self::Refused(format!("it has fewer servers than replicas; pass fewer --replicas: {error}"))
            }
            Ask::Refused { error, .. } if error.code() != 503 => Self::Refused(error.to_string()),
            other => Self::Queue(other.into()),
        }
    }
}
