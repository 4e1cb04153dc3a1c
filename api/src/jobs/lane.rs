//! Which partition takes a job, so that one who floods a topic does not make others wait.
//!
//! Jobs of one owner lie in one partition, and workers take from the partitions in turn. Two owners can
//! share a partition, though; so one who has little waiting, and finds the own partition full of other
//! people's jobs, goes to the emptiest one. Who has much waiting stays.

use queue::client::{Description, place};
use queue::{JobSpec, PartitionId, Topic};

use crate::keys::Caller;
use crate::state::AppState;

/// Jobs of others that count as a crowd, and own jobs that count as many.
const CROWD_MIN: u64 = 16;

/// The number of the partition that is to take a job; none: where it belongs.
pub(crate) async fn of(state: &AppState, caller: &Caller, topic: &Topic, spec: &JobSpec) -> Option<u16> {
    if caller.owner.is_none() || spec.options.partition_key.is_some() || topic.settings.ordered {
        return None;
    }
    let topics = state.watch.topics();
    let described = topics.iter().find(|one| one.name == *topic.name())?;
    let other = elsewhere(described, place(topic, spec))?;
    // Only asked where there is a crowd. A database that does not answer must not block submissions.
    let waiting = caller.waiting(&state.index, &state.queue).await.unwrap_or(u64::MAX);
    (waiting <= CROWD_MIN).then_some(other)
}

/// The emptiest partition beside `own`, if that one is crowded.
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
