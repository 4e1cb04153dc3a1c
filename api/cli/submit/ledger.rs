//! What has been done already, on disk.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// The output file and its list of accepted images; or standard output, which cannot be resumed.
pub(super) struct Ledger {
    /// Finished images: name and state.
    finished: HashMap<String, String>,
    /// Accepted images: name and job id.
    accepted: HashMap<String, String>,
    files: Option<Files>,
}

struct Files {
    output: Mutex<File>,
    pending: Mutex<File>,
    pending_path: PathBuf,
}

impl Ledger {
    /// Opens the output and reads what an earlier run of the same model left.
    pub(super) fn open(output: Option<&Path>, model: &str) -> anyhow::Result<Self> {
        let Some(path) = output else {
            return Ok(Self { finished: HashMap::new(), accepted: HashMap::new(), files: None });
        };
        let mut pending_path = path.as_os_str().to_owned();
        pending_path.push(".pending");
        let pending_path = PathBuf::from(pending_path);
        let (output, lines) = open_lines(path)?;
        if let Some(other) = lines.iter().filter_map(|line| line["model"].as_str()).find(|other| *other != model) {
            bail!("{} holds results of model {other}; choose another file for {model}", path.display());
        }
        // A refusal may have had a passing reason; such images are sent again.
        let mut finished = pairs(&lines, "file", "state");
        finished.retain(|_, state| state != "refused");
        let (pending, lines) = open_lines(&pending_path)?;
        let accepted = pairs(&lines, "file", "id");
        let files = Files { output: Mutex::new(output), pending: Mutex::new(pending), pending_path };
        Ok(Self { finished, accepted, files: Some(files) })
    }

    /// How a file ended in an earlier run.
    pub(super) fn state_of(&self, file: &str) -> Option<&str> {
        self.finished.get(file).map(String::as_str)
    }

    /// The job that an earlier run was given for a file.
    pub(super) fn job_of(&self, file: &str) -> Option<&str> {
        self.accepted.get(file).map(String::as_str)
    }

    /// Notes that a file was accepted.
    pub(super) fn accept(&self, file: &str, id: &str) -> anyhow::Result<()> {
        let line = json!({ "file": file, "id": id });
        self.files
            .as_ref()
            .map_or(Ok(()), |files| append(&files.pending, &line).context("write the list of accepted images"))
    }

    /// Writes a file's line.
    pub(super) fn finish(&self, line: &Value) -> anyhow::Result<()> {
        match &self.files {
            Some(files) => append(&files.output, line).context("write the output"),
            None => writeln!(std::io::stdout(), "{line}").context("write to standard output"),
        }
    }

    /// Everything is finished: the list of accepted images is not needed any more.
    pub(super) fn close(&self) -> anyhow::Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        files.output.lock().expect("no panic holds this lock").sync_all().context("write the output")?;
        fs::remove_file(&files.pending_path).context("remove the list of accepted images")
    }
}

/// Takes a file of our lines for appending. Nothing of it is changed before it is known to be ours
/// alone; then a last line that a crash cut off is taken away.
fn open_lines(path: &Path) -> anyhow::Result<(File, Vec<Value>)> {
    let cannot = || format!("open {}", path.display());
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).with_context(cannot)?;
    if file.try_lock().is_err() {
        bail!("{} is being written by another submit", path.display());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(cannot)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let (whole, torn) = text.split_at(whole);
    let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines: Option<Vec<Value>> = lines.map(|line| serde_json::from_slice(line).ok()).collect();
    let ours = lines.filter(|lines| lines.iter().all(|line| line["file"].is_string()));
    let (Some(lines), true) = (ours, torn.is_empty() || torn.starts_with(b"{")) else {
        bail!("{} holds lines that are not results of submit; choose another file", path.display());
    };
    if !torn.is_empty() {
        file.set_len(whole.len() as u64).with_context(cannot)?;
    }
    Ok((file, lines))
}

fn pairs(lines: &[Value], key: &str, value: &str) -> HashMap<String, String> {
    let field = |line: &Value, name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
    lines.iter().filter_map(|line| field(line, key).zip(field(line, value))).collect()
}

fn append(file: &Mutex<File>, line: &Value) -> std::io::Result<()> {
    file.lock().expect("no panic holds this lock").write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("sightline-ledger-{}-{name}", std::process::id()))
    }

    #[test]
    fn an_interrupted_run_is_taken_up_and_a_torn_line_forgotten() {
        let output = path("resume");
        let ledger = Ledger::open(Some(&output), "m").expect("opens");
        ledger.accept("a.png", "job-a").and_then(|()| ledger.accept("b.png", "job-b")).expect("writes");
        ledger.finish(&json!({"file": "a.png", "state": "succeeded"})).expect("writes");
        drop(ledger);
        let torn =
            OpenOptions::new().append(true).open(&output).and_then(|mut file| file.write_all(b"{\"file\":\"b.p"));
        torn.expect("writes");

        let ledger = Ledger::open(Some(&output), "m").expect("opens again");
        assert_eq!((ledger.state_of("a.png"), ledger.state_of("b.png")), (Some("succeeded"), None));
        assert_eq!(ledger.job_of("b.png"), Some("job-b"));
        assert!(Ledger::open(Some(&output), "m").is_err(), "two at once");
        ledger.finish(&json!({"file": "b.png", "state": "failed"})).and_then(|()| ledger.close()).expect("writes");
        let text = fs::read_to_string(&output).expect("reads");
        assert_eq!(text.lines().count(), 2, "{text}");
        fs::remove_file(&output).expect("removes");
    }

    #[test]
    fn a_file_of_something_else_is_not_written_to() {
        let output = path("foreign");
        for text in
            ["dear diary\n", "dear diary", "[1]\n", "{\"file\":\"a\",\"model\":\"other\",\"state\":\"succeeded\"}\n"]
        {
            fs::write(&output, text).expect("writes");
            assert!(Ledger::open(Some(&output), "m").is_err(), "{text}");
            assert_eq!(fs::read_to_string(&output).expect("reads"), text);
        }
        fs::remove_file(&output).expect("removes");
    }
}
