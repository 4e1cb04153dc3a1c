//! `sightline produce`: writes messages to a topic, straight through the queue.
//!
//! On a topic with a model each file is a job; on a plain log a file or a line is a message.

use std::io::BufRead;
use std::process::ExitCode;

use ::models::{Model, ModelVersion};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use queue::{JobId, JobOptions, JobSpec, PartitionId, Sequence, Timestamp};
use serde_json::json;

use crate::config::ProduceArgs;
use crate::output::{note, outln};
use crate::setup::Models;
use crate::setup::connect;
use crate::submit::inputs;

/// Publishes everything, in order, and prints where it is stored.
pub(crate) async fn run(args: ProduceArgs) -> anyhow::Result<ExitCode> {
    let queue = connect(&args.queue).await?;
    let topic = queue.fresh_topic(&args.topic).await?;
    let topic = topic
        .with_context(|| format!("topic {} does not exist; create it with sightline topics create", args.topic))?;
    let say = |name: &str, id: &JobId, partition: PartitionId, sequence: Sequence| {
        if args.json {
            outln!("{}", json!({ "source": name, "id": id, "partition": partition, "sequence": sequence }));
        } else {
            outln!("{id}  partition {partition} at {sequence}");
        }
    };
    match &topic.settings.model {
        Some(name) => {
            ensure!(
                !args.paths.is_empty(),
                "topic {} runs {name}: it needs image files, not lines of text; name some",
                topic.name()
            );
            let models = Models::open(&args.models)?;
            let (model, version) = find(&models, name)?;
            for path in files(&args.paths)? {
                let image = Bytes::from(std::fs::read(&path).with_context(|| format!("read {path}"))?);
                let options =
                    JobOptions { partition_key: args.key.clone(), priority: args.priority, ..JobOptions::default() };
                let id = JobId::random(topic.name().clone());
                let spec = spec(id, model, version, options, &image).with_context(|| path.clone())?;
                let record = queue.jobs.submit(&topic, spec, image).await.with_context(|| path.clone())?.into_record();
                say(&path, &record.spec.id, record.partition, record.sequence);
            }
        }
        None if args.paths.is_empty() => {
            for line in std::io::stdin().lock().lines() {
                let line = line.context("read standard input")?;
                let (id, partition, sequence) =
                    queue.logs.append(&topic, args.key.as_deref(), line.clone().into()).await?;
                say(&line, &id, partition, sequence);
            }
        }
        None => {
            for path in files(&args.paths)? {
                let payload = Bytes::from(std::fs::read(&path).with_context(|| format!("read {path}"))?);
                let (id, partition, sequence) = queue.logs.append(&topic, args.key.as_deref(), payload).await?;
                say(&path, &id, partition, sequence);
            }
        }
    }
    queue.flush().await;
    Ok(ExitCode::SUCCESS)
}

/// A model of this machine's repository, at its default version.
pub(crate) fn find<'a>(models: &'a Models, name: &str) -> anyhow::Result<(&'a Model, &'a ModelVersion)> {
    let Some(model) = models.repository.get(name) else {
        bail!(
            "model `{name}` does not exist here; known models: {}. Add a folder with --models DIR/",
            models.repository.names()
        );
    };
    Ok((model, model.version(None).context("it has no version")?))
}

/// The spec of a job for this image.
pub(crate) fn spec(
    id: JobId,
    model: &Model,
    version: &ModelVersion,
    options: JobOptions,
    image: &Bytes,
) -> anyhow::Result<JobSpec> {
    Ok(JobSpec {
        origin: queue::Origin::default(),
        id,
        model: model.name().to_owned(),
        model_version: version.number,
        model_digest: version.digest.clone(),
        created_at: Timestamp::now(),
        accepted_by: "command".into(),
        image: ::api::image_facts(image)?,
        options,
        metadata: std::collections::BTreeMap::new(),
    })
}

/// The files to send; prints which kinds of files were skipped.
fn files(paths: &[String]) -> anyhow::Result<Vec<String>> {
    let (files, skipped) = inputs::collect(paths)?;
    if skipped.is_any() {
        note!("{skipped}");
    }
    Ok(files)
}
