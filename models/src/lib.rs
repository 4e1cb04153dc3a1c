//! Models: their manifests and files, and the steps from an image's bytes to a model's input and from its
//! outputs to an answer.
//!
//! This package does not know the queue, HTTP or the runtime that executes a model; it is plain, blocking code. Follow
//! one image: [`decode`] turns bytes into upright RGB pixels, [`preprocess`] turns pixels into the tensor that the
//! [`manifest`] describes, the worker runs the model, and [`postprocess`] turns its outputs into an [`output::Output`].
//!
//! ```
//! let repository = models::Repository::builtin();
//! let model = repository.get("efficientnet-lite0").expect("it is built in");
//! assert_eq!(model.manifest().input.width, 224);
//! ```

pub mod manifest;
pub mod repository;
pub mod pull;
pub mod decode;
pub mod preprocess;
pub mod postprocess;
pub mod output;
mod digest;
mod error;

pub use decode::{Format, Image, ImageHeader, Limits};
pub use error::{ImageError, ManifestError, OutputError, PullError, RepositoryError};
pub use manifest::Manifest;
pub use output::Output;
pub use preprocess::{Placement, Tensor};
pub use pull::Cache;
pub use repository::{Model, ModelVersion, Repository, Unavailable};
