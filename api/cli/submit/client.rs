//! Sends one image over HTTP, and retries after refusals and lost connections.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use super::inputs::Input;
use super::ledger::Ledger;
use crate::config::ApiAddressArgs;
use crate::data;
use crate::remote::{client, needs_key};

/// How long a request may wait for its job, seconds.
const LONG_POLL: u64 = 30;
/// How long one answer may take, the long poll included.
const ANSWER_PATIENCE: Duration = Duration::from_secs(LONG_POLL + 30);
/// The slowest upload that is waited for, bytes per second.
const UPLOAD_PACE: u64 = 16 * 1024;
/// How long to retry an API that does not answer.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Pauses between attempts: the first, the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A connection pool to one API, for one model.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    model: String,
}

impl Client {
    pub(super) fn new(api: &ApiAddressArgs, model: &str) -> anyhow::Result<Self> {
        let base = data::api_address(api.api.as_deref(), &api.data)?;
        Ok(Self { http: client(api)?, base: base.trim_end_matches('/').to_owned(), model: model.to_owned() })
    }

    /// Fails at once if there is no API, or if it does not have the model.
    pub(super) async fn check_model(&self) -> anyhow::Result<()> {
        let url = format!("{}/v1/models/{}", self.base, self.model);
        let answer = self.http.get(&url).send().await;
        let answer =
            answer.with_context(|| format!("no API at {}; start one with `sightline up`, or pass --api", self.base))?;
        if answer.status().is_success() {
            return Ok(());
        }
        bail!("{}", error_of(answer).await["message"].as_str().unwrap_or("the API refuses"))
    }

    /// Takes one file from upload to result, and writes its line.
    pub(super) async fn process(&self, input: &Input, ledger: &Ledger) -> anyhow::Result<Value> {
        let mut line = match ledger.job_of(&input.name) {
            Some(id) => match self.wait(id).await? {
                // Its record has expired, or the data folder is another one: send it again.
                Err(error) if error["code"] == "job_unknown" => self.upload_and_wait(input, ledger).await?,
                other => line_of(other),
            },
            None => self.upload_and_wait(input, ledger).await?,
        };
        line["file"] = json!(input.name);
        ledger.finish(&line)?;
        Ok(line)
    }

    async fn upload_and_wait(&self, input: &Input, ledger: &Ledger) -> anyhow::Result<Value> {
        let bytes = match input.read().await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(line_of(Err(json!({"code": "file_unreadable", "message": error.to_string()})))),
        };
        let url = format!("{}/v1/jobs", self.base);
        // As long as the API itself waits for a body, and some more.
        let patience = ANSWER_PATIENCE + Duration::from_secs(bytes.len() as u64 / UPLOAD_PACE);
        // An upload whose answer was lost is sent again, by this run or by one after a crash, and stays one job: the
        // key is written down before it is first used.
        let mut key = ledger.key_of(&input.name)?;
        loop {
            let post = || {
                let post = self.http.post(&url).query(&[("model", &self.model)]).header("idempotency-key", &key);
                post.body(bytes.clone()).timeout(patience)
            };
            match self.repeat(post).await? {
                Ok(job) => {
                    let id = job["id"].as_str().context("the API's answer has no job id")?;
                    ledger.accept(&input.name, id)?;
                    return Ok(line_of(self.wait(id).await?));
                }
                // The file has changed since an earlier run used this key.
                Err(error) if error["code"] == "idempotency_key_reused" => key = ledger.new_key(&input.name)?,
                refused => return Ok(line_of(refused)),
            }
        }
    }

    /// Waits until a job is finished.
    async fn wait(&self, id: &str) -> anyhow::Result<Result<Value, Value>> {
        let url = format!("{}/v1/jobs/{id}", self.base);
        loop {
            let answer =
                self.repeat(|| self.http.get(&url).query(&[("wait", LONG_POLL)]).timeout(ANSWER_PATIENCE)).await?;
            match &answer {
                Ok(job) if matches!(job["state"].as_str(), Some("queued" | "running")) => {}
                _ => return Ok(answer),
            }
        }
    }

    /// Sends a request until its answer is final: `Ok` holds the document, `Err` a permanent error. 429, 503 and lost
    /// connections are retried.
    async fn repeat(&self, request: impl Fn() -> reqwest::RequestBuilder) -> anyhow::Result<Result<Value, Value>> {
        let mut pause = PAUSE_FIRST;
        let mut silent_since = None;
        loop {
            let advised = match request().send().await {
                Ok(answer) if answer.status().is_success() => match answer.json().await {
                    Ok(document) => return Ok(Ok(document)),
                    // Cut off in the middle of the answer.
                    Err(error) => give_up(&mut silent_since, &error)?,
                },
                Ok(answer) if is_temporary(answer.status()) => {
                    silent_since = None;
                    retry_after(answer.headers())
                }
                // The API would refuse every image.
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                    let problem: Value = answer.json().await.unwrap_or_default();
                    bail!("{}", needs_key(&problem));
                }
                Ok(answer) => return Ok(Err(error_of(answer).await)),
                Err(error) => give_up(&mut silent_since, &error)?,
            };
            // Jitter, so that 64 uploads do not retry at the same moment.
            let wait = advised.unwrap_or(pause).mul_f64(1.0 + 0.5 * rand::random::<f64>());
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn is_temporary(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(Duration::from_secs(60)))
}

/// Fails once the API has not answered for too long.
fn give_up(silent_since: &mut Option<Instant>, error: &reqwest::Error) -> anyhow::Result<Option<Duration>> {
    let since = *silent_since.get_or_insert_with(Instant::now);
    if since.elapsed() > PATIENCE {
        bail!("the API has not answered for {} s: {error}", PATIENCE.as_secs());
    }
    Ok(None)
}

/// Code and message of a problem document.
async fn error_of(answer: Response) -> Value {
    let status = answer.status();
    let problem: Value = answer.json().await.unwrap_or_default();
    let code = problem["code"].as_str().unwrap_or("http_error");
    let message = problem["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    json!({ "code": code, "message": message })
}

/// A job as it is, or a refusal as `{"state": "refused", "error": …}`.
fn line_of(answer: Result<Value, Value>) -> Value {
    answer.unwrap_or_else(|error| json!({ "state": "refused", "error": error }))
}
