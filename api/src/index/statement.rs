//! A statement that is put together: our own words, and a client's values apart from them.

use sqlx::any::AnyRow;
use sqlx::{AnyPool, AssertSqlSafe};

/// Words with numbered places, which both databases know.
pub(super) struct Statement {
    text: String,
    values: Vec<Value>,
}

/// What stands at a place.
pub(super) enum Value {
    Text(String),
    Number(i64),
}

impl Statement {
    pub(super) fn new(words: &'static str) -> Self {
        Self { text: words.to_owned(), values: Vec::new() }
    }

    /// Our own words; never a client's.
    pub(super) fn words(&mut self, words: &str) {
        self.text.push_str(words);
    }

    /// A placeholder for a value of any source.
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
