//! The models of one process, on a thread of their own.
//!
//! Decoding and running take the processor for milliseconds at a time, so they stay off the
//! threads that keep leases alive. One request at a time; a second one is not taken before the
//! first is answered.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use models::postprocess::{Frame, Wishes, postprocess};
use models::preprocess::{preprocess, short_side_needed};
use models::{Cache, Image, Limits, Model, Output, Repository, decode};
use tokio::sync::{mpsc, oneshot};

use crate::WorkerError;
use crate::error::RunError;
use crate::onnx::{LoadedModel, Runtime, Stop};

/// How long a run that was stopped may take to end before it counts as stuck. The stop reaches the
/// model at its next operator, but a decoder not before its end: this is more than the slowest
/// image within the limits takes on a busy machine.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// One image for one model.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) image: Bytes,
    pub(crate) model: String,
    pub(crate) version: u32,
    /// What the client was promised that runs.
    pub(crate) digest: String,
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

/// The way to the engine's thread.
#[derive(Clone)]
pub(crate) struct Engine {
    requests: mpsc::Sender<Call>,
}

/// What is sent to the thread: the request, how to stop it, where the answer goes.
type Call = (Request, Stop, oneshot::Sender<Result<Answer, RunError>>);

/// The engine's thread is gone or does not answer; the process has to end.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Engine {
    /// Loads the runtime and the named models, each with its warm-up runs, and starts the thread.
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
            drop(loaded.send(Ok(())));
            while let Some((request, stop, answer)) = inbox.blocking_recv() {
                // Nobody waits any more only when the process is about to end.
                let run = std::panic::catch_unwind(AssertUnwindSafe(|| shelf.run(&request, &stop)));
                drop(answer.send(run.unwrap_or_else(|_| Err(RunError::Runtime("the engine gave up on it".into())))));
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(body);
        thread.map_err(|error| WorkerError::Model { model: "all".into(), problem: format!("no thread: {error}") })?;
        let died =
            || WorkerError::Model { model: "all".into(), problem: "the engine's thread died while loading".into() };
        ready.await.unwrap_or_else(|_| Err(died()))?;
        Ok(Self { requests })
    }

    /// Runs one request within its time, unless it is canceled or this process has to leave.
    ///
    /// `Err(Stuck)` when even the stop did not end it.
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
        // The end of this process ends the run too.
        let grace = if matches!(stopped, RunError::Leaving) { Duration::ZERO } else { STOP_GRACE };
        match tokio::time::timeout(grace, answered).await {
            Err(_) if grace.is_zero() => Ok(Err(stopped)),
            // Only a time that is over is told apart: a cancel wins over whatever the run says.
            Ok(Ok(Err(slow @ RunError::SlowImage(_)))) if matches!(stopped, RunError::Timeout(_)) => Ok(Err(slow)),
            Ok(Ok(_)) => Ok(Err(stopped)),
            Ok(Err(_)) | Err(_) => Err(Stuck),
        }
    }
}

/// The loaded models; lives on the engine's thread.
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
        for name in models {
            let missing = || WorkerError::Model { model: name.clone(), problem: "it is not in the repository".into() };
            let model = shelf.repository.get(name).ok_or_else(missing)?.clone();
            let version = model.version(None).ok_or_else(missing)?.number;
            shelf.load(&model, version)?;
        }
        Ok(shelf)
    }

    fn load(&mut self, model: &Model, number: u32) -> Result<(), WorkerError> {
        let broken = |problem: String| WorkerError::Model { model: model.name().to_owned(), problem };
        let version = model.version(Some(number)).ok_or_else(|| broken(format!("it has no version {number}")))?;
        let files = model.files(version, &self.cache, &|line| tracing::info!("{line}"));
        let graph = files.map_err(|source| WorkerError::Files { model: model.name().to_owned(), source })?;
        let started = Instant::now();
        let mut loaded = self.runtime.session(&graph, model.manifest()).map_err(broken)?;
        for _ in 0..model.manifest().warm_up_runs {
            warm_up(&mut loaded, model).map_err(|error| broken(format!("its warm-up failed: {error}")))?;
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
        let unavailable =
            |problem: &str| RunError::Model(format!("model {} version {}: {problem}", request.model, request.version));
        let model =
            self.repository.get(&request.model).ok_or_else(|| unavailable("this worker does not have it"))?.clone();
        let version =
            model.version(Some(request.version)).ok_or_else(|| unavailable("this worker does not have it"))?;
        if version.digest != request.digest {
            return Err(unavailable("this worker has other files under this number"));
        }
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
        // Loading a model may have taken the time, and is done with then.
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

/// Runs the model once on an empty image: the first run allocates and picks kernels.
fn warm_up(loaded: &mut LoadedModel, model: &Model) -> Result<(), RunError> {
    let input = &model.manifest().input;
    let (width, height) = (input.width, input.height);
    let pixels = vec![0; 3 * (width * height) as usize];
    let empty = Image { width, height, pixels, full_width: width, full_height: height };
    let (tensor, placement) = preprocess(&empty, input);
    let outputs = loaded.run(&tensor, &Stop::new()?)?;
    let frame = Frame { width, height, placement };
    postprocess(model.manifest(), model.labels(), &outputs, &frame, Wishes::default())?;
    Ok(())
}
