//! What a worker says of itself: its state, and what it has counted so far.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use queue::members::{Announcement, Role, Totals, new_id};
use queue::{Record, Timestamp};

use crate::engine::Answer;
use crate::error::RunError;

/// What the worker says of itself; clones share it.
#[derive(Clone)]
pub(crate) struct Status(Arc<Mutex<Announcement>>);

impl Status {
    pub(crate) fn new(models: &[String]) -> Self {
        Self(Arc::new(Mutex::new(Announcement {
            id: new_id(Role::Worker),
            role: Role::Worker,
            state: "starting".into(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: Timestamp::now(),
            models: models.to_vec(),
            in_hand: 0,
            totals: Totals::default(),
        })))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Announcement)) {
        change(&mut self.0.lock().expect("no panic holds this lock"));
    }

    pub(crate) fn snapshot(&self) -> Announcement {
        self.0.lock().expect("no panic holds this lock").clone()
    }

    /// Counts a run: its outcome, and the stages of one that succeeded.
    pub(crate) fn count(&self, running: &Record, run: &Result<Answer, RunError>, outcome: &str) {
        let model = &running.spec.model;
        let queued = running.attempts.last().map_or(0, |a| a.started_at.millis_since(running.spec.created_at));
        self.update(|member| {
            member.totals.count(model, outcome);
            if let (Ok(answer), "succeeded") = (run, outcome) {
                let stages = &answer.stages;
                for (stage, time) in [
                    ("queue", Duration::from_millis(queued)),
                    ("decode", stages.decode),
                    ("preprocess", stages.preprocess),
                    ("inference", stages.inference),
                    ("postprocess", stages.postprocess),
                ] {
                    member.totals.time(model, stage, time.as_secs_f64());
                }
            }
        });
    }
}
