//! The repository keeps its own rules.

mod circles;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files under version control, and new ones that are not ignored.
fn files() -> Vec<String> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(args).current_dir(root()).output().expect("git runs");
    assert!(output.status.success(), "this is no git checkout");
    let text = String::from_utf8(output.stdout).expect("names are UTF-8");
    text.lines().map(str::to_owned).filter(|name| root().join(name).exists()).collect()
}

/// Names of the packages that one is built from. Its unit tests may use others.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(manifest).parse().expect("a manifest is TOML");
    let sections = ["dependencies", "build-dependencies"];
    let tables = sections.iter().filter_map(|section| manifest.get(*section)?.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

#[test]
fn packages_depend_one_way() {
    let never = [
        ("models", &["queue", "broker", "worker", "api", "tokio", "ort", "axum", "hyper", "async-nats"][..]),
        ("queue", &["broker", "models", "worker", "api", "ort", "axum", "hyper", "image"]),
        ("queue/broker", &["queue", "models", "worker", "api", "ort", "axum", "hyper", "image", "async-nats"]),
        ("worker", &["broker", "api", "axum", "hyper"]),
        ("api", &["broker", "worker", "ort"]),
    ];
    for (package, forbidden) in never {
        let used = dependencies(&format!("{package}/Cargo.toml"));
        for name in forbidden {
            assert!(!used.contains(*name), "{package} must not know {name}");
        }
    }
    assert!(!dependencies("Cargo.toml").contains("ort"), "only worker knows ort");
}

#[test]
fn one_file_knows_ort_and_one_package_async_nats() {
    for file in files().iter().filter(|name| name.ends_with(".rs")) {
        let text = read(file);
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let paths: BTreeSet<&str> =
            code.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || "_:".contains(c)))).collect();
        let names = |krate: &str| paths.iter().any(|path| path.starts_with(krate));
        let is_test = file.starts_with("tests/");
        assert!(!names("ort::") || file == "worker/src/onnx.rs" || is_test, "{file} uses ort");
        assert!(!names("async_nats::") || file.starts_with("queue/") || is_test, "{file} uses async-nats");
    }
}

#[test]
fn nothing_else_lies_at_the_top() {
    let allowed = ["api", "models", "queue", "tests", "worker", "Cargo.toml", "Cargo.lock", "LICENSE", "README.md"];
    for name in files() {
        let top = name.split('/').next().expect("a name has a first part");
        assert!(top.starts_with('.') || allowed.contains(&top), "{name} does not belong at the top");
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for file in files().iter().filter(|name| name.ends_with(".rs")) {
        // Test code beside the module that it tests needs no introduction.
        if !file.ends_with("/tests.rs") {
            assert!(read(file).starts_with("//!"), "{file} has no header");
        }
    }
}

#[test]
fn every_link_in_a_readme_leads_somewhere() {
    for file in files().iter().filter(|name| name.ends_with(".md")) {
        let folder = root().join(file).parent().expect("a file has a folder").to_owned();
        let text = read(file);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http") && !link.starts_with('#')) {
            let path = link.split('#').next().expect("split gives one part");
            assert!(folder.join(path).exists(), "{file} links to {link}, which is not there");
        }
    }
}

#[test]
fn every_package_follows_the_shared_lints() {
    for package in ["models", "queue", "queue/broker", "worker", "api", "."] {
        let manifest: toml::Table = read(format!("{package}/Cargo.toml")).parse().expect("a manifest is TOML");
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(lints, Some(true), "{package}/Cargo.toml has no `lints.workspace = true`");
    }
}
