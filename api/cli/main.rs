//! The command line: parse, start, wait, stop.

// Output that nothing reads must not end a process: see `output`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod config;
mod output;
mod bounds;
mod telemetry;
mod trust;
mod data;
mod up;
mod supervisor;
mod autoscale;
mod engine;
mod broker;
mod nats;
mod guard;
mod api;
mod worker;
mod setup;
mod models;
mod members;
mod table;
mod scratch;
mod topics;
mod produce;
mod consume;
mod offsets;
mod dead;
mod jobs;
mod keys;
mod batches;
mod remote;
mod audit;
mod index;
mod drill;
mod cluster;
mod submit;
mod bench;
mod stop;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use config::{Cli, Command};

use crate::output::{note, out};

/// Exit status after a usage error.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(config::with_default_command(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => error.exit(),
        // A command that only has subcommands: print its help.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            note!("{}", error.to_string().trim_end());
            return ExitCode::from(USAGE);
        }
        Err(error) => {
            complain(&config::one_line(&error));
            return ExitCode::from(USAGE);
        }
    };
    if let Err(error) = telemetry::turn_off() {
        return complain(&format!("{error:#}"));
    }
    let log = match config::start_logging(&cli.log) {
        Ok(log) => log,
        Err(error) => return complain(&format!("{error:#}")),
    };
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no threads to run on: {error}")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(args, &cli.log).await,
            Command::Api(args) => api::run(args).await,
            Command::Broker(args) => broker::run(args).await,
            Command::Worker(args) => worker::run(args, &cli.log).await,
            Command::Submit(args) => submit::run(args).await,
            Command::Models(args) => models::run(args).await,
            Command::Members(args) => members::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Topics(args) => topics::run(args).await,
            Command::Produce(args) => produce::run(args).await,
            Command::Consume(args) => consume::run(args).await,
            Command::Offsets(args) => offsets::run(args).await,
            Command::Dead(args) => dead::run(args).await,
            Command::Jobs(args) => jobs::run(args).await,
            Command::Batches(args) => batches::run(args).await,
            Command::Keys(args) => keys::run(args).await,
            Command::Completions(args) => {
                let (mut command, mut script) = (<Cli as clap::CommandFactory>::command(), Vec::new());
                clap_complete::generate(args.shell, &mut command, "sightline", &mut script);
                out!("{}", String::from_utf8_lossy(&script));
                Ok(ExitCode::SUCCESS)
            }
            Command::Openapi => {
                out!("{}", ::api::description());
                Ok(ExitCode::SUCCESS)
            }
            Command::Audit(args) => audit::run(args).await,
            Command::Index(args) => index::run(args).await,
            Command::Drill(args) => drill::run(args).await,
            Command::Guard(args) => guard::run(args).await,
            Command::Cluster(args) => cluster::run(args).await,
        }
    });
    // A thread that is still blocked (by a stuck model) must not keep the process alive.
    runtime.shutdown_background();
    // Writes the remaining log lines.
    drop(log);
    match result {
        Ok(code) => code,
        Err(error) => complain(&format!("{error:#}")),
    }
}

/// Threads for I/O. The cores are for the models: a worker's engine has a thread of its own, and one more is plenty for
/// all of its messages; API and broker share half of the cores.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    use tokio::runtime::Builder;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match command {
        Command::Worker(_) => Builder::new_current_thread().enable_all().build(),
        Command::Up(_) => Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build(),
        _ => Builder::new_multi_thread().enable_all().build(),
    }
}

/// Prints one clear line; the exit code is 1.
fn complain(message: &str) -> ExitCode {
    note!("sightline: {}", message.replace('\n', " "));
    ExitCode::FAILURE
}
