//! How much may be in flight to the subscriber of a push consumer.
//!
//! After each window of bytes the receiver is asked to answer a plain message. It reads in order, so its
//! answer says that it has taken what was sent before. The window opens while answers come.

const WINDOW_MIN: u64 = 2 << 20;
const WINDOW_MAX: u64 = 32 << 20;

/// The flow to one receiver.
#[derive(Debug)]
pub(crate) struct Flow {
    window: u64,
    /// Bytes that were sent and are not known to have arrived.
    on_way: u64,
    asked: Option<Asked>,
}

/// A question that was not answered yet.
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
    /// Bytes were sent. Whether the receiver should be asked now.
    pub(crate) fn sent(&mut self, bytes: u64) -> bool {
        self.on_way += bytes;
        self.asked.is_none() && self.on_way > self.window / 2
    }

    /// The receiver is asked to answer on this subject.
    pub(crate) fn ask(&mut self, subject: String) {
        self.asked = Some(Asked { subject, bytes: self.on_way });
    }

    /// The question that keeps more from being sent, if one does.
    pub(crate) fn stalled_by(&self) -> Option<&str> {
        self.asked.as_ref().filter(|_| self.on_way > self.window).map(|asked| asked.subject.as_str())
    }

    /// An answer came. Whether it was to the question that is open.
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
