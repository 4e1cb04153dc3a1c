//! `GET /v1/models`: the models that jobs can run, and how many workers have loaded each.

use axum::Json;
use axum::extract::State;
use models::Model;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::path::ModelPath;
use crate::state::Shared;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Catalog {
    models: Vec<ServedModel>,
}

/// One model as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
pub(crate) struct ServedModel {
    name: String,
    description: String,
    license: String,
    task: &'static str,
    /// Default version.
    version: u32,
    versions: Vec<Version>,
    input: Input,
    labels: usize,
    /// Number of workers that have loaded it.
    workers: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ModelVersion)]
struct Version {
    number: u32,
    digest: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ModelInput)]
struct Input {
    width: u32,
    height: u32,
}

/// Lists all models.
#[utoipa::path(
    get, path = "/v1/models", tag = "models", operation_id = "listModels",
    responses((status = 200, description = "All models.", body = Catalog)),
)]
pub(crate) async fn list(State(state): State<Shared>) -> Json<Catalog> {
    Json(Catalog { models: state.repository.iter().map(|model| entry(&state, model)).collect() })
}

/// Returns a model.
#[utoipa::path(
    get, path = "/v1/models/{name}", tag = "models", operation_id = "getModel",
    params(ModelPath),
    responses(
        (status = 200, description = "The model.", body = ServedModel),
        (status = 404, description = "`model_unknown`."),
    ),
)]
pub(crate) async fn show(
    State(state): State<Shared>,
    ModelPath { name }: ModelPath,
) -> Result<Json<ServedModel>, ApiError> {
    let unknown = || ApiError::ModelUnknown { name: name.chars().take(80).collect(), known: state.repository.names() };
    let model = state.repository.get(&name).ok_or_else(unknown)?;
    Ok(Json(entry(&state, model)))
}

fn entry(state: &Shared, model: &Model) -> ServedModel {
    let manifest = model.manifest();
    let version = |version: &models::ModelVersion| Version { number: version.number, digest: version.digest.clone() };
    ServedModel {
        name: model.name().to_owned(),
        description: manifest.description.clone(),
        license: manifest.license.clone(),
        task: manifest.task.as_str(),
        version: manifest.version,
        versions: model.versions().iter().map(version).collect(),
        input: Input { width: manifest.input.width, height: manifest.input.height },
        // `?` marks a class that the data set does not use.
        labels: model.labels().iter().filter(|label| *label != "?").count(),
        workers: state.roster.workers_of(model.name()),
    }
}
