//! The bare loop: decode, resize, model, and nothing else. The whole pipeline is measured against it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use models::postprocess::Wishes;

use crate::engine::{Engine, Request};
use crate::{Config, WorkerError};

/// How long one image may take before the measurement fails.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Several engines with one model, each on a thread of its own.
pub struct Bare {
    engines: Vec<Engine>,
    model: String,
    version: u32,
}

impl Bare {
    /// Loads the first model of `config` into each of `engines` engines.
    ///
    /// # Errors
    /// [`WorkerError`] if the runtime or the model cannot be loaded.
    pub async fn start(config: Config, engines: usize) -> Result<Self, WorkerError> {
        let model = config.models.first().cloned().unwrap_or_default();
        let missing = || WorkerError::Model { model: model.clone(), problem: "it is not in the repository".into() };
        let version = config.repository.get(&model).and_then(|found| found.version(None)).ok_or_else(missing)?;
        let version = version.number;
        let mut started = Vec::new();
        for _ in 0..engines {
            let Config { repository, cache, runtime, threads, .. } = config.clone();
            started.push(Engine::start(repository, cache, vec![model.clone()], runtime, threads).await?);
        }
        Ok(Self { engines: started, model, version })
    }

    /// Runs `count` images, taken from `images` in turn, and returns how long that took.
    ///
    /// # Errors
    /// The error of the first image that fails.
    pub async fn run(&self, images: &Arc<[Bytes]>, count: usize) -> Result<Duration, String> {
        let next = Arc::new(AtomicUsize::new(0));
        let started = Instant::now();
        let loops = self.engines.iter().map(|engine| {
            let (engine, next, images) = (engine.clone(), next.clone(), images.clone());
            let request = Request {
                image: Bytes::new(),
                model: self.model.clone(),
                version: self.version,
                wishes: Wishes::default(),
                timeout: TIMEOUT,
            };
            tokio::spawn(async move {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= count {
                        return Ok::<(), String>(());
                    }
                    let request = Request { image: images[turn % images.len()].clone(), ..request.clone() };
                    let answer = engine
                        .run(request, std::future::pending(), std::future::pending())
                        .await
                        .map_err(|_| "the engine is stuck".to_owned())?;
                    answer.map_err(|error| error.to_string())?;
                }
            })
        });
        for ended in loops.collect::<Vec<_>>() {
            ended.await.map_err(|error| error.to_string())??;
        }
        Ok(started.elapsed())
    }
}
