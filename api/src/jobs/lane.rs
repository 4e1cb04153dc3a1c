//! Which partition takes a job, so that one who floods a topic does not make others wait.
//!
//! All jobs of one owner lie in one partition, and workers take from the partitions in turn. Two
//! owners can share a partition, though; so one who finds the own partition full of other people's
//! jobs goes to the emptiest one. Who has filled it stays there.

use queue::client::{Description, place};
use queue::{JobSpec, PartitionId, Topic};

use crate::error::ApiError;
use crate::keys::Caller;
use crate::state::State as Inner;

/// So many jobs of others may always be before one.
const CROWD_MIN: u64 = 16;

/// The number of the partition that is to take a job; none: where it belongs.
pub(crate) async fn of(state: &Inner, caller: &Caller, topic: &Topic, spec: &JobSpec) -> Result<Option<u16>, ApiError> {
    if caller.owner.is_none() || spec.options.partition_key.is_some() || topic.settings.ordered {
        return Ok(None);
    }
    let topics = state.watch.topics();
    let Some(described) = topics.iter().find(|one| one.name == *topic.name()) else { return Ok(None) };
    Ok(choose(described, place(topic, spec), caller.waiting(state).await?))
}

/// `own` is the owner's partition, `waiting` how many jobs of the owner wait.
fn choose(topic: &Description, own: PartitionId, waiting: u64) -> Option<u16> {
    let waits = topic.partitions.iter().find(|one| one.partition == own)?.queued;
    if waits <= CROWD_MIN + 2 * waiting {
        return None;
    }
    let same = topic.partitions.iter().filter(|one| one.partition.priority() == own.priority());
    same.min_by_key(|one| one.queued).map(|one| one.partition.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::position::tests::{partition, topic};

    #[test]
    fn who_finds_a_crowd_of_others_goes_elsewhere_and_who_is_the_crowd_stays() {
        let topic = topic(vec![partition(0, 100, 90), partition(1, 50, 7), partition(2, 50, 3)]);
        let at = |own, waiting| choose(&topic, PartitionId::normal(own), waiting);
        assert_eq!(at(0, 1), Some(2));
        assert_eq!(at(0, 85), None, "these are mostly its own");
        assert_eq!(at(1, 0), None, "seven are no crowd");
        assert_eq!(choose(&topic, PartitionId::normal(9), 0), None, "it is not there yet");
    }
}
