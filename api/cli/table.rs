//! Tables for people.

/// Rows under headings, each column as wide as needed. Numbers are right-aligned.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row, with one cell per heading.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit());
        let right = |column: usize| self.rows.len() > 1 && self.rows[1..].iter().all(|row| is_number(&row[column]));
        let shapes: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), right(column))).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, (width, right)) in row.iter().zip(&shapes) {
                let padded = if *right { format!("{cell:>width$}") } else { format!("{cell:width$}") };
                line.push_str(&padded);
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&["NAME", "JOBS"]);
        table.row(["a".into(), "7".into()]);
        table.row(["longer".into(), "12345".into()]);
        assert_eq!(table.to_string(), "NAME     JOBS\na           7\nlonger  12345\n");
    }
}
