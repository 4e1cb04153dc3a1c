//! Results as rows of RFC 4180, for spreadsheets.

use serde_json::Value;

/// Characters that a spreadsheet reads as the start of a formula, and the apostrophe that we put before them.
const FORMULA: [char; 5] = ['=', '+', '@', '\t', '\''];

/// A minus also starts a formula, unless the whole cell is a number.
fn is_formula(cell: &str) -> bool {
    cell.starts_with(FORMULA) || cell.starts_with('-') && cell.parse::<f64>().is_err()
}

/// Label and score of the best prediction or detection; empty if there is none.
pub fn best_of(result: &Value) -> (String, String) {
    let best = &result[if result["type"] == "detection" { "detections" } else { "predictions" }][0];
    let score = best["score"].as_f64().map(|score| score.to_string());
    (best["label"].as_str().unwrap_or_default().to_owned(), score.unwrap_or_default())
}

/// Cells as one line. Line breaks in them become spaces, so that a row is a line; a cell that a spreadsheet would
/// read as a formula gets an apostrophe.
pub fn table_row(cells: &[String]) -> String {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    let guarded = cells.iter().map(|cell| {
        let cell = cell.replace(['\n', '\r'], " ");
        if is_formula(&cell) { format!("'{cell}") } else { cell }
    });
    writer.write_record(guarded).expect("memory takes everything");
    String::from_utf8(writer.into_inner().expect("memory takes everything")).expect("it was text")
}

/// A cell without the apostrophe that [`table_row`] gave it.
pub fn unguarded(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|rest| is_formula(rest)).unwrap_or(cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        let row = |cell: &str| table_row(&[cell.to_owned(), String::new()]);
        for (cell, expected) in [
            ("a", "a,\n"),
            ("a,b", "\"a,b\",\n"),
            ("say \"x\"", "\"say \"\"x\"\"\",\n"),
            ("=1+1", "'=1+1,\n"),
            ("-0.5", "-0.5,\n"),
            ("-2+3+cmd|x", "'-2+3+cmd|x,\n"),
            ("\t=1", "'\t=1,\n"),
            ("@x", "'@x,\n"),
            ("'x", "''x,\n"),
            ("two\nlines", "two lines,\n"),
        ] {
            assert_eq!(row(cell), expected);
        }
        assert_eq!(["'=1+1", "''quoted'", "a", "'-x", "'-1"].map(unguarded), ["=1+1", "'quoted'", "a", "-x", "'-1"]);
    }
}
