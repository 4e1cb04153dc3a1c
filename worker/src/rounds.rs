//! Which partition comes next: in turn within a priority, in fixed shares between priorities. Pure.
//!
//! Between priorities it is stride scheduling (Waldspurger and Weihl, 1995): each job of a priority advances its clock
//! by the inverse of its share, and the priority whose clock is furthest behind is asked first. A priority that had no
//! jobs saves up no credit: its clock is moved up to the others.

use std::collections::BTreeSet;

use queue::{PartitionId, Priority, TopicName};

/// A partition of a topic.
pub(crate) type TopicPartition = (TopicName, PartitionId);

/// How far a clock advances for a job of share 1; divisible by all shares.
const STRIDE: u64 = 12;

/// The places to ask, by priority.
pub(crate) struct Rounds {
    rounds: [Round; 3],
    /// One per priority, in the order of [`Priority::ALL`].
    clocks: [u64; 3],
}

impl Rounds {
    /// Rounds that begin at the place number `start`.
    pub(crate) fn new(start: usize) -> Self {
        Self { rounds: [Round::new(start), Round::new(start), Round::new(start)], clocks: [0; 3] }
    }

    pub(crate) fn knows(&self, place: &TopicPartition) -> bool {
        self.rounds[class(place)].knows(place)
    }

    /// Replaces the list of places and marks all of them.
    pub(crate) fn set_places(&mut self, places: Vec<TopicPartition>) {
        for (number, round) in self.rounds.iter_mut().enumerate() {
            round.set_places(places.iter().filter(|place| class(place) == number).cloned().collect());
        }
    }

    pub(crate) fn mark(&mut self, place: TopicPartition) {
        self.rounds[class(&place)].mark(place);
    }

    /// Charges a place's priority for a job that was found there, and marks the place again.
    pub(crate) fn found(&mut self, place: TopicPartition) {
        let given = class(&place);
        self.clocks[given] += STRIDE / Priority::ALL[given].share();
        self.mark(place);
    }

    /// Returns the next marked place and unmarks it.
    pub(crate) fn take(&mut self) -> Option<TopicPartition> {
        let busy = |rounds: &[Round; 3]| (0..3).filter(|n| rounds[*n].is_marked()).collect::<Vec<_>>();
        let marked = busy(&self.rounds);
        let next = *marked.iter().min_by_key(|number| self.clocks[**number])?;
        let now = self.clocks[next];
        for number in (0..3).filter(|number| !marked.contains(number)) {
            self.clocks[number] = self.clocks[number].max(now);
        }
        self.rounds[next].take()
    }
}

fn class(place: &TopicPartition) -> usize {
    match place.1.priority() {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// The places of one priority in order, and which of them to ask.
struct Round {
    places: Vec<TopicPartition>,
    marked: BTreeSet<TopicPartition>,
    /// Where the next search begins; used modulo the number of places.
    cursor: usize,
}

impl Round {
    fn new(start: usize) -> Self {
        Self { places: Vec::new(), marked: BTreeSet::new(), cursor: start }
    }

    fn knows(&self, place: &TopicPartition) -> bool {
        self.places.contains(place)
    }

    fn is_marked(&self) -> bool {
        !self.marked.is_empty()
    }

    fn set_places(&mut self, places: Vec<TopicPartition>) {
        self.marked = places.iter().cloned().collect();
        self.places = places;
    }

    fn mark(&mut self, place: TopicPartition) {
        if self.knows(&place) {
            self.marked.insert(place);
        }
    }

    fn take(&mut self) -> Option<TopicPartition> {
        let count = self.places.len();
        let start = self.cursor;
        let found = (0..count)
            .map(|step| start.wrapping_add(step) % count)
            .find(|at| self.marked.contains(&self.places[*at]))?;
        self.cursor = found + 1;
        self.marked.take(&self.places[found])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places_of(count: u16, priority: Priority) -> Vec<TopicPartition> {
        let topic = TopicName::new("cats").expect("valid");
        (0..count).map(|index| (topic.clone(), PartitionId::new(index, priority))).collect()
    }

    fn places(count: u16) -> Vec<TopicPartition> {
        places_of(count, Priority::Normal)
    }

    fn taken(rounds: &mut Rounds) -> Vec<u16> {
        std::iter::from_fn(|| rounds.take()).map(|place| place.1.index()).collect()
    }

    #[test]
    fn each_marked_place_is_asked_once_from_the_start_of_the_round() {
        let mut rounds = Rounds::new(5);
        rounds.set_places(places(4));
        assert_eq!(taken(&mut rounds), [1, 2, 3, 0]);
        assert_eq!(rounds.take(), None);
        places(4).into_iter().rev().take(2).for_each(|place| rounds.mark(place));
        assert_eq!(taken(&mut rounds), [2, 3]);
    }

    #[test]
    fn a_busy_place_does_not_keep_others_waiting() {
        let mut rounds = Rounds::new(0);
        rounds.set_places(places(3));
        let mut ask = || {
            let place = rounds.take().expect("all are marked");
            rounds.found(place.clone());
            place.1.index()
        };
        let asked: Vec<u16> = (0..6).map(|_| ask()).collect();
        assert_eq!(asked, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_place_that_is_not_known_is_not_asked() {
        let mut rounds = Rounds::new(0);
        rounds.mark(places(1)[0].clone());
        assert_eq!(rounds.take(), None);
    }

    /// How many of the next jobs come from each priority, while those in `busy` always have some.
    fn shares(rounds: &mut Rounds, busy: &[Priority], jobs: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        while counts.iter().sum::<usize>() < jobs {
            let Some(place) = rounds.take() else {
                rounds.set_places(Priority::ALL.iter().flat_map(|p| places_of(2, *p)).collect());
                continue;
            };
            if busy.contains(&place.1.priority()) {
                counts[class(&place)] += 1;
                rounds.found(place);
            }
        }
        counts
    }

    #[test]
    fn priorities_get_their_shares_and_low_is_not_starved() {
        use Priority::{High, Low, Normal};
        let mut rounds = Rounds::new(0);
        assert_eq!(shares(&mut rounds, &Priority::ALL, 1_600), [1_200, 300, 100]);
        assert_eq!(shares(&mut rounds, &[Low], 10), [0, 0, 10], "who is alone gets all");
        // While only low jobs ran, the others saved up no credit; they are marked again now.
        rounds.set_places(Priority::ALL.iter().flat_map(|p| places_of(2, *p)).collect());
        let [high, normal, low] = shares(&mut rounds, &[High, Normal, Low], 160);
        assert!(
            (118..=122).contains(&high) && (28..=32).contains(&normal) && (9..=11).contains(&low),
            "{high} {normal} {low}"
        );
    }
}
