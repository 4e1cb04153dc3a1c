//! What the database stores about keys: those of earlier versions, and what their owners have queued.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Index, IndexError};
use crate::keys::Key;

impl Index {
    /// Keys that earlier versions stored here. They stay, so that an older version that is started on this database
    /// again still has its keys.
    pub(crate) async fn old_keys(&self) -> Result<Vec<Key>, IndexError> {
        let rows = sqlx::query("SELECT content FROM keys ORDER BY id").fetch_all(&self.pool).await?;
        let read = |row: &AnyRow| serde_json::from_str(row.get::<&str, _>(0));
        let damaged = |error: serde_json::Error| IndexError::Keys(error.to_string());
        rows.iter().map(read).collect::<Result<_, _>>().map_err(damaged)
    }

    /// Number of an owner's queued jobs, and the bytes of their images.
    pub(crate) async fn waiting_of(&self, owner: &str) -> Result<(u64, u64), IndexError> {
        // PostgreSQL sums to a wider type.
        let sum =
            "SELECT COUNT(*), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM jobs WHERE owner = $1 AND state = 'queued'";
        let row = sqlx::query(sum).bind(owner.to_owned()).fetch_one(&self.pool).await?;
        Ok((row.get::<i64, _>(0).cast_unsigned(), row.get::<i64, _>(1).cast_unsigned()))
    }
}
