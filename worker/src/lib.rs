//! One job at a time, from its lease to its settlement.
//!
//! A worker is a process. It asks the queue for one job (`intake`), keeps its lease alive (`lease`), writes
//! `running` and hands the image to the engine's thread (`execute`, `engine`), and writes the outcome before it
//! settles the message (`outcome`). While one job is in the model, the worker holds one more, so that the queue's
//! latency costs nothing.
//!
//! A crash of the process (in a decoder, the runtime or a model) costs one attempt of one job: the other job that it
//! holds is not `running` yet, and is redelivered without using up an attempt.

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
