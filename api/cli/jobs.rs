//! `sightline jobs`: one job, as the API knows it.

use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::config::{JobsAction, JobsArgs};
use crate::data;

/// Does what was asked for.
pub(crate) async fn run(args: JobsArgs) -> anyhow::Result<ExitCode> {
    let JobsAction::Explain { id, json, api, data } = args.action;
    drop(rustls::crypto::ring::default_provider().install_default());
    let api = data::api_address(api.as_deref(), &data);
    let url = format!("{}/v1/jobs/{id}?explain=true", api.trim_end_matches('/'));
    let answer = reqwest::get(&url).await.with_context(|| format!("ask {api}"))?;
    let (status, job): (_, Value) = (answer.status(), answer.json().await.context("read the answer")?);
    if !status.is_success() {
        bail!("{}", job["detail"].as_str().unwrap_or("the API refused"));
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&job)?);
        return Ok(ExitCode::SUCCESS);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    println!("{id}  {}  {} version {}", text(&job["state"]), text(&job["model"]), job["model_version"]);
    for event in job["explanation"].as_array().into_iter().flatten() {
        println!("{}  {:10} {}", text(&event["at"]), text(&event["what"]), text(&event["text"]));
    }
    Ok(ExitCode::SUCCESS)
}
