//! `sightline batches`: many jobs that were sent together, through the API.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use reqwest::{Body, Method};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use crate::config::{BatchArgs, BatchKind, BatchesAction, BatchesArgs};
use crate::output::{out, outln};
use crate::remote::{Remote, escaped, text};
use crate::table::Table;

/// Runs the subcommand.
pub(crate) async fn run(args: BatchesArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        BatchesAction::List { json, api } => {
            let batches = Remote::new(&api)?.get("/v1/batches").await?["batches"].take();
            show(batches.as_array().map_or(&[][..], Vec::as_slice), json, &batches)
        }
        BatchesAction::Send { id, file, kind, model, max_failures, webhook, json, api } => {
            let kind = kind.or_else(|| kind_of(&file)).context("unknown file type; pass --kind tar, zip or ndjson")?;
            let mut path = format!("/v1/batches/{}?model={}", escaped(&id), escaped(&model));
            if let Some(limit) = max_failures {
                path.push_str(&format!("&max_failures={limit}"));
            }
            if let Some(url) = &webhook {
                path.push_str(&format!("&webhook={}", escaped(url)));
            }
            let body = if file.as_os_str() == "-" {
                // A thread of its own reads standard input, and ends with the process.
                Body::wrap_stream(ReaderStream::new(tokio::io::stdin()))
            } else {
                let opened = tokio::fs::File::open(&file).await;
                Body::from(opened.with_context(|| format!("open {}", file.display()))?)
            };
            let batch = Remote::new(&api)?.send_bytes(Method::PUT, &path, content_type(kind), body).await?;
            show(std::slice::from_ref(&batch), json, &batch)
        }
        BatchesAction::Get(args) => one(&args, Method::GET).await,
        BatchesAction::Cancel(args) => one(&args, Method::DELETE).await,
        BatchesAction::Results { id, csv, state, out, api } => {
            let mut path =
                format!("/v1/batches/{}/results?format={}", escaped(&id), if csv { "csv" } else { "ndjson" });
            if let Some(state) = &state {
                path.push_str(&format!("&state={}", escaped(state)));
            }
            let mut answer = Remote::new(&api)?.send(Method::GET, &path).await?;
            let mut output: Box<dyn Write> = match &out {
                Some(path) => {
                    let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
                    Box::new(std::io::BufWriter::new(file))
                }
                None => Box::new(std::io::stdout().lock()),
            };
            while let Some(chunk) = answer.chunk().await.context("the results ended early; run the command again")? {
                output.write_all(&chunk)?;
            }
            output.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        BatchesAction::Verify { expect, batch } => verify(expect.as_deref(), &batch).await,
    }
}

fn kind_of(file: &Path) -> Option<BatchKind> {
    match file.extension()?.to_str()? {
        "tar" => Some(BatchKind::Tar),
        "zip" => Some(BatchKind::Zip),
        "ndjson" | "jsonl" => Some(BatchKind::Ndjson),
        _ => None,
    }
}

fn content_type(kind: BatchKind) -> &'static str {
    match kind {
        BatchKind::Tar => "application/x-tar",
        BatchKind::Zip => "application/zip",
        BatchKind::Ndjson => "application/x-ndjson",
    }
}

async fn one(args: &BatchArgs, method: Method) -> anyhow::Result<ExitCode> {
    let batch = Remote::new(&args.api)?.ask(method, &format!("/v1/batches/{}", escaped(&args.id))).await?;
    show(std::slice::from_ref(&batch), args.json, &batch)
}

fn show(batches: &[Value], as_json: bool, whole: &Value) -> anyhow::Result<ExitCode> {
    if as_json {
        outln!("{}", serde_json::to_string_pretty(whole)?);
        return Ok(ExitCode::SUCCESS);
    }
    let headings = ["id", "state", "model", "total", "queued", "running", "succeeded", "failed", "canceled", "left s"];
    let mut table = Table::new(&headings);
    for batch in batches {
        let count = |name: &str| text(&batch["counts"][name]);
        table.row([
            text(&batch["id"]),
            text(&batch["state"]),
            text(&batch["model"]),
            count("total"),
            count("queued"),
            count("running"),
            count("succeeded"),
            count("failed"),
            count("canceled"),
            text(&batch["eta_seconds"]),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// Exit status if each item has its one terminal record, but not all have succeeded.
const WITHOUT_RESULTS: u8 = 4;

/// Exits with 0 only if each item has exactly one terminal record, and a result in it.
async fn verify(expect: Option<&Path>, args: &BatchArgs) -> anyhow::Result<ExitCode> {
    let (remote, path) = (Remote::new(&args.api)?, format!("/v1/batches/{}/verify", escaped(&args.id)));
    let verdict = match expect {
        None => remote.get(&path).await?,
        Some(file) if file.as_os_str() == "-" => {
            let names = std::io::read_to_string(std::io::stdin()).context("read the names")?;
            remote.send_bytes(Method::POST, &path, "text/plain", names.into()).await?
        }
        Some(file) => {
            let names = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            remote.send_bytes(Method::POST, &path, "text/plain", names.into()).await?
        }
    };
    let complete = verdict["complete"] == true;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        outln!("{} of {} have ended", text(&verdict["ended"]), text(&verdict["total"]));
        for (name, what) in [("open", "has not ended"), ("missing", "has no record")] {
            for id in verdict[name].as_array().into_iter().flatten() {
                outln!("{}  {what}", text(id));
            }
        }
        let (failed, canceled) = (text(&verdict["failed"]), text(&verdict["canceled"]));
        outln!("{}: {failed} failed, {canceled} canceled", if complete { "complete" } else { "not complete" });
    }
    Ok(match complete {
        false => ExitCode::FAILURE,
        true if verdict["failed"] != 0 || verdict["canceled"] != 0 => ExitCode::from(WITHOUT_RESULTS),
        true => ExitCode::SUCCESS,
    })
}
