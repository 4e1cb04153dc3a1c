//! Stored data that was lost.

/// Stored data that was lost.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Loss {
    /// The stream, if it is known.
    pub stream: Option<String>,
    /// First and last sequence of the messages, if they are known.
    pub sequences: Option<(u64, u64)>,
    /// What is damaged, and where.
    pub problem: String,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.stream, self.sequences) {
            (Some(stream), Some((from, to))) if from == to => write!(f, "message {from} of stream {stream} is lost: ")?,
            (Some(stream), Some((from, to))) => write!(f, "messages {from} to {to} of stream {stream} are lost: ")?,
            _ => {}
        }
        f.write_str(&self.problem)
    }
}
