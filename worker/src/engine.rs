//! The models of one process, on a thread of their own.
//!
//! Decoding and inference take the processor for milliseconds at a time, so they stay off the threads that renew
//! leases. The engine takes one request at a time, and the next one only after it has answered.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use models::postprocess::{Frame, Wishes, postprocess};
use models::preprocess::{preprocess, short_side_needed};
use models::{Cache, Image, Limits, Model, ModelVersion, Output, OutputError, Repository, decode};
use queue::JobSpec;
use queue::members::ModelFiles;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot};

use crate::WorkerError;
use crate::error::RunError;
use crate::onnx::{LoadedModel, Runtime, Stop};

/// How long a stopped run may take to end before it counts as stuck. A model stops at its next operator, but a decoder
/// only when it is done: this is longer than the slowest image within the limits takes on a busy machine.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// One image for one model.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) image: Bytes,
    pub(crate) model: String,
    pub(crate) version: u32,
    pub(crate) wishes: Wishes,
    /// How long all stages together may take.
    pub(crate) timeout: Duration,
}

/// A model's answer, and how long each stage took.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) output: Output,
    pub(crate) stages: Stages,
}

/// Time by stage.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stages {
    pub(crate) decode: Duration,
    pub(crate) preprocess: Duration,
    pub(crate) inference: Duration,
    pub(crate) postprocess: Duration,
}

/// A handle to the engine's thread.
#[derive(Clone)]
pub(crate) struct Engine {
    requests: mpsc::Sender<Call>,
    /// All versions of the models that were loaded.
    files: Arc<[ModelFiles]>,
}

/// What is sent to the thread: the request, its stop, and where to send the answer.
type Call = (Request, Stop, oneshot::Sender<Result<Answer, RunError>>);

/// The engine's thread has died or does not answer; the process must end.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Engine {
    /// Loads the runtime and the named models, each with its warm-up runs, and starts the thread. A model that cannot
    /// be loaded is skipped, as long as another one loads.
    pub(crate) async fn start(
        repository: Repository,
        cache: Cache,
        models: Vec<String>,
        runtime: PathBuf,
        threads: usize,
    ) -> Result<Self, WorkerError> {
        let (requests, mut inbox) = mpsc::channel::<Call>(1);
        let (loaded, ready) = oneshot::channel();
        let body = move || {
            let mut shelf = match Shelf::fill(repository, cache, &models, &runtime, threads) {
                Ok(shelf) => shelf,
                Err(error) => return drop(loaded.send(Err(error))),
            };
            drop(loaded.send(Ok(shelf.files())));
            while let Some((request, stop, answer)) = inbox.blocking_recv() {
                // The receiver is dropped only when the process is about to end.
                let run = std::panic::catch_unwind(AssertUnwindSafe(|| shelf.run(&request, &stop)));
                drop(answer.send(run.unwrap_or_else(|_| Err(RunError::Runtime("the engine gave up on it".into())))));
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(body);
        thread.map_err(|error| WorkerError::Model { model: "all".into(), problem: format!("no thread: {error}") })?;
        let died =
            || WorkerError::Model { model: "all".into(), problem: "the engine's thread died while loading".into() };
        let files = ready.await.unwrap_or_else(|_| Err(died()))?.into();
        Ok(Self { requests, files })
    }

    /// The models that were loaded, in the order of their names.
    pub(crate) fn models(&self) -> Vec<String> {
        let mut names: Vec<String> = self.files.iter().map(|files| files.model.clone()).collect();
        names.dedup();
        names
    }

    /// All versions of these models, with their digests.
    pub(crate) fn files(&self) -> &[ModelFiles] {
        &self.files
    }

    /// Whether this worker has the model files that a job was promised.
    pub(crate) fn has(&self, spec: &JobSpec) -> bool {
        self.files.iter().any(|files| files.are_promised(spec))
    }

    /// Runs one request within its timeout, unless the job is canceled or this process must end.
    ///
    /// `Err(Stuck)` if even the stop did not end the run.
    pub(crate) async fn run(
        &self,
        request: Request,
        canceled: impl Future<Output = ()>,
        leaving: impl Future<Output = ()>,
    ) -> Result<Result<Answer, RunError>, Stuck> {
        let stop = match Stop::new() {
            Ok(stop) => stop,
            Err(error) => return Ok(Err(error)),
        };
        let timeout = request.timeout;
        let (answer, mut answered) = oneshot::channel();
        self.requests.send((request, stop.clone(), answer)).await.map_err(|_| Stuck)?;
        let stopped = tokio::select! {
            result = &mut answered => return result.map_err(|_| Stuck),
            () = tokio::time::sleep(timeout) => RunError::Timeout(timeout),
            () = canceled => RunError::Canceled,
            () = leaving => RunError::Leaving,
        };
        stop.pull();
        // No grace if this process is ending: that ends the run too.
        let grace = if matches!(stopped, RunError::Leaving) { Duration::ZERO } else { STOP_GRACE };
        match tokio::time::timeout(grace, answered).await {
            Err(_) if grace.is_zero() => Ok(Err(stopped)),
            // Only a timeout looks at the run's own error: a cancel takes precedence over whatever the run returned.
            Ok(Ok(Err(slow @ RunError::SlowImage(_)))) if matches!(stopped, RunError::Timeout(_)) => Ok(Err(slow)),
            Ok(Ok(_)) => Ok(Err(stopped)),
            Ok(Err(_)) | Err(_) => Err(Stuck),
        }
    }
}

/// The loaded models, owned by the engine's thread.
struct Shelf {
    repository: Repository,
    cache: Cache,
    runtime: Runtime,
    loaded: HashMap<(String, u32), LoadedModel>,
}

impl Shelf {
    fn fill(
        repository: Repository,
        cache: Cache,
        models: &[String],
        runtime: &std::path::Path,
        threads: usize,
    ) -> Result<Self, WorkerError> {
        let runtime = Runtime::load(runtime, threads)?;
        let mut shelf = Self { repository, cache, runtime, loaded: HashMap::new() };
        let mut problem = None;
        for name in models {
            if let Err(error) = shelf.load_default(name) {
                // Files that cannot be fetched now may be available later: the supervisor retries.
                if matches!(error, WorkerError::Files { .. }) {
                    return Err(error);
                }
                tracing::error!(model = name, %error, "model not served");
                problem = Some(error);
            }
        }
        match problem {
            Some(problem) if shelf.loaded.is_empty() => Err(problem),
            _ => Ok(shelf),
        }
    }

    fn load_default(&mut self, name: &str) -> Result<(), WorkerError> {
        let missing = || WorkerError::Model { model: name.to_owned(), problem: "it is not in the repository".into() };
        let model = self.repository.get(name).ok_or_else(missing)?.clone();
        let version = model.version(None).ok_or_else(missing)?.number;
        self.load(&model, version)
    }

    /// All versions of each model that has a loaded version; the others are loaded when a job needs them.
    fn files(&self) -> Vec<ModelFiles> {
        let is_loaded = |model: &&Model| self.loaded.keys().any(|(name, _)| name == model.name());
        let versions = |model: &Model| {
            let name = model.name().to_owned();
            let files = move |version: &ModelVersion| ModelFiles {
                model: name.clone(),
                version: version.number,
                digest: version.digest.clone(),
            };
            model.versions().iter().map(files).collect::<Vec<_>>()
        };
        self.repository.iter().filter(is_loaded).flat_map(versions).collect()
    }

    fn load(&mut self, model: &Model, number: u32) -> Result<(), WorkerError> {
        let broken = |problem: String| WorkerError::Model { model: model.name().to_owned(), problem };
        let version = model.version(Some(number)).ok_or_else(|| broken(format!("it has no version {number}")))?;
        let files = model.files(version, &self.cache, &|line| tracing::info!("{line}"));
        let graph = files.map_err(|source| WorkerError::Files { model: model.name().to_owned(), source })?;
        let started = Instant::now();
        let mut loaded = self.runtime.session(&graph, model.manifest()).map_err(broken)?;
        for _ in 0..model.manifest().warm_up_runs {
            match warm_up(&mut loaded, model) {
                // Noise may produce values that no photo does.
                Err(error @ RunError::Output(OutputError::NotFinite(_))) => {
                    tracing::warn!(model = model.name(), %error, "its warm-up, on a picture of noise");
                }
                warmed => warmed.map_err(|error| broken(format!("its warm-up failed: {error}")))?,
            }
        }
        tracing::info!(
            model = model.name(),
            version = number,
            ms = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        self.loaded.insert((model.name().to_owned(), number), loaded);
        Ok(())
    }

    fn run(&mut self, request: &Request, stop: &Stop) -> Result<Answer, RunError> {
        let missing = || RunError::Model(format!("this worker does not have the model {}", request.model));
        let model = self.repository.get(&request.model).ok_or_else(missing)?.clone();
        let key = (request.model.clone(), request.version);
        if !self.loaded.contains_key(&key) {
            self.load(&model, request.version).map_err(|error| RunError::Model(error.to_string()))?;
        }
        let loaded = self.loaded.get_mut(&key).expect("it was loaded just now");
        stages(&model, loaded, request, stop)
    }
}

fn stages(model: &Model, loaded: &mut LoadedModel, request: &Request, stop: &Stop) -> Result<Answer, RunError> {
    let input = &model.manifest().input;
    let mut stages = Stages::default();
    let image = timed(&mut stages.decode, || {
        decode::decode(&request.image, &Limits::default(), Some(short_side_needed(input)))
    });
    if stop.is_pulled() {
        // If decoding was fast, loading the model used up the time, and a retry need not load it again.
        let is_slow = stages.decode >= request.timeout;
        return Err(if is_slow { RunError::SlowImage } else { RunError::Timeout }(request.timeout));
    }
    let image = image?;
    let (tensor, placement) = timed(&mut stages.preprocess, || preprocess(&image, input));
    let frame = Frame { width: image.full_width, height: image.full_height, placement };
    drop(image);
    let outputs = timed(&mut stages.inference, || loaded.run(&tensor, stop))?;
    let output = timed(&mut stages.postprocess, || {
        postprocess(model.manifest(), model.labels(), &outputs, &frame, request.wishes)
    })?;
    Ok(Answer { output, stages })
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *total = started.elapsed();
    result
}

/// Runs the model once on grey noise: the first run allocates and picks kernels. A uniform image would make some models
/// divide by zero.
fn warm_up(loaded: &mut LoadedModel, model: &Model) -> Result<(), RunError> {
    let input = &model.manifest().input;
    let (width, height) = (input.width, input.height);
    let mut noise = StdRng::seed_from_u64(0);
    let pixels = (0..width * height).flat_map(|_| [noise.random_range(64..192); 3]).collect();
    let empty = Image { width, height, pixels, full_width: width, full_height: height };
    let (tensor, placement) = preprocess(&empty, input);
    let outputs = loaded.run(&tensor, &Stop::new()?)?;
    let frame = Frame { width, height, placement };
    postprocess(model.manifest(), model.labels(), &outputs, &frame, Wishes::default())?;
    Ok(())
}
