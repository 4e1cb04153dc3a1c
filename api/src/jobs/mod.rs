//! Jobs: taken in, looked at, canceled, run again.

pub(crate) mod submit;
mod body;
mod form;
mod options;
pub(crate) mod status;
pub(crate) mod list;
pub(crate) mod events;
pub(crate) mod manage;
mod explain;
pub(crate) mod lane;
mod position;
mod wire;

pub(crate) use options::Options;
pub use submit::image_facts;
pub(crate) use submit::{check_encoding, find_model, find_topic, resolve_options, spec};
pub(crate) use wire::Job;

/// The job that a path names, as the API's description has it.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it only says how a path looks")]
pub(crate) struct JobPath {
    /// The job.
    id: queue::JobId,
}

/// `job_unknown`: the job does not exist, belongs to another owner, or its result has expired.
#[derive(utoipa::IntoResponses)]
#[response(status = 404)]
pub(crate) struct NoJob;
