//! The API is what its description says: a client that makes requests up from it finds no difference.

use std::path::PathBuf;
use std::process::Command;

use super::harness::{Engine, Stack, cache, engine, rounds};
use super::keys::admin_key;

const VERSION: &str = "4.32.5";
/// The same requests in every run, as far as the answers are the same. Other seeds are for people.
const SEED: &str = "20261126";

/// Seconds that the client may take: forty with our own broker, half an hour in the long form.
fn budget() -> String {
    rounds(if engine() == Engine::Own { 40 } else { 20 }, 1800).to_string()
}

fn schemathesis() -> PathBuf {
    let installed = cache().install(&format!("tools/schemathesis-{VERSION}"), |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "-q", "--no-warn-script-location", "--target"]).arg(folder);
        assert!(pip.arg(format!("schemathesis=={VERSION}")).status().expect("pip runs").success());
        Ok(())
    });
    installed.expect("fetched")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_from_the_description_finds_no_difference() {
    let tool = schemathesis();
    let stack = Stack::start_indexed(&["--workers", "1"]);
    let key = admin_key(&stack);
    let held = key.clone();
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/openapi");
    let folder = tempfile::tempdir().expect("a folder");
    let path = std::env::join_paths([&tool, &here]).expect("paths");
    let mut client = Command::new("python3");
    client.args(["-m", "schemathesis.cli", "--config-file"]).arg(here.join("schemathesis.toml"));
    client.args(["run", &stack.url("/openapi.json"), "--checks", "all", "--max-time", &budget(), "--seed", SEED]);
    // DELETE cancels a job or a batch, which stays readable. Time is not tested here.
    client.args(["--exclude-checks", "use_after_free", "--max-response-time", "70"]);
    client.args(["--request-timeout", "70", "-H", &format!("Authorization: Bearer {key}")]);
    client.env("PYTHONPATH", path).env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONDONTWRITEBYTECODE", "1");
    client.env("OWN_KEY_ID", key.split('_').nth(1).expect("a key has an id"));
    client.current_dir(folder.path());
    let ran = tokio::task::spawn_blocking(move || client.output().expect("python3 runs")).await.expect("no panic");
    let report = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{report}\n{}", String::from_utf8_lossy(&ran.stderr));
    let still = reqwest::Client::new().get(stack.url("/v1/keys")).bearer_auth(&held).send().await.expect("answered");
    assert_eq!(still.status(), 200, "it was let in to the end");
    // What it says in the end, with the number of requests.
    println!("{}", report.split("SUMMARY").last().unwrap_or_default());
}

#[tokio::test]
async fn the_description_and_its_page_need_no_key() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    admin_key(&stack);
    assert_eq!(stack.get("/v1/jobs").await.status, 401);
    let description = stack.get("/openapi.json").await;
    assert_eq!((description.status, description.header("content-type")), (200, "application/json"));
    assert_eq!(description.json["openapi"], "3.1.0");
    // All that the page needs is here: it works where there is no internet.
    let page = stack.get("/docs/").await;
    assert_eq!(page.status, 200);
    let own: Vec<&str> = page.body.split('"').filter(|word| word.starts_with("./")).collect();
    assert!(own.len() >= 4 && !page.body.contains("https://"), "{}", page.body);
    for file in own {
        assert_eq!(stack.get(&format!("/docs/{}", &file[2..])).await.status, 200, "{file}");
    }
    assert!(stack.get("/docs/swagger-initializer.js").await.body.contains("/openapi.json"));
}

#[tokio::test]
async fn the_examples_of_a_refusal_are_a_refusal() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let description = stack.get("/openapi.json").await.json;
    let refused = stack.get("/v1/jobs/efficientnet-lite0.0199d2a4-6f3e-7c41-9a52-1b6f0c8d7e21").await;
    let problem = &description["components"]["schemas"]["Problem"];
    let fields = problem["properties"].as_object().expect("an object");
    for (name, field) in fields.iter().filter(|(_, field)| field.get("example").is_some()) {
        assert_eq!(refused.json[name], field["example"], "{name}");
    }
    let required = problem["required"].as_array().expect("a list");
    assert_eq!(refused.json.as_object().expect("an object").len(), required.len());
}
