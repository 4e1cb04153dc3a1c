//! Results as a table: one row per image, with the columns that most people need.

use serde_json::{Value, json};

/// The first row.
pub(super) const HEAD: &str = "file,id,model,state,label,score,error_code,error_message\n";

/// A line of results as a row.
pub(super) fn row(line: &Value) -> String {
    let (label, score) = api::best_of(&line["result"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let error = &line["error"];
    let cells = [
        text(&line["file"]),
        text(&line["id"]),
        text(&line["model"]),
        text(&line["state"]),
        label,
        score,
        text(&error["code"]),
        text(&error["message"]),
    ];
    api::table_row(&cells)
}

/// Rows as lines of results, with the fields that a later run needs; `None` if another program wrote them.
pub(super) fn read(text: &[u8]) -> Option<Vec<Value>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let rows = text.strip_prefix(HEAD.as_bytes())?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(rows);
    let line = |row: csv::StringRecord| {
        let mut line = json!({ "file": api::unguarded(row.get(0)?), "id": row.get(1)?, "state": row.get(3)? });
        // A refusal has no model.
        if let Some(model) = row.get(2).filter(|model| !model.is_empty()) {
            line["model"] = json!(model);
        }
        Some(line)
    };
    reader.records().map(|row| row.ok().and_then(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let lines = [
            json!({"file": "a, \"b\".png", "id": "m.1", "model": "m", "state": "succeeded",
                "result": {"type": "classification", "predictions": [{"label": "cat", "score": 0.5}]}}),
            json!({"file": "=1+1.png", "state": "refused", "error": {"code": "image_empty", "message": "two\nlines"}}),
        ];
        let text: String = std::iter::once(HEAD.to_owned()).chain(lines.iter().map(row)).collect();
        assert_eq!(text.lines().count(), 3, "a row is a line: {text}");
        assert!(text.contains(",succeeded,cat,0.5,,"), "{text}");
        let read = read(text.as_bytes()).expect("ours");
        assert_eq!(read[0], json!({"file": "a, \"b\".png", "id": "m.1", "model": "m", "state": "succeeded"}));
        assert_eq!(read[1], json!({"file": "=1+1.png", "id": "", "state": "refused"}));
        assert!(super::read(b"name,age\nann,7\n").is_none());
    }
}
