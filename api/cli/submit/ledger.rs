//! What earlier runs have done, on disk.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::inputs::Input;
use super::table;
use crate::config::OutputFormat;
use crate::output::out;

/// The output file and its list of accepted images; or standard output, which cannot be resumed.
pub(super) struct Ledger {
    /// Finished images: name and state.
    finished: HashMap<String, String>,
    /// Accepted images: name and job id.
    accepted: HashMap<String, String>,
    /// Images to send: name and the key to send them with.
    keys: HashMap<String, String>,
    format: OutputFormat,
    files: Option<Files>,
}

struct Files {
    output: Mutex<File>,
    pending: Mutex<File>,
    pending_path: PathBuf,
}

impl Ledger {
    /// Opens the output and reads what an earlier run of the same model left about those `inputs` that have not
    /// changed since.
    pub(super) fn open(
        output: Option<&Path>,
        format: Option<OutputFormat>,
        model: &str,
        inputs: &[Input],
    ) -> anyhow::Result<Self> {
        let is_table = output.is_some_and(|path| path.extension().is_some_and(|ending| ending == "csv"));
        let format = format.unwrap_or(if is_table { OutputFormat::Csv } else { OutputFormat::Ndjson });
        let Some(path) = output else {
            let ledger =
                Self { finished: HashMap::new(), accepted: HashMap::new(), keys: HashMap::new(), format, files: None };
            if format == OutputFormat::Csv {
                out!("{}", table::HEAD);
            }
            return Ok(ledger);
        };
        let mut pending_path = path.as_os_str().to_owned();
        pending_path.push(".pending");
        let pending_path = PathBuf::from(pending_path);
        // If an image changed after the last line was written, its lines are out of date.
        let changed = changed_since(inputs, [path, &pending_path]);
        let (mut output, lines) = open_lines(path, format)?;
        if format == OutputFormat::Csv && output.metadata().is_ok_and(|file| file.len() == 0) {
            output.write_all(table::HEAD.as_bytes()).context("write the output")?;
        }
        if let Some(other) = lines.iter().filter_map(|line| line["model"].as_str()).find(|other| *other != model) {
            bail!("{} contains results of model {other}; choose another file for {model}", path.display());
        }
        // A refusal may have been temporary. Such images are sent again, and still get one line.
        let mut finished = pairs(&lines, "file", "state");
        let is_over = |file: &str, state: &str| state == "refused" || changed.contains(file);
        if finished.iter().any(|(file, state)| is_over(file, state)) {
            output = without(path, format, is_over)?;
            finished.retain(|file, state| !is_over(file, state));
        }
        let (pending, lines) = open_lines(&pending_path, OutputFormat::Ndjson)?;
        let (mut accepted, mut keys) = (pairs(&lines, "file", "id"), pairs(&lines, "file", "key"));
        accepted.retain(|file, _| !changed.contains(file));
        keys.retain(|file, _| !changed.contains(file));
        let files = Files { output: Mutex::new(output), pending: Mutex::new(pending), pending_path };
        Ok(Self { finished, accepted, keys, format, files: Some(files) })
    }

    /// How a file ended in an earlier run.
    pub(super) fn state_of(&self, file: &str) -> Option<&str> {
        self.finished.get(file).map(String::as_str)
    }

    /// The job that an earlier run got for a file.
    pub(super) fn job_of(&self, file: &str) -> Option<&str> {
        self.accepted.get(file).map(String::as_str)
    }

    /// The key to send a file with: that of an earlier run, or a new one.
    pub(super) fn key_of(&self, file: &str) -> anyhow::Result<String> {
        self.keys.get(file).cloned().map_or_else(|| self.new_key(file), Ok)
    }

    /// A new key to send a file with, noted before it is used.
    pub(super) fn new_key(&self, file: &str) -> anyhow::Result<String> {
        let key = format!("submit-{:032x}", rand::random::<u128>());
        self.note(&json!({ "file": file, "key": key })).map(|()| key)
    }

    /// Notes that a file was accepted.
    pub(super) fn accept(&self, file: &str, id: &str) -> anyhow::Result<()> {
        self.note(&json!({ "file": file, "id": id }))
    }

    fn note(&self, line: &Value) -> anyhow::Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        append(&files.pending, &format!("{line}\n")).context("write the list of images on their way")
    }

    /// Writes a file's line.
    pub(super) fn finish(&self, line: &Value) -> anyhow::Result<()> {
        let text = match self.format {
            OutputFormat::Ndjson => format!("{line}\n"),
            OutputFormat::Csv => table::row(line),
        };
        match &self.files {
            Some(files) => append(&files.output, &text).context("write the output"),
            None => {
                out!("{text}");
                Ok(())
            }
        }
    }

    /// Removes the list of accepted images, once all images are finished.
    pub(super) fn close(&self) -> anyhow::Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        files.output.lock().expect("no panic holds this lock").sync_all().context("write the output")?;
        fs::remove_file(&files.pending_path).context("remove the list of accepted images")
    }
}

/// Opens and locks a file of our lines for appending. Nothing in it is changed before it is known to be ours alone;
/// then a last line that a crash cut off is removed.
fn open_lines(path: &Path, format: OutputFormat) -> anyhow::Result<(File, Vec<Value>)> {
    let cannot = || format!("open {}", path.display());
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).with_context(cannot)?;
    if file.try_lock().is_err() {
        bail!("{} is being written by another submit", path.display());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(cannot)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let (whole, torn) = text.split_at(whole);
    let lines: Option<Vec<Value>> = match format {
        OutputFormat::Ndjson => {
            let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| serde_json::from_slice(line).ok()).collect()
        }
        OutputFormat::Csv => table::read(whole),
    };
    let ours = lines.filter(|lines| lines.iter().all(|line| line["file"].is_string()));
    let is_torn_line = match format {
        OutputFormat::Ndjson => torn.is_empty() || torn.starts_with(b"{"),
        OutputFormat::Csv => !whole.is_empty() || table::HEAD.as_bytes().starts_with(torn),
    };
    let (Some(lines), true) = (ours, is_torn_line) else {
        bail!("{} contains lines that submit did not write; choose another file", path.display());
    };
    if !torn.is_empty() {
        file.set_len(whole.len() as u64).with_context(cannot)?;
    }
    Ok((file, lines))
}

/// Images that were changed after both of these files were last written.
fn changed_since(inputs: &[Input], files: [&Path; 2]) -> HashSet<String> {
    let written = files.into_iter().filter_map(|path| fs::metadata(path).and_then(|about| about.modified()).ok());
    let Some(written) = written.max() else { return HashSet::new() };
    let is_newer = |input: &&Input| input.modified().is_ok_and(|modified| modified > written);
    inputs.iter().filter(is_newer).map(|input| input.name.clone()).collect()
}

/// Replaces the output, whole or not at all, by a copy without the lines that `goes` selects by file and state.
fn without(path: &Path, format: OutputFormat, goes: impl Fn(&str, &str) -> bool) -> anyhow::Result<File> {
    let cannot = || format!("write {}", path.display());
    let text = fs::read_to_string(path).with_context(cannot)?;
    let read = |line: &str| match format {
        OutputFormat::Ndjson => serde_json::from_str::<Value>(line).ok(),
        // A row is always one line.
        OutputFormat::Csv => table::read(format!("{}{line}", table::HEAD).as_bytes())?.pop(),
    };
    let stays = |line: &&str| {
        let Some(line) = read(line.trim_end_matches('\n')) else { return true };
        !goes(line["file"].as_str().unwrap_or_default(), line["state"].as_str().unwrap_or_default())
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut kept = tempfile::Builder::new().prefix(".submit").tempfile_in(folder).with_context(cannot)?;
    for line in text.split_inclusive('\n').filter(stays) {
        kept.write_all(line.as_bytes()).with_context(cannot)?;
    }
    kept.as_file().sync_all().with_context(cannot)?;
    fs::set_permissions(kept.path(), fs::metadata(path).with_context(cannot)?.permissions()).with_context(cannot)?;
    kept.persist(path).with_context(cannot)?;
    Ok(open_lines(path, format)?.0)
}

fn pairs(lines: &[Value], key: &str, value: &str) -> HashMap<String, String> {
    let field = |line: &Value, name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
    lines.iter().filter_map(|line| field(line, key).zip(field(line, value))).collect()
}

fn append(file: &Mutex<File>, text: &str) -> std::io::Result<()> {
    file.lock().expect("no panic holds this lock").write_all(text.as_bytes())
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
        let ledger = Ledger::open(Some(&output), None, "m", &[]).expect("opens");
        ledger.accept("a.png", "job-a").and_then(|()| ledger.accept("b.png", "job-b")).expect("writes");
        ledger.finish(&json!({"file": "a.png", "state": "succeeded"})).expect("writes");
        let key = ledger.key_of("c.png").expect("noted");
        drop(ledger);
        let torn =
            OpenOptions::new().append(true).open(&output).and_then(|mut file| file.write_all(b"{\"file\":\"b.p"));
        torn.expect("writes");

        let ledger = Ledger::open(Some(&output), None, "m", &[]).expect("opens again");
        assert_eq!((ledger.state_of("a.png"), ledger.state_of("b.png")), (Some("succeeded"), None));
        assert_eq!(ledger.job_of("b.png"), Some("job-b"));
        assert_eq!(ledger.key_of("c.png").expect("noted"), key, "what was sent, or was about to be, is sent as it was");
        assert!(Ledger::open(Some(&output), None, "m", &[]).is_err(), "two at once");
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
            assert!(Ledger::open(Some(&output), None, "m", &[]).is_err(), "{text}");
            assert_eq!(fs::read_to_string(&output).expect("reads"), text);
        }
        fs::remove_file(&output).expect("removes");
    }
}
