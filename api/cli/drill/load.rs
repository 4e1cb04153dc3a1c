//! The load of a drill: uploads, and what became of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use queue::JobId;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stack::Api;

/// What is uploaded.
const IMAGE: &[u8] = include_bytes!("../../../tests/photos/rocket.jpg");
/// Pause of one uploader after an upload, so that the workers keep up.
const UPLOAD_PAUSE: Duration = Duration::from_millis(150);
/// Pause after an upload that was not accepted.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// How long one upload may take before it is retried.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for the first upload, and for the end of all jobs.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
const END_PATIENCE: Duration = Duration::from_secs(180);
/// Jobs that are polled at a time.
const LOOKERS: usize = 16;

/// Uploads that continue until they are stopped.
pub(crate) struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    uploaders: JoinSet<()>,
}

#[derive(Default)]
struct Tally {
    accepted: Vec<JobId>,
    pauses: Vec<Duration>,
    last: Option<Instant>,
}

/// What became of all accepted jobs.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
    pub(crate) lost: BTreeSet<JobId>,
    pub(crate) duplicated: usize,
    pub(crate) stuck: BTreeSet<JobId>,
}

impl Load {
    pub(crate) fn start(api: Api, model: &str, count: usize) -> Self {
        let (tally, stop) = (Arc::new(Mutex::new(Tally::default())), CancellationToken::new());
        let mut uploaders = JoinSet::new();
        for _ in 0..count {
            uploaders.spawn(upload(api.clone(), model.to_owned(), tally.clone(), stop.clone()));
        }
        Self { tally, stop, uploaders }
    }

    /// Waits until an upload is accepted.
    pub(crate) async fn wait_for_first(&self) -> anyhow::Result<()> {
        let waiting = async {
            while self.tally.lock().expect("no panic holds this lock").accepted.is_empty() {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        };
        tokio::time::timeout(FIRST_PATIENCE, waiting).await.context("no upload was accepted")
    }

    /// Ends the load; returns the accepted jobs and the times between acceptances.
    pub(crate) async fn stop(mut self) -> (Vec<JobId>, Vec<Duration>) {
        self.stop.cancel();
        while self.uploaders.join_next().await.is_some() {}
        let tally = std::mem::take(&mut *self.tally.lock().expect("no panic holds this lock"));
        (tally.accepted, tally.pauses)
    }
}

async fn upload(api: Api, model: String, tally: Arc<Mutex<Tally>>, stop: CancellationToken) {
    let client = reqwest::Client::builder().timeout(UPLOAD_PATIENCE).build().expect("a client without extras");
    while !stop.is_cancelled() {
        let url = format!("{}/v1/jobs?model={model}", api.read().expect("no panic holds this lock"));
        let pause = match accept(&client, &url).await {
            Ok(id) => {
                let mut tally = tally.lock().expect("no panic holds this lock");
                let now = Instant::now();
                if let Some(last) = tally.last.replace(now) {
                    tally.pauses.push(now - last);
                }
                tally.accepted.push(id);
                UPLOAD_PAUSE
            }
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "not accepted");
                REFUSED_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn accept(client: &reqwest::Client, url: &str) -> anyhow::Result<JobId> {
    let answer = client.post(url).body(IMAGE).send().await?;
    anyhow::ensure!(answer.status() == 202, "{}", answer.status());
    let job: Value = answer.json().await?;
    job["id"].as_str().context("a job has an id")?.parse().context("the id is one")
}

/// Waits for the end of all jobs, and reads each result twice.
pub(crate) async fn ends(api: Api, accepted: &[JobId]) -> Ends {
    let client = reqwest::Client::builder().timeout(UPLOAD_PATIENCE).build().expect("a client without extras");
    let deadline = Instant::now() + END_PATIENCE;
    let mut ends = Ends::default();
    let looking = futures::stream::iter(accepted.iter().map(|id| end(&client, &api, id, deadline)));
    let found: Vec<Option<Value>> = looking.buffered(LOOKERS).collect().await;
    for (id, first) in accepted.iter().zip(found) {
        let Some(first) = first else {
            ends.stuck.insert(id.clone());
            continue;
        };
        if first.is_null() {
            ends.lost.insert(id.clone());
            continue;
        }
        let second = end(&client, &api, id, deadline.max(Instant::now() + UPLOAD_PATIENCE)).await;
        let attempts = first["attempts"].as_array().into_iter().flatten();
        let results = attempts.filter(|attempt| attempt["outcome"] == "succeeded").count();
        if results > 1 || second.as_ref() != Some(&first) {
            ends.duplicated += 1;
        }
        match first["state"].as_str() {
            Some("succeeded") => ends.succeeded += 1,
            _ => ends.failed += 1,
        }
    }
    ends
}

/// A finished job; null if the API does not know it; `None` if it does not end in time.
async fn end(client: &reqwest::Client, api: &Api, id: &JobId, deadline: Instant) -> Option<Value> {
    loop {
        let url = format!("{}/v1/jobs/{id}?wait=10", api.read().expect("no panic holds this lock"));
        if let Ok(answer) = client.get(&url).send().await {
            match answer.status().as_u16() {
                404 => return Some(Value::Null),
                200 => {
                    let job: Value = answer.json().await.unwrap_or_default();
                    if matches!(job["state"].as_str(), Some("succeeded" | "failed" | "canceled")) {
                        return Some(job);
                    }
                }
                _ => {}
            }
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}
