//! What a worker says of itself: its state, and what it has counted so far.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use queue::members::{Announcement, Role, Stage, Work};
use queue::{JobId, Record};

use crate::engine::Answer;
use crate::error::RunError;

/// What the worker says of itself; clones share it.
#[derive(Clone)]
pub(crate) struct Status(Arc<Mutex<Announcement>>);

impl Status {
    pub(crate) fn new(models: &[String]) -> Self {
        Self(Arc::new(Mutex::new(Announcement::new(Role::Worker, models))))
    }

    /// Notes how far a job in hand is.
    pub(crate) fn stage(&self, job: &JobId, stage: Stage) {
        self.update(|member| {
            match member.work.iter_mut().find(|work| work.job == *job) {
                Some(work) => work.stage = stage,
                None => member.work.push(Work { job: job.clone(), stage }),
            }
            member.in_hand = member.work.len() as u32;
        });
    }

    /// A job is out of hand.
    pub(crate) fn release(&self, job: &JobId) {
        self.update(|member| {
            member.work.retain(|work| work.job != *job);
            member.in_hand = member.work.len() as u32;
        });
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
