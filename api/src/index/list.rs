//! Lists of jobs, page by page, newest first.
//!
//! A cursor names the last job of a page by its time and id, so pages stay stable while jobs arrive: new jobs come
//! before the first page.

use queue::Record;
use sqlx::Row;

use super::statement::{Statement, Value};
use super::{Index, IndexError};

/// Which jobs to list; absent means any.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Filter {
    /// Only jobs of this owner.
    pub(crate) owner: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) batch: Option<String>,
    /// Keys and values that a job's metadata must have.
    pub(crate) metadata: Vec<(String, String)>,
    /// Only jobs after this one.
    pub(crate) cursor: Option<Cursor>,
}

/// A job by its position in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    created_at: i64,
    id: String,
}

/// One page of jobs.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) records: Vec<Record>,
    /// Where the next page begins; `None` on the last one.
    pub(crate) next: Option<Cursor>,
}

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, id) = text.split_once('_').ok_or(())?;
        Ok(Self { created_at: time.parse().map_err(drop)?, id: id.to_owned() })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}", self.created_at, self.id)
    }
}

impl Index {
    /// A page of at most `limit` jobs.
    pub(crate) async fn list(&self, filter: &Filter, limit: usize) -> Result<Page, IndexError> {
        let mut query =
            Statement::new("SELECT record, created_at, id FROM jobs WHERE (expires_at IS NULL OR expires_at >= ");
        query.value(Value::Number(self.date().as_millis()));
        query.words(")");
        for (column, value) in [
            ("owner", &filter.owner),
            ("state", &filter.state),
            ("model", &filter.model),
            ("topic", &filter.topic),
            ("batch", &filter.batch),
        ] {
            if let Some(value) = value {
                query.words(&format!(" AND {column} = "));
                query.value(Value::Text(value.clone()));
            }
        }
        for (name, value) in &filter.metadata {
            query.words(" AND EXISTS (SELECT 1 FROM metadata WHERE metadata.id = jobs.id AND name = ");
            query.value(Value::Text(name.clone()));
            query.words(" AND value = ");
            query.value(Value::Text(value.clone()));
            query.words(")");
        }
        if let Some(cursor) = &filter.cursor {
            query.words(" AND (created_at < ");
            query.value(Value::Number(cursor.created_at));
            query.words(" OR (created_at = ");
            query.value(Value::Number(cursor.created_at));
            query.words(" AND id < ");
            query.value(Value::Text(cursor.id.clone()));
            query.words("))");
        }
        query.words(" ORDER BY created_at DESC, id DESC LIMIT ");
        // One more, to see whether there is another page.
        query.value(Value::Number(limit as i64 + 1));
        let rows = query.fetch(&self.pool).await?;
        let next = (rows.len() > limit).then(|| &rows[limit - 1]);
        let next = next.map(|row| Cursor { created_at: row.get(1), id: row.get(2) });
        // Records of another version that this one cannot read are left out.
        let records = rows.iter().take(limit).filter_map(|row| serde_json::from_str(row.get::<&str, _>(0)).ok());
        Ok(Page { records: records.collect(), next })
    }
}

/// How many jobs are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) queued: u64,
    pub(crate) running: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) canceled: u64,
}

impl Counts {
    pub(crate) fn total(&self) -> u64 {
        self.queued + self.running + self.succeeded + self.failed + self.canceled
    }
}

impl Index {
    /// Counts the jobs of a batch by state.
    pub(crate) async fn counts(&self, batch: &str) -> Result<Counts, IndexError> {
        let rows = sqlx::query("SELECT state, COUNT(*) FROM jobs WHERE batch = $1 GROUP BY state")
            .bind(batch.to_owned())
            .fetch_all(&self.pool)
            .await?;
        let mut counts = Counts::default();
        for row in rows {
            let count = row.get::<i64, _>(1).cast_unsigned();
            match row.get::<&str, _>(0) {
                "queued" => counts.queued = count,
                "running" => counts.running = count,
                "succeeded" => counts.succeeded = count,
                "failed" => counts.failed = count,
                _ => counts.canceled = count,
            }
        }
        Ok(counts)
    }

    /// The jobs of a batch after a custom id, ordered by custom id.
    pub(crate) async fn batch_page(
        &self,
        batch: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>, IndexError> {
        let rows =
            sqlx::query("SELECT record FROM jobs WHERE batch = $1 AND custom_id > $2 ORDER BY custom_id LIMIT $3")
                .bind(batch.to_owned())
                .bind(after.unwrap_or("").to_owned())
                .bind(limit as i64)
                .fetch_all(&self.pool)
                .await?;
        let read = |row: &sqlx::any::AnyRow| serde_json::from_str(row.get::<&str, _>(0)).ok();
        Ok(rows.iter().filter_map(read).collect())
    }
}
