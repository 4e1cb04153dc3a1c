//! The tables and their migrations: each step runs once, in order, in a transaction.

use sqlx::{AnyPool, Connection, Executor, Row};

/// Steps, oldest first; never changed once they are released. Both databases accept this SQL.
const STEPS: [&[&str]; 6] = [
    &[
        "CREATE TABLE jobs (
        id TEXT PRIMARY KEY, topic TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, owner TEXT, batch TEXT,
        custom_id TEXT, created_at BIGINT NOT NULL, finished_at BIGINT, expires_at BIGINT, revision BIGINT NOT NULL,
        record TEXT NOT NULL)",
        "CREATE INDEX jobs_by_time ON jobs (created_at, id)",
        "CREATE INDEX jobs_by_state ON jobs (state, created_at, id)",
        "CREATE INDEX jobs_by_batch ON jobs (batch, custom_id)",
        "CREATE INDEX jobs_by_expiry ON jobs (expires_at)",
        "CREATE TABLE metadata (id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (id, name))",
        "CREATE INDEX metadata_by_value ON metadata (name, value)",
        "CREATE TABLE positions (topic TEXT PRIMARY KEY, stream TEXT NOT NULL, revision BIGINT NOT NULL)",
    ],
    &[
        "CREATE TABLE keys (id TEXT PRIMARY KEY, content TEXT NOT NULL)",
        "CREATE INDEX jobs_by_owner ON jobs (owner, state)",
    ],
    &[
        "CREATE TABLE deliveries (
            job TEXT NOT NULL, event TEXT NOT NULL, url TEXT NOT NULL, attempt BIGINT NOT NULL, at BIGINT NOT NULL,
            status BIGINT, outcome TEXT NOT NULL, error TEXT)",
        "CREATE INDEX deliveries_by_job ON deliveries (job)",
        "CREATE TABLE gone (url TEXT PRIMARY KEY)",
    ],
    &["ALTER TABLE jobs ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0"],
    &[
        "ALTER TABLE jobs ADD COLUMN start_by BIGINT",
        "CREATE INDEX jobs_by_start ON jobs (start_by)",
        "CREATE INDEX jobs_by_batch_and_state ON jobs (batch, state)",
        "CREATE INDEX jobs_by_owner_and_size ON jobs (owner, state, bytes)",
        "DROP INDEX jobs_by_owner",
        "CREATE INDEX deliveries_by_time ON deliveries (at)",
        // Existing rows lack the new columns: they are read again from the records.
        "DELETE FROM metadata",
        "DELETE FROM jobs",
        "DELETE FROM positions",
    ],
    &[
        "CREATE TABLE set_aside (id TEXT PRIMARY KEY, topic TEXT NOT NULL, at BIGINT NOT NULL, problem TEXT NOT NULL)",
        // A receiver that answers 410 refuses the calls of one owner only.
        "CREATE TABLE gone_of (owner TEXT NOT NULL, url TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (owner, url))",
        "DROP TABLE gone",
    ],
];

/// Brings the tables up to date.
pub(super) async fn migrate(pool: &AnyPool) -> Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let create = "CREATE TABLE IF NOT EXISTS steps (number BIGINT PRIMARY KEY)";
    // PostgreSQL refuses one of two processes that create a table at once; by the second try it exists.
    if connection.execute(create).await.is_err() {
        connection.execute(create).await?;
    }
    let done = connection.fetch_one("SELECT COUNT(*) FROM steps").await?.get::<i64, _>(0);
    for (number, step) in STEPS.iter().enumerate().skip(done as usize) {
        let mut transaction = connection.begin().await?;
        // Two processes may start at once: only one of them writes the number.
        let turn = sqlx::query("INSERT INTO steps (number) VALUES ($1) ON CONFLICT DO NOTHING")
            .bind(number as i64)
            .execute(&mut *transaction)
            .await?;
        if turn.rows_affected() == 1 {
            for statement in *step {
                transaction.execute(*statement).await?;
            }
        }
        transaction.commit().await?;
    }
    Ok(())
}
