//! What a worker announces about itself: its state and its counters.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use queue::members::{Announcement, Role, Stage, Work};
use queue::{JobId, Record};

use crate::engine::Answer;
use crate::error::RunError;

/// The worker's announcement; clones share it.
#[derive(Clone)]
pub(crate) struct Status(Arc<Mutex<Announcement>>);

impl Status {
    pub(crate) fn new(models: &[String]) -> Self {
        Self(Arc::new(Mutex::new(Announcement::new(Role::Worker, models))))
    }

    /// Notes the stage of a job that the worker holds.
    pub(crate) fn stage(&self, job: &JobId, stage: Stage) {
        self.update(|member| {
            match member.work.iter_mut().find(|work| work.job == *job) {
                Some(work) => work.stage = stage,
                None => member.work.push(Work { job: job.clone(), stage }),
            }
            member.in_hand = member.work.len() as u32;
        });
    }

    /// Removes a job that the worker no longer holds.
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

    /// Counts a run's outcome, and the time of its stages if it succeeded.
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
