//! Keys in the database: the one thing in it that no record could bring back.

use sqlx::{Executor, Row};

use super::{Index, IndexError};
use crate::keys::Key;

impl Index {
    /// All keys, also those that are no good any more.
    pub(crate) async fn keys(&self) -> Result<Vec<Key>, IndexError> {
        let rows = sqlx::query("SELECT content FROM keys ORDER BY id").fetch_all(&self.pool).await?;
        Ok(rows.iter().filter_map(|row| serde_json::from_str(row.get::<&str, _>(0)).ok()).collect())
    }

    /// Whether there is any key.
    ///
    /// # Errors
    /// [`IndexError`] when the database does not answer.
    pub async fn has_keys(&self) -> Result<bool, IndexError> {
        Ok(!self.keys().await?.is_empty())
    }

    /// Writes one, over an older one of its id. A power cut takes it back no more: a key that was
    /// revoked must not be good again.
    pub(crate) async fn write_key(&self, key: &Key) -> Result<(), IndexError> {
        let mut connection = self.pool.acquire().await?;
        if self.is_sqlite {
            connection.execute("PRAGMA synchronous = FULL").await?;
        }
        let written = sqlx::query(
            "INSERT INTO keys (id, content) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET content = excluded.content",
        )
        .bind(key.id.clone())
        .bind(serde_json::to_string(key).expect("a key is JSON"))
        .execute(&mut *connection)
        .await;
        if self.is_sqlite {
            connection.execute("PRAGMA synchronous = NORMAL").await?;
        }
        written?;
        Ok(())
    }

    /// Jobs of an owner that wait, and the bytes of their images.
    pub(crate) async fn waiting_of(&self, owner: &str) -> Result<(u64, u64), IndexError> {
        // PostgreSQL sums to a wider type.
        let sum =
            "SELECT COUNT(*), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM jobs WHERE owner = $1 AND state = 'queued'";
        let row = sqlx::query(sum).bind(owner.to_owned()).fetch_one(&self.pool).await?;
        Ok((row.get::<i64, _>(0).cast_unsigned(), row.get::<i64, _>(1).cast_unsigned()))
    }
}
