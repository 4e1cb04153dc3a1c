//! Which server should lead which partition: spread evenly, so that after the loss of one server
//! the topic's other partitions continue at once. Pure.

use std::collections::BTreeMap;

use crate::client::{Description, Partition};
use crate::{PartitionId, TopicName};

/// A partition that another server should lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The server that should lead it; its copy is current.
    pub to: String,
}

/// At most one move for each topic: from the server that leads the most of its partitions to one
/// that leads at least two fewer. Nothing is moved while a copy of the topic lags, since the
/// cluster is busy enough then.
pub fn moves(topics: &[Description]) -> Vec<Move> {
    topics.iter().filter_map(one).collect()
}

fn one(topic: &Description) -> Option<Move> {
    let is_whole = |partition: &Partition| {
        partition.leader != "none" && partition.replicas.iter().all(|replica| replica.current && !replica.offline)
    };
    if topic.replicas < 2 || !topic.partitions.iter().all(is_whole) {
        return None;
    }
    let mut led: BTreeMap<&str, usize> = BTreeMap::new();
    for partition in &topic.partitions {
        *led.entry(&partition.leader).or_default() += 1;
        for replica in &partition.replicas {
            led.entry(&replica.server).or_default();
        }
    }
    let (most, count) = led.iter().max_by_key(|(_, count)| **count)?;
    let from_most = topic.partitions.iter().filter(|partition| partition.leader == **most);
    let move_to = |partition: &Partition| {
        let least = partition.replicas.iter().min_by_key(|replica| led[replica.server.as_str()])?;
        (led[least.server.as_str()] + 1 < *count).then(|| Move {
            topic: topic.name.clone(),
            partition: partition.partition,
            to: least.server.clone(),
        })
    };
    from_most.into_iter().find_map(move_to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Replica;
    use crate::watchdog::tests::topic;

    /// A topic with one partition for each of these leaders, and copies on all three servers.
    fn led_by(leaders: &[&str]) -> Description {
        let copy = |server: &&&str| Replica { server: (**server).to_string(), current: true, lag: 0, offline: false };
        let partition = |(index, leader): (usize, &&str)| Partition {
            partition: PartitionId::normal(index as u16),
            leader: (*leader).to_owned(),
            replicas: ["n1", "n2", "n3"].iter().filter(|server| *server != leader).map(|s| copy(&s)).collect(),
            ..topic().partitions.remove(0)
        };
        Description { replicas: 3, partitions: leaders.iter().enumerate().map(partition).collect(), ..topic() }
    }

    #[test]
    fn leaders_are_spread_move_by_move_until_they_are_even() {
        let mut leaders = vec!["n1".to_owned(); 7];
        let mut count = 0;
        loop {
            let names: Vec<&str> = leaders.iter().map(String::as_str).collect();
            let Some(step) = moves(&[led_by(&names)]).pop() else { break };
            leaders[usize::from(step.partition.index())] = step.to;
            count += 1;
        }
        let of = |name: &str| leaders.iter().filter(|leader| *leader == name).count();
        let mut counts = [of("n1"), of("n2"), of("n3")];
        counts.sort_unstable();
        assert_eq!((counts, count), ([2, 2, 3], 4), "no move was for nothing");
    }

    #[test]
    fn nothing_is_moved_while_a_copy_is_behind_or_where_there_is_none() {
        let mut behind = led_by(&["n1", "n1", "n1"]);
        behind.partitions[2].replicas[0].current = false;
        let mut gone = led_by(&["n1", "n1", "n1"]);
        gone.partitions[2].replicas[0].offline = true;
        assert_eq!(moves(&[behind, gone, led_by(&["n1", "none", "n1"]), led_by(&["n1", "n2", "n3"]), topic()]), []);
    }
}
