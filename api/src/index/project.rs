//! Projects records into rows.

use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use queue::client::{BATCHES_KEPT, Revision};
use queue::{JobId, Queue, QueueError, Record, Timestamp, Topic, TopicName};
use serde::Serialize;
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{Index, IndexError};
use crate::webhooks::owe;

/// How often to look for new records without a notification.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a notification, so that rows of jobs that change quickly are written once.
const GATHER: Duration = Duration::from_millis(100);
/// How often to remove rows whose records have expired.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long a job that was set aside is listed.
const SET_ASIDE_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Rows per transaction.
const BATCH: usize = 500;
/// How often rows are written again after a deadlock.
const DEADLOCK_RETRIES: u32 = 5;

impl Index {
    /// Follows the records until the future is dropped; after an error it resumes where it stopped.
    pub(crate) async fn keep(self, queue: Queue) -> Result<(), QueueError> {
        loop {
            if let Err(error) = self.follow(&queue).await {
                tracing::warn!(%error, "job index is behind");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn follow(&self, queue: &Queue) -> Result<(), IndexError> {
        let mut rings = queue.jobs.record_rings().await?;
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

    /// Projects every record that is newer than the index.
    ///
    /// # Errors
    /// [`IndexError`]; a repeated call resumes. A topic that cannot be followed does not hold up the others.
    pub async fn catch_up(&self, queue: &Queue) -> Result<(), IndexError> {
        let topics = queue.topics().await?;
        let mut caught_up = Ok(());
        for topic in topics.iter().filter(|topic| topic.settings.model.is_some()) {
            let followed = async {
                // A topic that is deleted meanwhile is forgotten next time.
                match queue.jobs.records_end(topic.name()).await? {
                    Some((stream, last)) => self.catch_up_with(queue, topic, &stream, last).await,
                    None => Ok(()),
                }
            };
            caught_up = caught_up.and(followed.await);
        }
        caught_up?;
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
        let records = queue.jobs.records_after(name, position).await?;
        let mut chunks = std::pin::pin!(records.try_ready_chunks(BATCH));
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| error.1)?;
            // Store the webhook calls before the position: after a crash, the next process stores them again.
            owe(queue, name, position, &chunk).await?;
            match self.write_chunk(topic, stream, &chunk).await {
                Ok(()) => {}
                Err(error) if is_about_data(&error) => self.write_singly(topic, stream, &chunk).await?,
                Err(error) => return Err(error.into()),
            }
            position = chunk.iter().map(|(revision, _)| *revision).fold(position, Revision::max);
        }
        if position < last {
            // The newest records have expired already.
            let mut transaction = self.pool.begin().await?;
            write_position(&mut transaction, name, stream, last).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Writes rows together with the new position, again after a deadlock.
    async fn write_chunk(&self, topic: &Topic, stream: &str, chunk: &[Change]) -> Result<(), sqlx::Error> {
        let mut retries = 0..DEADLOCK_RETRIES;
        loop {
            match self.try_write_chunk(topic, stream, chunk).await {
                Err(error) if is_deadlock(&error) && retries.next().is_some() => {}
                written => return written,
            }
        }
    }

    async fn try_write_chunk(&self, topic: &Topic, stream: &str, chunk: &[Change]) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let position = chunk.iter().map(|(revision, _)| *revision).fold(Revision::default(), Revision::max);
        // Several processes may write the same rows, and each has seen the changes in another order. All lock the rows
        // in the order of their ids, because two processes with different orders would wait for each other.
        let mut rows: Vec<_> =
            chunk.iter().filter_map(|(revision, record)| Some((*revision, record.as_ref()?))).collect();
        rows.sort_by(|(_, a), (_, b)| a.spec.id.cmp(&b.spec.id));
        for (revision, record) in rows {
            write(&mut transaction, topic, revision, record).await?;
        }
        write_position(&mut transaction, topic.name(), stream, position).await?;
        transaction.commit().await
    }

    /// Writes rows one by one; a row that the database cannot store is set aside, so that it does not block those
    /// after it.
    async fn write_singly(&self, topic: &Topic, stream: &str, chunk: &[Change]) -> Result<(), IndexError> {
        for change in chunk {
            let written = self.write_chunk(topic, stream, std::slice::from_ref(change)).await;
            match (written, &change.1) {
                (Ok(()), _) => {}
                (Err(error), Some(record)) if is_about_data(&error) => {
                    let id = record.spec.id.to_string();
                    tracing::error!(job_id = id, %error, "job index cannot store this job; set aside");
                    self.set_aside(topic, stream, &id, change.0, &error).await?;
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn set_aside(
        &self,
        topic: &Topic,
        stream: &str,
        id: &str,
        revision: Revision,
        error: &sqlx::Error,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(
            "INSERT INTO set_aside (id, topic, at, problem) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE SET at = excluded.at, problem = excluded.problem",
        )
        .bind(id.to_owned())
        .bind(topic.name().as_str().to_owned())
        .bind(Timestamp::now().as_millis())
        .bind(error.to_string().replace('\0', " "))
        .execute(&mut *transaction)
        .await?;
        write_position(&mut transaction, topic.name(), stream, revision).await?;
        transaction.commit().await
    }

    /// How many jobs the database cannot store.
    pub(crate) async fn count_set_aside(&self) -> Result<i64, IndexError> {
        Ok(sqlx::query("SELECT COUNT(*) FROM set_aside").fetch_one(&self.pool).await?.get(0))
    }

    /// Jobs that the database cannot store, latest first.
    pub(crate) async fn all_set_aside(&self) -> Result<Vec<SetAside>, IndexError> {
        let rows = sqlx::query("SELECT id, at, problem FROM set_aside ORDER BY at DESC LIMIT 1000")
            .fetch_all(&self.pool)
            .await?;
        let read =
            |row: &AnyRow| SetAside { id: row.get(0), at: Timestamp::from_millis(row.get(1)), problem: row.get(2) };
        Ok(rows.iter().map(read).collect())
    }

    /// How far a topic's records are projected. A topic that was created again under the same name starts over.
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

    /// Removes all rows of a topic.
    async fn forget(&self, topic: &str) -> Result<(), IndexError> {
        let mut transaction = self.pool.begin().await?;
        for statement in [
            "DELETE FROM metadata WHERE id IN (SELECT id FROM jobs WHERE topic = $1)",
            "DELETE FROM deliveries WHERE job IN (SELECT id FROM jobs WHERE topic = $1)",
            "DELETE FROM jobs WHERE topic = $1",
            "DELETE FROM set_aside WHERE topic = $1",
            "DELETE FROM positions WHERE topic = $1",
        ] {
            sqlx::query(statement).bind(topic.to_owned()).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Removes all rows and reads all records again; returns how many jobs the index then has.
    ///
    /// # Errors
    /// [`IndexError`]; a repeated call starts over.
    pub async fn rebuild(&self, queue: &Queue) -> Result<u64, IndexError> {
        let mut transaction = self.pool.begin().await?;
        for statement in ["DELETE FROM metadata", "DELETE FROM jobs", "DELETE FROM set_aside", "DELETE FROM positions"]
        {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        self.catch_up(queue).await?;
        let count = sqlx::query("SELECT COUNT(*) FROM jobs").fetch_one(&self.pool).await?;
        Ok(count.get::<i64, _>(0).cast_unsigned())
    }

    /// Jobs past their start deadline, as far as the index knows; at most 500 of them.
    pub(crate) async fn overdue(&self) -> Result<Vec<JobId>, IndexError> {
        let rows = sqlx::query("SELECT id FROM jobs WHERE start_by < $1 ORDER BY start_by LIMIT 500")
            .bind(Timestamp::now().as_millis())
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().filter_map(|row| row.get::<&str, _>(0).parse().ok()).collect())
    }

    /// Removes rows whose records have expired.
    async fn sweep(&self) -> Result<(), IndexError> {
        let now = self.date().as_millis();
        let mut transaction = self.pool.begin().await?;
        for statement in [
            "DELETE FROM metadata WHERE id IN (SELECT id FROM jobs WHERE expires_at < $1)",
            "DELETE FROM deliveries WHERE job IN (SELECT id FROM jobs WHERE expires_at < $1)",
            "DELETE FROM jobs WHERE expires_at < $1",
        ] {
            sqlx::query(statement).bind(now).execute(&mut *transaction).await?;
        }
        // Jobs that were set aside are listed for as long as a job's result is kept by default.
        sqlx::query("DELETE FROM set_aside WHERE at < $1")
            .bind(now - i64::try_from(SET_ASIDE_KEPT.as_millis()).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
        // Deliveries of batches expire with the batches' records.
        let old = now - i64::try_from(BATCHES_KEPT.as_millis()).unwrap_or(i64::MAX);
        let of_batches = "DELETE FROM deliveries WHERE at < $1 AND job LIKE 'batch %'";
        sqlx::query(of_batches).bind(old).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// A changed record with its revision; `None` if it has expired.
type Change = (Revision, Option<Record>);

/// A job that the database cannot store. The queue still has it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SetAsideJob)]
pub(crate) struct SetAside {
    /// Its id.
    pub(crate) id: String,
    /// When that was detected.
    pub(crate) at: Timestamp,
    /// The database's error.
    pub(crate) problem: String,
}

/// Whether the database ended a transaction because it and another waited for each other, as a sweep and a follower may.
fn is_deadlock(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("40P01")
}

/// Whether the database refuses this data, rather than being unable to do anything at all now.
fn is_about_data(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let Some(code) = error.code() else { return false };
    // PostgreSQL: data exceptions, violated constraints, program limits. SQLite: too big, constraint, mismatch.
    let is_of_class = |class: &str| code.len() == 5 && code.starts_with(class);
    ["22", "23", "54"].iter().any(|class| is_of_class(class))
        || code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18..=20) && code < 10_000)
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
