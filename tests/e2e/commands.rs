//! What people type: `submit`, `members`, `models`, and everything that can go wrong at a start.

use std::fs;
use std::process::{Output, Stdio};

use serde_json::Value;

use super::harness::{Engine, Stack, engine, photo, root, sightline};
use super::shared;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[test]
fn a_folder_is_submitted_and_taken_up_again() {
    let photos = root().join("tests/photos");
    let out = tempfile::tempdir().expect("a temporary folder");
    let out = out.path().join("results.ndjson");
    let words = [
        "submit",
        photos.to_str().expect("UTF-8"),
        "--model",
        "efficientnet-lite0",
        "--out",
        out.to_str().expect("UTF-8"),
    ];
    let output = shared().command(&words);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("6 images: 6 succeeded, 0 failed, 0 refused"), "{}", stderr(&output));
    let first = fs::read_to_string(&out).expect("written");
    assert_eq!(lines(&first).len(), 6);
    assert!(lines(&first).iter().all(|line| line["state"] == "succeeded" && line["file"].is_string()), "{first}");
    assert!(!out.with_extension("ndjson.pending").exists());

    // A run that was cut off: two images missing, one line torn.
    let mut cut: String = first.lines().take(4).map(|line| format!("{line}\n")).collect();
    cut.push_str("{\"file\":\"tests/ph");
    fs::write(&out, cut).expect("written");
    let output = shared().command(&words);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("6 images (4 of them before): 6 succeeded"), "{}", stderr(&output));
    let files = |text: &str| {
        let mut names: Vec<String> = lines(text).iter().map(|line| line["file"].to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(files(&fs::read_to_string(&out).expect("written")), files(&first));
}

#[test]
fn an_accepted_image_is_not_sent_again() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let id = runtime.block_on(shared().accept("efficientnet-lite0", photo("china.jpg")));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (image, out) = (folder.path().join("a.jpg"), folder.path().join("out"));
    fs::write(&image, photo("china.jpg")).expect("written");
    let image = image.to_str().expect("UTF-8");
    fs::write(folder.path().join("out.pending"), format!("{{\"file\":{image:?},\"id\":\"{id}\"}}\n")).expect("written");
    let output =
        shared().command(&["submit", image, "--model", "efficientnet-lite0", "--out", out.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(lines(&fs::read_to_string(&out).expect("written"))[0]["id"], id);
}

#[test]
fn a_tar_becomes_a_table_that_is_gone_on_with() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut archive = tar::Builder::new(fs::File::create(path("night.tar")).expect("created"));
    for name in ["china.jpg", "coffee.png"] {
        archive.append_path_with_name(root().join("tests/photos").join(name), format!("cam/{name}")).expect("written");
    }
    archive.finish().expect("finished");
    let words = ["submit", &path("night.tar"), "--model", "efficientnet-lite0", "--out", &path("night.csv")];
    let output = shared().command(&words);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = fs::read_to_string(path("night.csv")).expect("written");
    let mut rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.remove(0), "file,id,model,state,label,score,error_code,error_message");
    rows.sort_unstable();
    assert_eq!(rows.len(), 2, "{table}");
    let named = format!("{}:cam/coffee.png,efficientnet-lite0.", path("night.tar"));
    assert!(rows[1].starts_with(&named) && rows[1].contains(",succeeded,espresso,0."), "{table}");
    // Cut off in the second row: only that one is sent again.
    fs::write(path("night.csv"), &table[..table.len() - 9]).expect("written");
    let output = shared().command(&words);
    assert!(stderr(&output).contains("2 images (1 of them before): 2 succeeded"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(path("night.csv")).expect("written").lines().count(), 3);
}

#[test]
fn a_file_that_was_changed_is_sent_again_and_the_others_are_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let images = [path("a.png"), path("b.jpg")];
    fs::write(&images[0], photo("coffee.png")).expect("written");
    fs::write(&images[1], photo("rocket.jpg")).expect("written");
    for out in [path("results.ndjson"), path("results.csv")] {
        let words = ["submit", &images[0], &images[1], "--model", "efficientnet-lite0", "--out", &out];
        let first = shared().command(&words);
        assert!(first.status.success(), "{}", stderr(&first));
        let before = fs::read_to_string(&out).expect("written");
        let file = fs::File::options().append(true).open(&images[0]).expect("opened");
        file.set_len(0).expect("emptied");
        fs::write(&images[0], photo("chelsea.png")).expect("written");
        // A moment later than the last line, on whatever file system.
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(2)).expect("settable");
        let second = shared().command(&words);
        assert!(stderr(&second).contains("2 images (1 of them before): 2 succeeded"), "{}", stderr(&second));
        let after = fs::read_to_string(&out).expect("written");
        assert_eq!(after.lines().count(), before.lines().count(), "{after}");
        let of = |text: &str, name: &str| text.lines().find(|line| line.contains(name)).map(str::to_owned);
        assert_eq!(of(&after, "b.jpg"), of(&before, "b.jpg"));
        assert_ne!(of(&after, "a.png"), of(&before, "a.png"));
        fs::write(&images[0], photo("coffee.png")).expect("written");
    }
}

#[test]
fn a_submit_that_is_killed_sends_nothing_twice() {
    let stack = Stack::start(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("created");
    const COUNT: usize = 120;
    for number in 0..COUNT {
        fs::write(images.join(format!("{number}.jpg")), photo("rocket.jpg")).expect("written");
    }
    let out = folder.path().join("out.ndjson");
    let words = ["submit", images.to_str().expect("UTF-8"), "--model", "efficientnet-lite0", "--in-flight", "8"];
    let words = [&words[..], &["--out", out.to_str().expect("UTF-8")]].concat();
    let done = || fs::read_to_string(&out).map_or(0, |text| text.lines().count());
    // Wherever it is when it dies: before the answer, between the answer and its note, after it.
    for kill in 1..=6 {
        let mut submit = stack.prepare(&words).stderr(Stdio::null()).spawn().expect("it starts");
        while done() < kill * 15 && submit.try_wait().expect("it can be asked").is_none() {
            std::thread::yield_now();
        }
        submit.kill().and_then(|()| submit.wait()).expect("killed");
    }
    let output = stack.command(&words);
    assert!(stderr(&output).contains("120 succeeded, 0 failed, 0 refused"), "{}", stderr(&output));
    assert_eq!(done(), COUNT);
    let topic = stack.command(&["topics", "describe", "efficientnet-lite0", "--json"]);
    let topic: Value = serde_json::from_slice(&topic.stdout).expect("JSON");
    assert_eq!(topic["records"], COUNT, "each image is one job");
}

#[test]
fn bad_files_are_lines_too_and_decide_the_exit_code() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("good.png"), photo("coffee.png")).expect("written");
    fs::write(folder.path().join("bad.png"), "no image").expect("written");
    fs::write(folder.path().join("notes.txt"), "no image either, but nobody asked").expect("written");
    let output =
        shared().command(&["submit", folder.path().to_str().expect("UTF-8"), "--model", "ssdlite-mobilenetv2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("2 images: 1 succeeded, 0 failed, 1 refused"), "{}", stderr(&output));
    let found = lines(&String::from_utf8_lossy(&output.stdout));
    let refused = found.iter().find(|line| line["state"] == "refused").expect("one is refused");
    assert_eq!(refused["error"]["code"], "image_unsupported");
    assert!(stderr(&output).contains("bad.png: refused: not a JPEG"), "{}", stderr(&output));
    // Sent again, it is refused again, and has one line all the same.
    for name in ["results.ndjson", "results.csv"] {
        let out = folder.path().join(name).display().to_string();
        for _ in 0..3 {
            let images = [folder.path().join("good.png"), folder.path().join("bad.png")];
            let images: Vec<String> = images.iter().map(|path| path.display().to_string()).collect();
            let words = ["submit", &images[0], &images[1], "--model", "ssdlite-mobilenetv2", "--out", &out];
            assert_eq!(shared().command(&words).status.code(), Some(1));
            let text = fs::read_to_string(&out).expect("written");
            assert_eq!(text.lines().count(), 2 + usize::from(name.ends_with("csv")), "{text}");
            assert_eq!((text.matches("good.png").count(), text.matches("bad.png").count()), (1, 1), "{text}");
        }
    }
}

#[test]
fn images_that_are_not_taken_are_counted_and_have_an_exit_code_of_their_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("IMG_1.jfif"), photo("rocket.jpg")).expect("written");
    fs::write(folder.path().join("IMG_2.HEIC"), b"\0\0\0\x18ftypheic").expect("written");
    fs::write(folder.path().join("notes.txt"), "no image").expect("written");
    let folder = folder.path().to_str().expect("UTF-8");
    let output = shared().command(&["submit", folder, "--model", "efficientnet-lite0"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    for words in ["1 images: 1 succeeded", "2 files skipped: 1 HEIC image, 1 not images"] {
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn members_and_models_are_listed() {
    let output = shared().command(&["members", "--json"]);
    let members: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let count = |role| members.as_array().expect("a list").iter().filter(|member| member["role"] == role).count();
    assert_eq!((count("worker"), count("api"), count("supervisor")), (2, 1, 1), "{members}");
    let table = String::from_utf8_lossy(&shared().command(&["members"]).stdout).into_owned();
    assert!(table.contains("MEMBER") && table.lines().count() == 5, "{table}");

    let output = sightline().args(["models", "list", "--json"]).output().expect("runs");
    let models: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(models[0]["name"], "efficientnet-lite0");
    let output = sightline().args(["models", "pull"]).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn without_npm_pip_brings_one_and_without_pip_it_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("a path"));
    let hide = |program: &str| {
        let shim = folder.path().join(program);
        fs::write(&shim, "#!/bin/sh\nexit 127\n").expect("written");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("made a program");
    };
    let pull = |cache: &str| {
        let mut command = sightline();
        command.args(["models", "pull", "--models", "ssdlite-mobilenetv2", "--cache"]).arg(folder.path().join(cache));
        command.env("PATH", &path).env_remove("SIGHTLINE_CACHE").output().expect("runs")
    };
    hide("npm");
    let output = pull("without-npm");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("npm is not installed: using the one in a Python package"), "{}", stderr(&output));
    let again = pull("without-npm");
    assert!(again.status.success() && again.stderr.is_empty(), "fetched once: {}", stderr(&again));

    ["python3", "python", "pip3", "pip"].into_iter().for_each(hide);
    let output = pull("without-pip");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("install Python 3 with pip"), "{}", stderr(&output));
}

/// Runs a command that must fail at once, with one line that holds `words`.
#[track_caller]
fn fails(words: &[&str], reason: &str) {
    is_told(1, words, reason);
}

/// The same with another exit code.
#[track_caller]
fn is_told(code: i32, words: &[&str], reason: &str) {
    let output = sightline().args(words).stdin(Stdio::null()).output().expect("runs");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
    assert!(text.starts_with("sightline: ") && text.contains(reason), "{words:?}: {text}");
}

#[tokio::test]
async fn a_data_folder_may_have_any_name_and_is_of_one_engine() {
    if engine() == Engine::Cluster {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("50%25 off? #1 & \u{e4}");
    let mut stack = Stack::start_at(data.clone(), &["--workers", "1", "--models", "efficientnet-lite0"]);
    let job = stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(stack.terminate(), "it ends well");
    drop(stack);
    if engine() == Engine::Own {
        // The other engine would show an empty system.
        let shown = data.to_str().expect("UTF-8").to_owned();
        fails(
            &["up", "--engine", "nats", "--listen", "127.0.0.1:0", "--data", &shown],
            "pass that, or choose another folder",
        );
        // A file that is not a database is named, and is not replaced.
        std::fs::write(data.join("index.db"), "no database at all, whatever its name says".repeat(100))
            .expect("written");
        for more in ["index.db-wal", "index.db-shm"] {
            drop(std::fs::remove_file(data.join(more)));
        }
        fails(&["up", "--listen", "127.0.0.1:0", "--data", &shown], "move the file away");
    }
}

#[test]
fn a_command_of_commands_shows_what_it_has() {
    for (command, one) in [("jobs", "explain"), ("topics", "create"), ("keys", "revoke"), ("batches", "verify")] {
        let output = sightline().arg(command).stdin(Stdio::null()).output().expect("runs");
        let text = stderr(&output);
        assert!(output.status.code() == Some(2) && text.contains(one) && text.lines().count() > 5, "{command}: {text}");
    }
}

#[test]
fn whatever_prevents_a_start_is_one_clear_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let taken = shared().api();
    fails(&["up", "--listen", &taken, "--data", data], "choose another address with --listen");
    fails(&["api", "--listen", &taken, "--data", data], "choose another address with --listen");
    fails(
        &["up", "--listen", "127.0.0.1:0", "--data", "/dev/null/x"],
        "is not writable; choose another one with --data",
    );
    let in_use = shared().data().to_str().expect("UTF-8").to_owned();
    fails(&["up", "--listen", "127.0.0.1:0", "--data", &in_use], "is in use by another sightline");
    fails(&["worker", "--queue", "nats://127.0.0.1:1", "--data", data], "no queue at nats://127.0.0.1:1");
    fails(&["members", "--queue", "http://x", "--data", data], "is not a queue address");
    fails(&["worker", "--queue", "nats://wrong@127.0.0.1:1", "--models", "resnet"], "model `resnet` does not exist");
    fails(&["up", "--models", "./nowhere", "--data", data], "./nowhere: not readable");
    fails(&["up", "--ort", "/nowhere.so", "--data", data], "no ONNX Runtime library at /nowhere.so");
    fails(&["up", "--listen", "0.0.0.0:0", "--data", data], "--insecure");
    is_told(2, &["--wrokers", "3"], "unexpected argument '--wrokers'");
    is_told(2, &["up", "--workers", "many"], "invalid value 'many'");
    fails(&["submit", "/nowhere", "--model", "x", "--data", data], "/nowhere");
    let photos = root().join("tests/photos");
    let photos = photos.to_str().expect("UTF-8");
    fails(&["submit", photos, "--model", "x", "--api", "http://127.0.0.1:1"], "no API at http://127.0.0.1:1");
    let api = shared().url("");
    fails(&["submit", photos, "--model", "resnet", "--api", &api], "model `resnet` does not exist");
}

#[test]
fn a_wrong_token_is_refused() {
    let broker = fs::read_to_string(shared().data().join("broker.url")).expect("`up` leaves its address");
    let wrong = broker.trim().replace("nats://", "nats://wrong@");
    fails(&["members", "--queue", &wrong], "authorization violation");
    fails(&["worker", "--queue", &wrong], "authorization violation");
}

#[test]
fn a_stop_is_orderly_and_secrets_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let mut stack = Stack::start(&["--workers", "1"]);
    let mode = |path: std::path::PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(stack.data().to_owned()), 0o700);
    for secret in if super::harness::engine() == Engine::Own {
        &["broker.token"][..]
    } else {
        &["broker.token", "nats-server.conf"]
    } {
        assert_eq!(mode(stack.data().join(secret)), 0o600, "{secret}");
    }
    let children = super::harness::descendants(stack.pid());
    let token = fs::read_to_string(stack.data().join("broker.token")).expect("there");
    assert!(children.iter().all(|(_, args)| !args.contains(token.trim())), "the token stands in the process list");
    assert!(stack.terminate(), "{}", stack.log());
    assert!(children.iter().all(|(pid, _)| !super::harness::is_alive(*pid)), "a child was left: {children:?}");
    assert!(!stack.log().contains(token.trim()), "the token stands in the log");
}
