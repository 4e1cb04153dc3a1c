//! The job index, which answers lists and batches.
//!
//! A projection of the records, in SQLite or PostgreSQL by one code path. It may lag behind them by a fraction of a
//! second, may be deleted, and is rebuilt from them. It never answers requests about a single job.
//!
//! A row only moves forward: each write carries the record's revision, and an older revision changes nothing. So
//! the projection may be restarted, repeated, and done by several processes on one database at once; its position
//! is written with the rows, in one transaction.

mod hooks;
mod keys;
mod list;
mod project;
mod schema;
mod statement;

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use queue::{Calendar, Timestamp};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, Connection, Executor, Row};

pub(crate) use list::{Counts, Filter};
pub(crate) use project::SetAside;

/// Connections to the database at a time.
const CONNECTIONS_MAX: u32 = 8;
/// How long to wait for one.
const PATIENCE: Duration = Duration::from_secs(10);

const NANOS_PER_MILLI: i64 = 1_000_000;

fn nanos(millis: i64) -> i64 {
    millis.saturating_mul(NANOS_PER_MILLI)
}

/// The index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database cannot be opened, or its tables cannot be brought up to date.
    #[error("the job index at {address} cannot be opened: {problem}")]
    Open {
        /// Its address, without the password.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// A statement failed.
    #[error("the job index: {0}")]
    Database(#[from] sqlx::Error),
    /// A key that an earlier version stored in the database cannot be read. It may be the only one.
    #[error("a key in the job index is damaged: {0}; restore the database from a backup")]
    Keys(String),
    /// The records could not be read.
    #[error(transparent)]
    Queue(#[from] queue::QueueError),
}

/// The index; clones share it.
#[derive(Debug, Clone)]
pub struct Index {
    pool: AnyPool,
    /// The date that decides what has expired.
    calendar: Arc<Mutex<Calendar>>,
}

impl Index {
    /// Opens a database, `sqlite:FILE` or `postgres://…`, and brings its tables up to date.
    ///
    /// # Errors
    /// [`IndexError::Open`] with the address, and what is wrong there.
    pub async fn open(address: &str) -> Result<Self, IndexError> {
        sqlx::any::install_default_drivers();
        let shown = without_password(address);
        let broken = |problem: String| IndexError::Open { address: shown.clone(), problem };
        if !["sqlite:", "postgres:", "postgresql:"].iter().any(|kind| address.starts_with(kind)) {
            return Err(broken("it must begin with sqlite: or postgres:".into()));
        }
        let is_sqlite = address.starts_with("sqlite:");
        let options = AnyConnectOptions::from_str(address).map_err(|error| broken(error.to_string()))?;
        if is_sqlite {
            check_file(&options).await.map_err(broken)?;
        }
        let pool = AnyPoolOptions::new()
            // SQLite has one writer at a time; more connections would only wait.
            .max_connections(if is_sqlite { 4 } else { CONNECTIONS_MAX })
            .acquire_timeout(PATIENCE)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if is_sqlite {
                        // The index can be rebuilt: rows lost in a power cut are written again.
                        connection.execute("PRAGMA journal_mode = WAL").await?;
                        connection.execute("PRAGMA synchronous = NORMAL").await?;
                        connection.execute("PRAGMA busy_timeout = 10000").await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(|error| broken(error.to_string()))?;
        schema::migrate(&pool).await.map_err(|error| broken(error.to_string()))?;
        // Uses the one date that has an index: a start must not read every row.
        let newest: i64 = sqlx::query("SELECT COALESCE(MAX(created_at), 0) FROM jobs").fetch_one(&pool).await?.get(0);
        let (wall, clock) = (Timestamp::now().as_millis(), Instant::now());
        let calendar = Calendar::since(nanos(newest), nanos(wall), clock);
        Ok(Self { pool, calendar: Arc::new(Mutex::new(calendar)) })
    }

    /// The date that decides what has expired: rows of records that the queue still has stay, even while the clock
    /// is wrong.
    fn date(&self) -> Timestamp {
        let mut calendar = self.calendar.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = calendar.look(nanos(Timestamp::now().as_millis()), Instant::now());
        Timestamp::from_millis(believed / NANOS_PER_MILLI)
    }

    /// The address of a database in a file.
    pub fn file(path: &std::path::Path) -> String {
        // Characters that would end the path or begin an escape in a URL.
        let path = path.display().to_string().replace('%', "%25").replace('?', "%3F").replace('#', "%23");
        format!("sqlite://{path}?mode=rwc")
    }
}

/// Opens a file once, since a pool would keep retrying. A file that is not a database is refused, not replaced: an
/// earlier version stored keys there.
async fn check_file(options: &AnyConnectOptions) -> Result<(), String> {
    let looked = async {
        let mut connection = AnyConnection::connect_with(options).await?;
        connection.execute("PRAGMA schema_version").await?;
        connection.close().await
    };
    looked.await.map_err(|error| {
        // https://www.sqlite.org/rescode.html: SQLITE_CORRUPT and SQLITE_NOTADB.
        let code = error.as_database_error().and_then(|error| Some(error.code()?.into_owned()));
        match code.as_deref() {
            Some("11" | "26") => format!(
                "{error}. It is an index only: move the file away, and the next start makes a new one from the queue"
            ),
            _ => error.to_string(),
        }
    })
}

fn without_password(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((kind, _)), Some((_, host))) => format!("{kind}://***@{host}"),
        _ => address.to_owned(),
    }
}
