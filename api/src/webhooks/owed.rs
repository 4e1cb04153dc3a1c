//! Which webhook calls are due for changes of records.

use std::time::Duration;

use queue::client::{About, Hook, Revision};
use queue::{Queue, QueueError, Record, Timestamp, TopicName};

/// See [`is_recent`].
const NEWS_MAX: Duration = Duration::from_secs(60 * 60);

/// Stores the calls that are due for these changes of a topic's records, unless they were stored before. `position`
/// is the last change that was seen before these.
///
/// # Errors
/// [`QueueError`] when the queue does not answer; then the changes must be seen again.
pub(crate) async fn owe(
    queue: &Queue,
    topic: &TopicName,
    position: Revision,
    changes: &[(Revision, Option<Record>)],
) -> Result<(), QueueError> {
    let owed = changes.iter().filter_map(|(revision, record)| {
        let record = record.as_ref()?;
        Some((*revision, record, owed(record, *revision)?))
    });
    let owed: Vec<_> = owed.collect();
    let Some(last) = owed.iter().map(|(revision, ..)| *revision).max() else { return Ok(()) };
    let told = queue.hooks.told(topic).await?;
    let now = Timestamp::now();
    for (revision, record, hook) in &owed {
        let is_news = match told {
            Some(told) => *revision > told,
            // An index that has seen earlier changes has stored their calls; for a new one, that cannot be known.
            None => position > Revision::default() || is_recent(record, now),
        };
        if is_news {
            queue.hooks.owe(hook).await?;
        }
    }
    queue.hooks.note_told(topic, last).await?;
    Ok(())
}

/// The call that is due for a record's change, if any. Pure.
fn owed(record: &Record, revision: Revision) -> Option<Hook> {
    let wish = record.spec.options.webhook.as_ref()?;
    let state = record.state.name();
    let is_wanted = if wish.events.is_empty() { record.is_terminal() } else { wish.events.iter().any(|e| e == state) };
    is_wanted.then(|| Hook {
        about: About::Job(record.spec.id.clone()),
        state: state.to_owned(),
        revision: revision.into(),
        url: wish.url.clone(),
        owner: record.spec.origin.owner.clone(),
    })
}

/// Whether a change is recent. Needed only for topics that an older version created, where it is not stored which
/// calls were sent: rebuilding the index must not send old ones again.
fn is_recent(record: &Record, now: Timestamp) -> bool {
    let changed_at = record.state.finished_at().or(record.started_at()).unwrap_or(record.spec.created_at);
    u128::from(now.millis_since(changed_at)) < NEWS_MAX.as_millis()
}
