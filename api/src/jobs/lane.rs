//! Chooses the partition of a job, so that one heavy user of a topic cannot starve the others.
//!
//! Jobs of one owner are in one partition, and workers take from the partitions in turn. But two owners can share a
//! partition. So when an owner has few queued jobs and other owners' jobs crowd its partition, its next job goes to
//! the emptiest one. An owner with many queued jobs stays in its own.

use queue::client::{Description, place};
use queue::{JobSpec, PartitionId, Topic};

use crate::keys::Caller;
use crate::state::AppState;

/// Queued jobs of others that make a crowd, and own queued jobs that count as many.
const CROWD_MIN: u64 = 16;

/// The number of the partition that takes a job; `None`: its usual one.
pub(crate) async fn of(state: &AppState, caller: &Caller, topic: &Topic, spec: &JobSpec) -> Option<u16> {
    if caller.owner.is_none() || spec.options.partition_key.is_some() || topic.settings.ordered {
        return None;
    }
    let topics = state.watch.topics();
    let described = topics.iter().find(|one| one.name == *topic.name())?;
    let other = elsewhere(described, place(topic, spec))?;
    // Counted only if there is a crowd. A database that does not answer must not block submissions.
    let waiting = caller.waiting(&state.index, &state.queue).await.unwrap_or(u64::MAX);
    (waiting <= CROWD_MIN).then_some(other)
}

/// The emptiest partition other than `own`, if `own` is crowded.
fn elsewhere(topic: &Description, own: PartitionId) -> Option<u16> {
    let crowd = topic.partitions.iter().find(|one| one.partition == own)?.queued;
    if crowd <= 2 * CROWD_MIN {
        return None;
    }
    let same = topic.partitions.iter().filter(|one| one.partition.priority() == own.priority());
    same.min_by_key(|one| one.queued).map(|one| one.partition.index()).filter(|index| *index != own.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::position::tests::{partition, topic};

    #[test]
    fn who_finds_a_crowd_goes_to_the_emptiest() {
        let topic = topic(vec![partition(0, 100, 90), partition(1, 50, 7), partition(2, 50, 3)]);
        let from = |own| elsewhere(&topic, PartitionId::normal(own));
        assert_eq!(from(0), Some(2));
        assert_eq!(from(1), None, "seven are no crowd");
        assert_eq!(from(9), None, "it is not there yet");
    }
}
