//! Why a worker cannot start, and why a run gave no answer.

use models::{ImageError, OutputError, PullError};

/// Why a worker cannot do its work at all.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// ONNX Runtime cannot be loaded.
    #[error("ONNX Runtime at {path} cannot be used: {problem}")]
    Runtime {
        /// The library's path.
        path: String,
        /// The loader's message.
        problem: String,
    },
    /// A model cannot be loaded.
    #[error("model {model}: {problem}")]
    Model {
        /// The model's name.
        model: String,
        /// What is wrong.
        problem: String,
    },
    /// Weights are missing and cannot be fetched.
    #[error("model {model}: {source}")]
    Files {
        /// The model's name.
        model: String,
        /// What is wrong.
        source: PullError,
    },
    /// A request to the queue failed.
    #[error(transparent)]
    Queue(#[from] queue::QueueError),
    /// A fetch from the queue failed.
    #[error(transparent)]
    Fetch(#[from] queue::FetchError),
    /// A run ignored its stop; only the end of the process ends it.
    #[error("a run of {model} could not be stopped; this process ends to get rid of it")]
    Stuck {
        /// The model's name.
        model: String,
    },
}

/// Why one run gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The image is invalid; a retry would fail too.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The model's outputs do not match its manifest; a retry would fail too.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The run exceeded its timeout.
    #[error("the run took longer than {0:?}")]
    Timeout(std::time::Duration),
    /// Decoding alone exceeded the timeout; a retry would take as long.
    #[error("decoding alone took longer than the {0:?} that the run may take")]
    SlowImage(std::time::Duration),
    /// The job was canceled.
    #[error("the job was canceled")]
    Canceled,
    /// This process must end before the run does.
    #[error("the worker was stopped before the run ended")]
    Leaving,
    /// This worker cannot load this model now; another worker may.
    #[error("{0}")]
    Model(String),
    /// The runtime failed, perhaps for lack of memory.
    #[error("{0}")]
    Runtime(String),
}

impl RunError {
    /// The stable code that clients see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::Output(_) => "model_output",
            Self::Timeout(_) | Self::SlowImage(_) => "timeout",
            Self::Canceled => "canceled",
            Self::Leaving => "worker_left",
            Self::Model(_) => "model_unavailable",
            Self::Runtime(_) => "inference_failed",
        }
    }

    /// Whether another attempt may succeed.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Image(_) | Self::Output(_) | Self::SlowImage(_) | Self::Canceled => false,
            Self::Timeout(_) | Self::Leaving | Self::Model(_) | Self::Runtime(_) => true,
        }
    }
}
