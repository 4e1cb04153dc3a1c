//! From records to rows.

use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use queue::client::{BATCHES_KEPT, Revision};
use queue::{JobId, Queue, QueueError, Record, Timestamp, Topic, TopicName};
use sqlx::{Any, Row, Transaction};
use tokio::time::Instant;

use super::{Index, IndexError};
use crate::webhooks;

/// How often to look for new records, whether or not somebody rang.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a ring: rows of jobs that change quickly are written once.
const GATHER: Duration = Duration::from_millis(100);
/// How often rows are removed whose records have expired.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Rows of one transaction.
const BATCH: usize = 500;

impl Index {
    /// Follows the records for as long as it is awaited; whatever stops it, it begins again where it was.
    pub(crate) async fn keep(self, queue: Queue) -> Result<(), QueueError> {
        loop {
            if let Err(error) = self.follow(&queue).await {
                tracing::warn!(%error, "the job index is behind");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn follow(&self, queue: &Queue) -> Result<(), IndexError> {
        let mut rings = queue.record_rings().await?;
        let mut sweep_due = Instant::now();
        loop {
            self.catch_up(queue).await?;
            if Instant::now() >= sweep_due {
                self.sweep().await?;
                sweep_due = Instant::now() + SWEEP_INTERVAL;
            }
            if let Ok(Some(())) = tokio::time::timeout(LOOK_INTERVAL, rings.next()).await {
                tokio::time::sleep(GATHER).await;
            }
            while rings.next().now_or_never().flatten().is_some() {}
        }
    }

    /// Takes over every record that is newer than what is known.
    ///
    /// # Errors
    /// [`IndexError`]; doing it again goes on.
    pub async fn catch_up(&self, queue: &Queue) -> Result<(), IndexError> {
        let topics = queue.topics().await?;
        for topic in topics.iter().filter(|topic| topic.settings.model.is_some()) {
            // One that vanishes meanwhile is forgotten next time.
            if let Some((stream, last)) = queue.records_end(topic.name()).await? {
                self.catch_up_with(queue, topic, &stream, last).await?;
            }
        }
        let known = sqlx::query("SELECT topic FROM positions").fetch_all(&self.pool).await?;
        for row in known {
            let name: String = row.get(0);
            if !topics.iter().any(|topic| topic.name().as_str() == name) {
                self.forget(&name).await?;
            }
        }
        Ok(())
    }

    async fn catch_up_with(
        &self,
        queue: &Queue,
        topic: &Topic,
        stream: &str,
        last: Revision,
    ) -> Result<(), IndexError> {
        let name = topic.name();
        let mut position = self.position(name, stream).await?;
        if position >= last {
            return Ok(());
        }
        let records = queue.records_after(name, position).await?;
        let mut batches = std::pin::pin!(records.try_ready_chunks(BATCH));
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| error.1)?;
            // Before it is noted how far we have come: whoever comes after a crash notes it again.
            for (revision, record) in &batch {
                let hook = record.as_ref().and_then(|record| webhooks::owed(record, *revision, Timestamp::now()));
                if let Some(hook) = hook {
                    queue.owe(&hook).await?;
                }
            }
            let mut transaction = self.pool.begin().await?;
            for (revision, record) in &batch {
                position = position.max(*revision);
                if let Some(record) = record {
                    write(&mut transaction, topic, *revision, record).await?;
                }
            }
            write_position(&mut transaction, name, stream, position).await?;
            transaction.commit().await?;
        }
        if position < last {
            // The newest ones have expired already.
            let mut transaction = self.pool.begin().await?;
            write_position(&mut transaction, name, stream, last).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// How far a topic's records are known. One of the same name that was made anew begins anew.
    async fn position(&self, topic: &TopicName, stream: &str) -> Result<Revision, IndexError> {
        let row = sqlx::query("SELECT stream, revision FROM positions WHERE topic = $1")
            .bind(topic.as_str())
            .fetch_optional(&self.pool)
            .await?;
        match row {
            Some(row) if row.get::<String, _>(0) == stream => {
                Ok(Revision::from(u64::try_from(row.get::<i64, _>(1)).unwrap_or(0)))
            }
            Some(_) => {
                self.forget(topic.as_str()).await?;
                Ok(Revision::default())
            }
            None => Ok(Revision::default()),
        }
    }

    /// Removes what is known of a topic.
    async fn forget(&self, topic: &str) -> Result<(), IndexError> {
        let mut transaction = self.pool.begin().await?;
        for statement in [
            "DELETE FROM metadata WHERE id IN (SELECT id FROM jobs WHERE topic = $1)",
            "DELETE FROM jobs WHERE topic = $1",
            "DELETE FROM positions WHERE topic = $1",
        ] {
            sqlx::query(statement).bind(topic.to_owned()).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Forgets everything and reads all records again; returns how many jobs are known then.
    ///
    /// # Errors
    /// [`IndexError`]; doing it again begins anew.
    pub async fn rebuild(&self, queue: &Queue) -> Result<u64, IndexError> {
        let mut transaction = self.pool.begin().await?;
        for statement in ["DELETE FROM metadata", "DELETE FROM jobs", "DELETE FROM positions"] {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        self.catch_up(queue).await?;
        let count = sqlx::query("SELECT COUNT(*) FROM jobs").fetch_one(&self.pool).await?;
        Ok(count.get::<i64, _>(0).cast_unsigned())
    }

    /// Jobs that should have begun before now, as far as is known here; some of them.
    pub(crate) async fn overdue(&self) -> Result<Vec<JobId>, IndexError> {
        let rows = sqlx::query("SELECT id FROM jobs WHERE start_by < $1 ORDER BY start_by LIMIT 500")
            .bind(Timestamp::now().as_millis())
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().filter_map(|row| row.get::<&str, _>(0).parse().ok()).collect())
    }

    /// Removes rows whose records have expired.
    async fn sweep(&self) -> Result<(), IndexError> {
        let now = Timestamp::now().as_millis();
        let mut transaction = self.pool.begin().await?;
        for statement in [
            "DELETE FROM metadata WHERE id IN (SELECT id FROM jobs WHERE expires_at < $1)",
            "DELETE FROM deliveries WHERE job IN (SELECT id FROM jobs WHERE expires_at < $1)",
            "DELETE FROM jobs WHERE expires_at < $1",
        ] {
            sqlx::query(statement).bind(now).execute(&mut *transaction).await?;
        }
        // Those of batches go with the batches' records.
        let old = now - i64::try_from(BATCHES_KEPT.as_millis()).unwrap_or(i64::MAX);
        let of_batches = "DELETE FROM deliveries WHERE at < $1 AND job LIKE 'batch %'";
        sqlx::query(of_batches).bind(old).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

async fn write_position(
    transaction: &mut Transaction<'_, Any>,
    topic: &TopicName,
    stream: &str,
    position: Revision,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO positions (topic, stream, revision) VALUES ($1, $2, $3)
         ON CONFLICT (topic) DO UPDATE SET stream = excluded.stream, revision = excluded.revision
         WHERE positions.stream <> excluded.stream OR positions.revision < excluded.revision",
    )
    .bind(topic.as_str().to_owned())
    .bind(stream.to_owned())
    .bind(u64::from(position).cast_signed())
    .execute(&mut **transaction)
    .await
    .map(drop)
}

async fn write(
    transaction: &mut Transaction<'_, Any>,
    topic: &Topic,
    revision: Revision,
    record: &Record,
) -> Result<(), sqlx::Error> {
    let (spec, finished) = (&record.spec, record.state.finished_at());
    let expires = finished.map(|finished| finished.plus(topic.record_ttl(&spec.options)).as_millis());
    let waits_until = spec.options.start_by.filter(|_| !record.is_terminal() && record.attempts.is_empty());
    let id = spec.id.to_string();
    let written = sqlx::query(
        "INSERT INTO jobs (id, topic, model, state, owner, batch, custom_id, created_at, finished_at, expires_at,
                           revision, record, bytes, start_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, finished_at = excluded.finished_at,
             expires_at = excluded.expires_at, start_by = excluded.start_by, revision = excluded.revision, record = excluded.record
         WHERE jobs.revision < excluded.revision",
    )
    .bind(id.clone())
    .bind(spec.id.topic().as_str().to_owned())
    .bind(spec.model.clone())
    .bind(record.state.name())
    .bind(spec.origin.owner.clone())
    .bind(spec.origin.batch.clone())
    .bind(spec.origin.custom_id.clone())
    .bind(spec.created_at.as_millis())
    .bind(finished.map(Timestamp::as_millis))
    .bind(expires)
    .bind(u64::from(revision).cast_signed())
    .bind(serde_json::to_string(record).expect("a record holds JSON values only"))
    .bind(spec.image.bytes.cast_signed())
    .bind(waits_until.map(Timestamp::as_millis))
    .execute(&mut **transaction)
    .await?;
    if written.rows_affected() == 0 {
        return Ok(());
    }
    for (name, value) in &spec.metadata {
        sqlx::query("INSERT INTO metadata (id, name, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(id.clone())
            .bind(name.clone())
            .bind(value.clone())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}
