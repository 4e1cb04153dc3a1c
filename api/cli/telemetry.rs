//! Turns ONNX Runtime's telemetry off before its library loads: nothing about a user's machine leaves it.
//!
//! The library reads `ORT_DISABLE_TELEMETRY` once, when it is loaded; later settings come too late. A process cannot
//! change its own environment safely once it has threads, so it replaces itself (`exec`) with the variable set: same
//! process id, arguments and open files.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::anyhow;

/// The variable that turns telemetry off. Children inherit it.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Makes sure that this process and its children run without telemetry. Must be called before a second thread starts.
pub(crate) fn turn_off() -> anyhow::Result<()> {
    if std::env::var_os(VARIABLE).as_deref() == Some(OsStr::new("1")) {
        return Ok(());
    }
    // By its path, from which the system takes the process's name; if a newer build replaced the file, through
    // `/proc/self/exe`.
    let program = std::env::current_exe().ok().filter(|path| path.is_file());
    let program = program.unwrap_or_else(|| "/proc/self/exe".into());
    let mut words = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let error = command.args(words).env(VARIABLE, "1").exec();
    Err(anyhow!("start again with {VARIABLE}=1, or set it yourself: {error}"))
}
