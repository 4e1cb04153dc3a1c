//! `sightline jobs`: jobs, through the API.

use std::process::ExitCode;

use reqwest::Method;
use serde_json::{Value, json};

use crate::config::{JobArgs, JobsAction, JobsArgs, JobsListArgs};
use crate::output::{note, out, outln};
use crate::remote::{Remote, escaped, text};
use crate::table::Table;

/// Seconds that one request waits for a job.
const LONG_POLL: u64 = 30;

/// Runs the subcommand.
pub(crate) async fn run(args: JobsArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        JobsAction::List(args) => list(args).await,
        JobsAction::Get(args) => show(&args, Method::GET, "").await,
        JobsAction::Wait(args) => wait(&args).await,
        JobsAction::Cancel(args) => show(&args, Method::DELETE, "").await,
        JobsAction::Retry(args) => show(&args, Method::POST, "/retry").await,
        JobsAction::Explain(args) => explain(&args).await,
    }
}

async fn list(args: JobsListArgs) -> anyhow::Result<ExitCode> {
    let api = Remote::new(&args.api)?;
    let mut query = String::new();
    for (name, value) in
        [("state", &args.state), ("model", &args.model), ("topic", &args.topic), ("batch", &args.batch)]
    {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", escaped(value)));
        }
    }
    for pair in &args.metadata {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        query.push_str(&format!("&metadata.{}={}", escaped(key), escaped(value)));
    }
    let (mut jobs, mut next) = (Vec::new(), Some(String::new()));
    while let Some(cursor) = next.take_if(|_| jobs.len() < args.limit) {
        let limit = (args.limit - jobs.len()).min(1_000);
        let page = api.get(&format!("/v1/jobs?limit={limit}{query}{cursor}")).await?;
        jobs.extend(page["jobs"].as_array().cloned().unwrap_or_default());
        next = page["next_cursor"].as_str().map(|cursor| format!("&cursor={}", escaped(cursor)));
    }
    if next.is_some() {
        note!("only the newest {} are listed; --limit lists more", jobs.len());
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&jobs)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["id", "state", "model", "created", "took ms", "answer"]);
    for job in &jobs {
        table.row([
            text(&job["id"]),
            text(&job["state"]),
            text(&job["model"]),
            text(&job["created_at"]),
            job["timings"]["total_ms"].as_f64().map_or_else(|| "-".into(), |ms| format!("{ms:.0}")),
            answer(job),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// A job's answer in a few words.
fn answer(job: &Value) -> String {
    if let Some(code) = job["error"]["code"].as_str() {
        return code.to_owned();
    }
    let result = &job["result"];
    match result["type"].as_str() {
        Some("classification") => {
            let best = &result["predictions"][0];
            format!("{} {:.2}", text(&best["label"]), best["score"].as_f64().unwrap_or_default())
        }
        Some("detection") => format!("{} objects", result["detections"].as_array().map_or(0, Vec::len)),
        Some(other) => other.to_owned(),
        None => "-".into(),
    }
}

async fn show(args: &JobArgs, method: Method, suffix: &str) -> anyhow::Result<ExitCode> {
    let job = Remote::new(&args.api)?.ask(method, &format!("/v1/jobs/{}{suffix}", args.id)).await?;
    print_one(&job, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Exits with 0 only if the job has succeeded.
async fn wait(args: &JobArgs) -> anyhow::Result<ExitCode> {
    let api = Remote::new(&args.api)?;
    loop {
        let job = api.get(&format!("/v1/jobs/{}?wait={LONG_POLL}", args.id)).await?;
        let succeeded = match job["state"].as_str() {
            Some("queued" | "running") => continue,
            state => state == Some("succeeded"),
        };
        print_one(&job, args.json)?;
        return Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
}

fn print_one(job: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        outln!("{}", serde_json::to_string_pretty(job)?);
        return Ok(());
    }
    outln!("{}  {}  {} version {}", text(&job["id"]), text(&job["state"]), text(&job["model"]), job["model_version"]);
    for (name, value) in [
        ("created", &job["created_at"]),
        ("finished", &job["finished_at"]),
        ("batch", &job["batch"]),
        ("custom id", &job["custom_id"]),
        ("worker", &job["worker"]),
        ("error", &job["error"]["message"]),
    ] {
        if !value.is_null() {
            outln!("{name:10} {}", text(value));
        }
    }
    if job["result"] != json!(null) {
        outln!("{:10} {}", "result", answer(job));
    }
    Ok(())
}

async fn explain(args: &JobArgs) -> anyhow::Result<ExitCode> {
    let job = Remote::new(&args.api)?.get(&format!("/v1/jobs/{}?explain=true", args.id)).await?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&job)?);
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{}  {}  {} version {}", args.id, text(&job["state"]), text(&job["model"]), job["model_version"]);
    for event in job["explanation"].as_array().into_iter().flatten() {
        outln!("{}  {:10} {}", text(&event["at"]), text(&event["what"]), text(&event["text"]));
    }
    Ok(ExitCode::SUCCESS)
}
