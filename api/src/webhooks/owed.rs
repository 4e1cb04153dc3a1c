//! Which calls the changes of records owe.

use std::time::Duration;

use queue::client::{About, Hook, Revision};
use queue::{Queue, QueueError, Record, Timestamp, TopicName};

/// See [`is_recent`].
const NEWS_MAX: Duration = Duration::from_secs(60 * 60);

/// Notes the calls that these changes of a topic's records owe and that were not noted before. `position` is the
/// last change that was seen before these.
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
            // What this index has seen was told; of what it has not, that cannot be known.
            None => position > Revision::default() || is_recent(record, now),
        };
        if is_news {
            queue.hooks.owe(hook).await?;
        }
    }
    queue.hooks.note_told(topic, last).await?;
    Ok(())
}

/// The call that a record's change owes, if any. Pure.
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

/// Whether a change is recent. Only of topics that an older version made it is not known otherwise what was
/// told of them: an index that is made anew is no news.
fn is_recent(record: &Record, now: Timestamp) -> bool {
    let changed_at = record.state.finished_at().or(record.started_at()).unwrap_or(record.spec.created_at);
    u128::from(now.millis_since(changed_at)) < NEWS_MAX.as_millis()
}
