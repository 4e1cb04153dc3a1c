//! One job at a time, from its lease to its settlement.
//!
//! A worker is a process. It asks the queue for one job (`intake`), keeps its lease alive
//! (`lease`), writes `running` and hands the image to the engine's thread (`execute`,
//! `engine`), and writes what came of it before it lets the message go (`outcome`). While one
//! job is in the model, one more is in hand, so that the queue's latency costs nothing.
//!
//! What may kill the process (a decoder, the runtime, a model) costs one attempt of one job: the
//! job in hand is not `running` yet, and comes again without one.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod run;
mod rounds;
mod intake;
mod peers;
mod lease;
mod runs;
mod execute;
mod outcome;
mod engine;
mod onnx;
mod status;
pub mod bare;
pub mod report;
mod error;

pub use error::WorkerError;
pub use run::{Config, run};
