//! Headers of the messages that hold inputs.

/// The header that holds the job's [`JobSpec`](crate::JobSpec) as JSON.
pub(crate) const SPEC_HEADER: &str = "Sl-Job";
/// The header of a message that retries a finished job: the revision of the record that it
/// replaces.
pub(super) const AGAIN_HEADER: &str = "Sl-Again";
/// Header of a message that was produced with a key.
pub(super) const KEY_HEADER: &str = "Sl-Key";
/// Header of a dead letter: why the job failed.
pub(super) const ERROR_HEADER: &str = "Sl-Error";
/// Header of a dead letter: every attempt, as in the record.
pub(super) const ATTEMPTS_HEADER: &str = "Sl-Attempts";

/// JSON with every character above ASCII escaped, since headers are meant for ASCII only.
pub(super) fn ascii_json(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_string(value).expect("what goes into headers holds strings and numbers only");
    let mut ascii = String::with_capacity(json.len());
    for unit in json.chars() {
        if unit.is_ascii() {
            ascii.push(unit);
        } else {
            let mut units = [0; 2];
            unit.encode_utf16(&mut units).iter().for_each(|unit| ascii.push_str(&format!("\\u{unit:04x}")));
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_header_is_plain_ascii_and_reads_back() {
        let mut spec: crate::JobSpec = serde_json::from_value(serde_json::json!({
            "id": "cats.0199d2a4-0000-7000-8000-000000000000", "model": "cats", "model_version": 1,
            "model_digest": "d", "created_at": "2026-11-23T17:00:00Z",
            "image": {"width": 1, "height": 1, "format": "png", "bytes": 1, "sha256": "s"},
        }))
        .expect("reads");
        spec.metadata.insert("Käse".into(), "\u{1F431}\r\nNats-Rollup: all".into());
        let header = super::ascii_json(&spec);
        assert!(header.is_ascii() && !header.contains(['\r', '\n']), "{header}");
        assert_eq!(serde_json::from_str::<crate::JobSpec>(&header).expect("reads"), spec);
    }
}
