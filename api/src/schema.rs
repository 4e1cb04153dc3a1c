//! Parts of the API's description that many routes share.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

/// A body that is not a text: an image, or an archive of images.
pub(crate) struct Binary;

impl PartialSchema for Binary {
    fn schema() -> RefOr<Schema> {
        let binary = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(Type::String).format(Some(binary)).into()
    }
}

impl ToSchema for Binary {}

/// `job_unknown`: the job does not exist, belongs to another owner, or its result has expired.
#[derive(IntoResponses)]
#[response(status = 404)]
pub(crate) struct NoJob;

/// The batch does not exist.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it only says how answers look")]
pub(crate) enum NoBatch {
    /// `batch_id_invalid`.
    #[response(status = 400)]
    Invalid,
    /// `batch_unknown`: the batch does not exist, or belongs to another owner.
    #[response(status = 404)]
    Unknown,
}

/// The topic does not exist.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it only says how answers look")]
pub(crate) enum NoTopic {
    /// `topic_invalid`: not a topic name.
    #[response(status = 400)]
    Invalid,
    /// `topic_unknown`.
    #[response(status = 404)]
    Unknown,
}
