//! Publishing, and the server's answers to it.

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;

use super::{Connection, LIMIT_REACHED, server_error};
use crate::Sequence;

/// Why the server refused a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) enum Refusal {
    AlreadyThere,
    Full,
    TooLarge,
    NoStream,
}

impl Connection {
    /// Publishes and waits for the acknowledgement, which means that the message is durable.
    pub(in crate::client) async fn publish_acked(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Result<Sequence, PublishError> {
        let ack = self.jetstream.send_publish(subject, message).await?.await?;
        Ok(Sequence(ack.sequence))
    }
}

/// Why the server refused a publish; `None` if it may only be that its answer was lost.
pub(in crate::client) fn refusal(error: &PublishError) -> Option<Refusal> {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => return Some(Refusal::TooLarge),
        PublishErrorKind::WrongLastSequence => return Some(Refusal::AlreadyThere),
        PublishErrorKind::StreamNotFound => return Some(Refusal::NoStream),
        _ => {}
    }
    let refused = server_error(error).filter(|refusal| refusal.error_code() == LIMIT_REACHED)?;
    // All limits share one code; only the text distinguishes them.
    let per_subject = refused.to_string().contains("per subject");
    Some(if per_subject { Refusal::AlreadyThere } else { Refusal::Full })
}
