//! The path of every image into the queue, alone or in a batch: look up its model and topic, charge the caller's
//! key, submit the job.

use std::sync::Arc;

use bytes::Bytes;
use models::{ImageError, Limits, Model, ModelVersion, decode};
use queue::client::Submitted;
use queue::{ImageFacts, JobError, JobId, JobSpec, Timestamp, Topic, TopicError, TopicName};

use crate::digest::sha256;
use crate::error::ApiError;
use crate::jobs::{Options, lane};
use crate::keys::Caller;
use crate::metrics;
use crate::state::AppState;
use crate::webhooks;

/// What the jobs of one request are for.
pub(crate) struct Target<'a> {
    pub(crate) topic: Arc<Topic>,
    pub(crate) options: Options,
    model: &'a Model,
    version: &'a ModelVersion,
}

/// The input of a job.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Image(Bytes),
    /// Not an image: the job fails at once with this error.
    Refused(JobError),
}

/// Completes the options and looks up the model that they name. Needs no image, so wrong options are refused before
/// one arrives.
///
/// # Errors
/// [`ApiError`] when an option is wrong.
pub(crate) async fn check<'a>(
    state: &'a AppState,
    options: &mut Options,
) -> Result<(&'a Model, &'a ModelVersion), ApiError> {
    resolve(state, options).await?;
    find_model(state, options)
}

impl<'a> Target<'a> {
    /// Looks up what the options name, for a caller; a model's own topic is created with its first job.
    ///
    /// # Errors
    /// [`ApiError`] when an option is wrong, or the queue does not answer.
    pub(crate) async fn of(state: &'a AppState, caller: &Caller, mut options: Options) -> Result<Self, ApiError> {
        let (model, version) = check(state, &mut options).await?;
        let topic = find_topic(state, &options, model).await?;
        options.settle_priority(|asked| caller.priority(asked))?;
        Ok(Self { topic, options, model, version })
    }

    /// The name of the model.
    pub(crate) fn model(&self) -> &str {
        self.model.name()
    }

    /// The specification of one job; `options` are the target's own, or these with more metadata.
    pub(crate) fn spec(
        &self,
        state: &AppState,
        caller: &Caller,
        options: Options,
        id: JobId,
        image: ImageFacts,
    ) -> JobSpec {
        JobSpec {
            id,
            model: self.model.name().to_owned(),
            model_version: self.version.number,
            model_digest: self.version.digest.clone(),
            created_at: Timestamp::now(),
            accepted_by: state.member.clone(),
            image,
            options: options.job,
            metadata: options.metadata,
            origin: queue::Origin {
                owner: caller.owner.clone(),
                request: Some(uuid::Uuid::new_v4().simple().to_string()),
                ..queue::Origin::default()
            },
        }
    }
}

/// Charges the caller's key and submits a job. Safe to repeat with the same `spec`.
///
/// # Errors
/// [`ApiError::TooMany`] when the key's limit is reached, [`ApiError::Submit`] when the queue did not accept the
/// job.
pub(crate) async fn admit(
    state: &AppState,
    caller: &Caller,
    topic: &Arc<Topic>,
    mut spec: JobSpec,
    input: Input,
) -> Result<Submitted, ApiError> {
    let waiting = matches!(input, Input::Image(_)).then_some(spec.image.bytes);
    let charge = caller.charge(&state.index, &state.queue, waiting.unwrap_or(0)).await?;
    spec.origin.lane = lane::of(state, caller, topic, &spec).await;
    let submitted = match input {
        Input::Image(bytes) => state.queue.jobs.submit(topic, spec, bytes).await?,
        Input::Refused(problem) => state.queue.jobs.reject(topic, spec, problem).await?,
    };
    if let (Submitted::New(record), Some(_)) = (&submitted, waiting) {
        if let Some(charge) = charge {
            charge.waits();
        }
        metrics::accepted(&record.spec.model);
        tracing::debug!(job_id = %record.spec.id, partition = %record.partition, "job accepted");
    }
    Ok(submitted)
}

/// Resolves options on this server: a topic implies its model, and a webhook must be a URL that may be called.
async fn resolve(state: &AppState, options: &mut Options) -> Result<(), ApiError> {
    if let Some(url) = options.webhook() {
        webhooks::check_target(url, &state.config.webhook_allow)?;
    }
    if let (None, Some(name)) = (&options.model, &options.topic) {
        let topic = state.queue.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone()))?;
        options.model = Some(topic.settings.model.clone().ok_or_else(|| ApiError::TopicPlain(name.clone()))?);
    }
    Ok(())
}

/// The named topic, or else the model's own, which is created with its first job.
async fn find_topic(state: &AppState, options: &Options, model: &Model) -> Result<Arc<Topic>, ApiError> {
    let topic = match &options.topic {
        Some(name) => state.queue.topic(name).await?.ok_or_else(|| TopicError::Unknown(name.clone()))?,
        None => {
            let name = TopicName::new(model.name()).map_err(|_| ApiError::Internal)?;
            state.queue.topics.ensure(&name, model.name()).await?
        }
    };
    match &topic.settings.model {
        Some(its) if its == model.name() => Ok(topic),
        Some(its) => {
            let (topic, model) = (topic.name().clone(), model.name().to_owned());
            Err(ApiError::TopicModel { topic, its: its.clone(), model })
        }
        None => Err(ApiError::TopicPlain(topic.name().clone())),
    }
}

fn find_model<'a>(state: &'a AppState, options: &Options) -> Result<(&'a Model, &'a ModelVersion), ApiError> {
    let known = || state.repository.names();
    let name = options.model.as_ref().ok_or_else(|| ApiError::ModelMissing { known: known() })?;
    let unknown = || ApiError::ModelUnknown { name: name.chars().take(80).collect(), known: known() };
    let model = state.repository.get(name).ok_or_else(unknown)?;
    let number = options.version;
    let missing = || ApiError::VersionUnknown { model: name.clone(), version: number.unwrap_or_default() };
    Ok((model, model.version(number).ok_or_else(missing)?))
}

/// Facts about an image that are known without decoding it.
///
/// # Errors
/// [`ImageError`] when the bytes are not an image, or are one that would be refused.
pub fn image_facts(image: &Bytes) -> Result<ImageFacts, ImageError> {
    let header = decode::inspect(image, &Limits::default())?;
    Ok(ImageFacts {
        width: header.width,
        height: header.height,
        format: header.format.name().to_owned(),
        bytes: image.len() as u64,
        sha256: sha256(image),
    })
}
