//! Builds a statement from our own SQL, and keeps a client's values apart from it.

use sqlx::any::AnyRow;
use sqlx::{AnyPool, AssertSqlSafe};

/// SQL with numbered placeholders, which both databases support.
pub(super) struct Statement {
    text: String,
    values: Vec<Value>,
}

/// The value of a placeholder.
pub(super) enum Value {
    Text(String),
    Number(i64),
}

impl Statement {
    pub(super) fn new(words: &'static str) -> Self {
        Self { text: words.to_owned(), values: Vec::new() }
    }

    /// Appends our own SQL; never a client's text.
    pub(super) fn words(&mut self, words: &str) {
        self.text.push_str(words);
    }

    /// Appends a placeholder for a value from any source.
    pub(super) fn value(&mut self, value: Value) {
        self.values.push(value);
        self.text.push_str(&format!("${}", self.values.len()));
    }

    pub(super) async fn fetch(self, pool: &AnyPool) -> Result<Vec<AnyRow>, sqlx::Error> {
        let mut query = sqlx::query(AssertSqlSafe(self.text));
        for value in self.values {
            query = match value {
                Value::Text(text) => query.bind(text),
                Value::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(pool).await
    }
}
