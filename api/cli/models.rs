//! `sightline models`: lists models, and fetches them ahead of time.

use std::process::ExitCode;

use ::models::Model;
use serde_json::json;

use crate::config::{ModelsAction, ModelsArgs};
use crate::output::outln;
use crate::setup::Models;

/// Lists or fetches.
pub(crate) async fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        ModelsAction::List { json, models } => list(&Models::open(&models)?, json)?,
        ModelsAction::Pull { models } => {
            let models = Models::open(&models)?;
            let fetch = move || models.fetch().and_then(|()| models.nats_server()).map(|_| models);
            let models = tokio::task::spawn_blocking(fetch).await??;
            outln!("everything needed to start {} is in {}", models.names.join(", "), models.cache.root().display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(models: &Models, json: bool) -> anyhow::Result<()> {
    if json {
        let entries: Vec<_> = models.repository.iter().map(entry).collect();
        outln!("{}", serde_json::to_string_pretty(&entries)?);
        return Ok(());
    }
    outln!("{:24} {:16} {:8} DESCRIPTION", "MODEL", "TASK", "VERSION");
    for model in models.repository.iter() {
        let manifest = model.manifest();
        let (task, version) = (manifest.task.as_str(), manifest.version);
        outln!("{:24} {task:16} {version:<8} {}", model.name(), manifest.description);
    }
    Ok(())
}

fn entry(model: &Model) -> serde_json::Value {
    let manifest = model.manifest();
    let versions = model.versions().iter().map(|version| json!({"number": version.number, "digest": version.digest}));
    json!({
        "name": model.name(),
        "description": manifest.description,
        "license": manifest.license,
        "task": manifest.task.as_str(),
        "version": manifest.version,
        "versions": versions.collect::<Vec<_>>(),
    })
}
