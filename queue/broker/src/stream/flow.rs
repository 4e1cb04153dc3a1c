//! How much may be in flight to the subscriber of a push consumer.
//!
//! Once half of a window is in flight, the broker sends the receiver a message to answer. The receiver
//! reads in order, so its answer shows that it has read everything before. Each answer widens the window.

const WINDOW_MIN: u64 = 2 << 20;
const WINDOW_MAX: u64 = 32 << 20;

/// The flow to one receiver.
#[derive(Debug)]
pub(crate) struct Flow {
    window: u64,
    /// Bytes that were sent but are not known to have arrived.
    on_way: u64,
    asked: Option<Asked>,
}

/// A flow control message without an answer yet.
#[derive(Debug)]
struct Asked {
    subject: String,
    /// Bytes that were sent before it.
    bytes: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self { window: WINDOW_MIN, on_way: 0, asked: None }
    }
}

impl Flow {
    /// Counts sent bytes. Returns whether to ask the receiver now.
    pub(crate) fn sent(&mut self, bytes: u64) -> bool {
        self.on_way += bytes;
        self.asked.is_none() && self.on_way > self.window / 2
    }

    /// Records that the receiver was asked to answer on this subject.
    pub(crate) fn ask(&mut self, subject: String) {
        self.asked = Some(Asked { subject, bytes: self.on_way });
    }

    /// Subject of the unanswered message, if it blocks further sending.
    pub(crate) fn stalled_by(&self) -> Option<&str> {
        self.asked.as_ref().filter(|_| self.on_way > self.window).map(|asked| asked.subject.as_str())
    }

    /// Records an answer. Returns whether it was to the unanswered message.
    pub(crate) fn answered(&mut self, subject: &str) -> bool {
        let Some(asked) = self.asked.take_if(|asked| asked.subject == subject) else { return false };
        self.on_way = self.on_way.saturating_sub(asked.bytes);
        self.window = (self.window * 2).min(WINDOW_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_answers_is_sent_more_at_a_time() {
        let mut flow = Flow::default();
        assert!(!flow.sent(WINDOW_MIN / 2) && flow.sent(1), "asked once half of the window is out");
        flow.ask("a".into());
        assert!(!flow.sent(WINDOW_MIN / 2 - 1));
        assert_eq!(flow.stalled_by(), None);
        assert!(!flow.sent(1), "one question at a time");
        assert_eq!(flow.stalled_by(), Some("a"));
        assert!(!flow.answered("b") && flow.answered("a") && !flow.answered("a"));
        assert_eq!((flow.window, flow.on_way, flow.stalled_by()), (2 * WINDOW_MIN, WINDOW_MIN / 2, None));
    }
}
