//! The delivery log of webhooks, and receivers that refuse further calls.

use queue::Timestamp;
use queue::client::About;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::statement::{Statement, Value};
use super::{Index, IndexError};
use crate::webhooks::{Delivery, Gone, Outcome};

impl Index {
    /// Logs an attempt.
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
        .bind(delivery.outcome.name())
        .bind(delivery.error.clone())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Attempts to call webhooks about a job or batch, oldest first.
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
            outcome: Outcome::named(row.get(5)),
            error: row.get(6),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Whether a receiver refuses further calls for this owner.
    pub(crate) async fn is_gone(&self, owner: Option<&str>, url: &str) -> Result<bool, IndexError> {
        let row = sqlx::query("SELECT 1 FROM gone_of WHERE owner = $1 AND url = $2")
            .bind(owner.unwrap_or_default().to_owned())
            .bind(url.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// Records that it does.
    pub(crate) async fn note_gone(&self, owner: Option<&str>, url: &str) -> Result<(), IndexError> {
        sqlx::query("INSERT INTO gone_of (owner, url, at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(owner.unwrap_or_default().to_owned())
            .bind(url.to_owned())
            .bind(Timestamp::now().as_millis())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Receivers that refuse further calls, of all owners or of one.
    pub(crate) async fn gone(&self, only: Option<&str>) -> Result<Vec<Gone>, IndexError> {
        let mut statement = Statement::new("SELECT owner, url, at FROM gone_of");
        if let Some(owner) = only {
            statement.words(" WHERE owner = ");
            statement.value(Value::Text(owner.to_owned()));
        }
        statement.words(" ORDER BY at, url LIMIT 1000");
        let rows = statement.fetch(&self.pool).await?;
        let read = |row: &AnyRow| Gone {
            owner: Some(row.get::<String, _>(0)).filter(|owner| !owner.is_empty()),
            url: row.get(1),
            at: Timestamp::from_millis(row.get(2)),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Resumes calls to a receiver, for all owners or for one. Returns whether calls had been stopped.
    pub(crate) async fn forget_gone(&self, only: Option<&str>, url: &str) -> Result<bool, IndexError> {
        let removed = match only {
            None => sqlx::query("DELETE FROM gone_of WHERE url = $1").bind(url.to_owned()),
            Some(owner) => sqlx::query("DELETE FROM gone_of WHERE url = $1 AND owner = $2")
                .bind(url.to_owned())
                .bind(owner.to_owned()),
        };
        Ok(removed.execute(&self.pool).await?.rows_affected() > 0)
    }
}
