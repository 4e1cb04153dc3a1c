//! ONNX Runtime. The only file that uses the crate `ort`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use models::postprocess::OutputTensor;
use models::{Manifest, Tensor};
use ort::environment::Environment;
use ort::session::{RunOptions, Session, builder::GraphOptimizationLevel};
use ort::value::{Outlet, TensorRef};

use crate::WorkerError;
use crate::error::RunError;

/// The library's state. It allows one per process.
static ENVIRONMENT: Mutex<Option<Arc<Environment>>> = Mutex::new(None);

/// The loaded library.
pub(crate) struct Runtime {
    environment: Arc<Environment>,
    /// Threads inside one operator.
    threads: usize,
}

impl Runtime {
    /// Loads the library at `path`. Later calls in the same process reuse the first one's library.
    pub(crate) fn load(path: &Path, threads: usize) -> Result<Self, WorkerError> {
        let broken = |problem: String| WorkerError::Runtime { path: path.display().to_string(), problem };
        // No telemetry: nothing leaves the machine.
        let mut environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = environment.clone() {
            return Ok(Self { environment, threads });
        }
        let builder = ort::init_from(path).map_err(|error| broken(error.to_string()))?.with_telemetry(false);
        let built = Arc::new(builder.build().map_err(|error| broken(error.to_string()))?);
        Ok(Self { environment: environment.insert(built).clone(), threads })
    }

    /// Loads a model and checks its inputs and outputs against the manifest.
    pub(crate) fn session(&self, graph: &Path, manifest: &Manifest) -> Result<LoadedModel, String> {
        let session = self.open(graph).map_err(|error| error.to_string())?;
        let names = |outlets: &[Outlet]| outlets.iter().map(|outlet| outlet.name().to_owned()).collect::<Vec<_>>();
        let inputs = names(session.inputs());
        if inputs != [manifest.input.name.clone()] {
            return Err(format!(
                "the graph's inputs are {inputs:?}; the manifest's `input.name` is `{}`",
                manifest.input.name
            ));
        }
        let wanted = wanted_outputs(manifest);
        let outputs = names(session.outputs());
        if let Some(missing) = wanted.iter().find(|name| !outputs.contains(name)) {
            return Err(format!("the graph's outputs are {outputs:?}; the manifest names `{missing}`"));
        }
        Ok(LoadedModel { session, outputs: wanted })
    }

    fn open(&self, graph: &Path) -> ort::Result<Session> {
        let mut builder = Session::builder(&self.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(self.threads)?
            // A thread that spins for work takes a core from the other workers.
            .with_intra_op_spinning(false)?;
        builder.commit_from_file(graph)
    }
}

fn wanted_outputs(manifest: &Manifest) -> Vec<String> {
    let classification = manifest.classification.iter().map(|section| section.scores.clone());
    let detection = manifest.detection.iter().flat_map(|section| [section.boxes.clone(), section.scores.clone()]);
    let embedding = manifest.embedding.iter().map(|section| section.vector.clone());
    classification.chain(detection).chain(embedding).collect()
}

/// A model that is ready to run.
pub(crate) struct LoadedModel {
    session: Session,
    outputs: Vec<String>,
}

impl LoadedModel {
    /// Runs the model on one input, until `stop` is pulled.
    pub(crate) fn run(&mut self, input: &Tensor, stop: &Stop) -> Result<Vec<OutputTensor>, RunError> {
        let failed = |error: ort::Error| RunError::Runtime(error.to_string());
        let shape = input.shape.map(|side| side as i64);
        let tensor = TensorRef::from_array_view((shape, input.data.as_slice())).map_err(failed)?;
        let outputs = self.session.run_with_options(ort::inputs![tensor], &stop.options).map_err(failed)?;
        let wanted = self.outputs.iter().map(|name| {
            let value = outputs.get(name).ok_or_else(|| RunError::Runtime(format!("no output `{name}` came")))?;
            let (shape, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
            let shape = shape.iter().map(|side| usize::try_from(*side).unwrap_or(0)).collect();
            Ok(OutputTensor { name: name.clone(), shape, data: data.to_vec() })
        });
        wanted.collect()
    }
}

/// Stops one run from another thread; the run ends at its next operator.
#[derive(Clone)]
pub(crate) struct Stop {
    options: Arc<RunOptions>,
    pulled: Arc<AtomicBool>,
}

impl Stop {
    /// A stop that is not pulled yet.
    pub(crate) fn new() -> Result<Self, RunError> {
        let options = RunOptions::new().map_err(|error| RunError::Runtime(error.to_string()))?;
        Ok(Self { options: Arc::new(options), pulled: Arc::default() })
    }

    /// Ends the run, now or as soon as it begins.
    pub(crate) fn pull(&self) {
        self.pulled.store(true, Ordering::Relaxed);
        if let Err(error) = self.options.terminate() {
            tracing::warn!(%error, "run not stopped");
        }
    }

    /// Whether the run was stopped.
    pub(crate) fn is_pulled(&self) -> bool {
        self.pulled.load(Ordering::Relaxed)
    }
}
