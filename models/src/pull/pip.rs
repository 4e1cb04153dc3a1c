//! Downloads wheels with `pip download`; nothing is installed and no environment is created.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Progress, only_file, run};
use crate::PullError;

/// Ways to run pip, best first.
const CALLS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["python", "-m", "pip"], &["pip"]];

/// Downloads one wheel into `folder`.
///
/// With `platform`, downloads the wheel for that platform and CPython 3.11, whichever Python is installed, so that one
/// checksum is valid everywhere.
pub(super) fn download(
    package: &str,
    version: &str,
    platform: Option<&str>,
    folder: &Path,
    progress: Progress,
) -> Result<PathBuf, PullError> {
    let mut pip = command(package)?;
    progress(&format!("fetching {package} {version} with pip"));
    pip.args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]);
    if let Some(platform) = platform {
        pip.args(["--python-version", "3.11", "--implementation", "cp", "--platform", platform]);
    }
    pip.arg("--dest").arg(folder).arg(format!("{package}=={version}"));
    run(&mut pip)?;
    only_file(folder, ".whl", package)
}

/// Unpacks one wheel with its programs, but without dependencies, into `folder`.
///
/// `requirement` is a line of a requirements file with its hashes; pip checks the wheel against them.
pub(super) fn install_into(requirement: &str, folder: &Path, progress: Progress) -> Result<(), PullError> {
    let package = requirement.split_whitespace().next().unwrap_or(requirement);
    let mut pip = command(package)?;
    progress(&format!("fetching {package} with pip"));
    std::fs::create_dir_all(folder).map_err(PullError::io(folder))?;
    let list = folder.join("requirements.txt");
    std::fs::write(&list, requirement).map_err(PullError::io(&list))?;
    pip.args(["install", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]);
    pip.arg("--require-hashes").arg("--target").arg(folder).arg("--requirement").arg(&list);
    run(&mut pip).map(drop)
}

/// The first pip that runs.
fn command(package: &str) -> Result<Command, PullError> {
    let answers = |call: &&&[&str]| run(Command::new(call[0]).args(&call[1..]).arg("--version")).is_ok();
    let call = CALLS.iter().find(answers).ok_or_else(|| PullError::NoTool {
        tool: "pip",
        package: package.to_owned(),
        advice: "install Python 3 with pip (Debian: apt install python3-pip; macOS: brew install python)",
    })?;
    let mut command = Command::new(call[0]);
    command.args(&call[1..]);
    Ok(command)
}
