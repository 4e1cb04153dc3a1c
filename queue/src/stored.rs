//! Stored formats have golden files: a rename that would make older data unreadable fails here.
//!
//! Each file holds what this or an earlier version writes. This version must read it and write it again
//! unchanged, so that processes of two versions can share a queue.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{Batch, Hook};
use crate::members::Announcement;
use crate::singleton::LeaseRecord;
use crate::topic::Settings;
use crate::{JobSpec, Record};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/stored")
}

/// Reads the file as a `T` and writes it again.
fn repeat<T: Serialize + DeserializeOwned>(text: &str) -> Value {
    let read: T = serde_json::from_str(text).expect("the stored format is read");
    serde_json::to_value(read).expect("it is JSON")
}

#[test]
fn what_was_stored_is_read_and_written_again_unchanged() {
    let mut count = 0;
    for entry in fs::read_dir(folder()).expect("the fixtures") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a text");
        let again = match name.split_once('-').map_or(name.as_str(), |(kind, _)| kind) {
            "job" => repeat::<JobSpec>(&text),
            "record" => repeat::<Record>(&text),
            "batch" => repeat::<Batch>(&text),
            "hook" => repeat::<Hook>(&text),
            "announcement" => repeat::<Announcement>(&text),
            "topic" => repeat::<Settings>(&text),
            "lease" => repeat::<LeaseRecord>(&text),
            _ => panic!("{name} is of no known kind"),
        };
        let stored: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(again, stored, "{name}");
        count += 1;
    }
    assert_eq!(count, 14, "a format has lost its file");
}
