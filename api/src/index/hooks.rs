//! The delivery log of webhooks, and receivers that want no more.

use queue::Timestamp;
use queue::client::About;
use sqlx::Row;

use super::{Index, IndexError};
use crate::webhooks::Delivery;

impl Index {
    /// Notes a try.
    pub(crate) async fn log_delivery(&self, about: &About, delivery: &Delivery) -> Result<(), IndexError> {
        sqlx::query(
            "INSERT INTO deliveries (job, event, url, attempt, at, status, outcome, error)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(about.to_string())
        .bind(delivery.event.clone())
        .bind(delivery.url.clone())
        .bind(i64::from(delivery.attempt))
        .bind(delivery.at.as_millis())
        .bind(delivery.status.map(i64::from))
        .bind(delivery.outcome.clone())
        .bind(delivery.error.clone())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The tries of the calls about a job or batch, oldest first.
    pub(crate) async fn deliveries(&self, about: &About) -> Result<Vec<Delivery>, IndexError> {
        let rows = sqlx::query(
            "SELECT event, url, attempt, at, status, outcome, error FROM deliveries WHERE job = $1 ORDER BY at, attempt",
        )
        .bind(about.to_string())
        .fetch_all(&self.pool)
        .await?;
        let read = |row: &sqlx::any::AnyRow| Delivery {
            event: row.get(0),
            url: row.get(1),
            attempt: u32::try_from(row.get::<i64, _>(2)).unwrap_or(0),
            at: Timestamp::from_millis(row.get(3)),
            status: row.get::<Option<i64>, _>(4).and_then(|status| u16::try_from(status).ok()),
            outcome: row.get(5),
            error: row.get(6),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Whether a receiver has said that it wants no more.
    pub(crate) async fn is_gone(&self, url: &str) -> Result<bool, IndexError> {
        let row =
            sqlx::query("SELECT 1 FROM gone WHERE url = $1").bind(url.to_owned()).fetch_optional(&self.pool).await?;
        Ok(row.is_some())
    }

    /// Notes that it has.
    pub(crate) async fn note_gone(&self, url: &str) -> Result<(), IndexError> {
        let insert = sqlx::query("INSERT INTO gone (url) VALUES ($1) ON CONFLICT DO NOTHING").bind(url.to_owned());
        insert.execute(&self.pool).await?;
        Ok(())
    }
}
