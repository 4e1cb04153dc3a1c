use super::*;

fn member(id: &str, succeeded: u64) -> Announcement {
    let mut totals = Totals::default();
    (0..succeeded).for_each(|_| totals.count("cats", "succeeded"));
    Announcement { id: id.into(), totals, ..Announcement::new(Role::Worker, &["cats".into()]) }
}

fn ids(table: &Table) -> Vec<&str> {
    table.members().map(|member| member.id.as_str()).collect()
}

#[test]
fn silence_makes_a_member_go_but_not_its_counters() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut table = Table::default();
    table.hear(member("a", 2), after(0));
    table.hear(member("b", 5), after(3));
    table.hear(member("b", 7), after(4));
    table.expire(after(5));
    assert_eq!(ids(&table), ["b"]);
    assert_eq!(table.totals().outcomes["cats"]["succeeded"], 9, "2 of the departed, 7 of the present");
    table.hear(member("a", 3), after(6));
    assert_eq!((table.members().count(), table.totals().outcomes["cats"]["succeeded"]), (2, 10));
}

#[test]
fn a_good_bye_counts_at_once_and_what_comes_late_changes_nothing() {
    let now = Instant::now();
    let mut table = Table::default();
    table.hear(Announcement { beat: 8, ..member("a", 4) }, now);
    table.hear(Announcement { beat: 7, ..member("a", 3) }, now);
    assert_eq!(table.totals().outcomes["cats"]["succeeded"], 4);
    table.hear(Announcement { state: MemberState::Gone, ..member("a", 0) }, now);
    table.hear(Announcement { beat: 9, ..member("a", 5) }, now);
    assert_eq!((ids(&table), table.totals().outcomes["cats"]["succeeded"]), (vec![], 4));
}

/// A thousand members on a simulated clock and network: they join, leave with or without a goodbye,
/// and are paused, ten thousand times in all; announcements are late by up to 0.9 s, overtake each
/// other, and one in a hundred is lost.
#[test]
fn the_table_is_right_within_six_seconds_of_whatever_happens() {
    const MEMBERS: usize = 1_000;
    const CHANGES: usize = 10_000;
    const STEP_MS: u64 = 100;
    let mut state = 0x5EED_u64;
    let mut random = move |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    // For each place: the life of its process, whether that runs, and since when.
    let mut lives: Vec<(u64, bool, u64)> = (0..MEMBERS).map(|_| (0, false, 0)).collect();
    let mut mail: BTreeMap<(u64, u64), Announcement> = BTreeMap::new();
    let (mut letters, mut changes, mut now) = (0_u64, 0, 0);
    let mut table = Table::default();
    let template = member("", 0);
    while changes < CHANGES || now < lives.iter().map(|life| life.2).max().unwrap_or(0) + 7_000 {
        now += STEP_MS;
        for _ in 0..random(6).min((CHANGES - changes) as u64) {
            let place = random(MEMBERS as u64) as usize;
            let (life, is_there, since) = &mut lives[place];
            changes += 1;
            if *is_there && random(2) == 0 {
                letters += 1;
                let (id, state) = (format!("{place}-{life}"), MemberState::Gone);
                mail.insert((now + random(900), letters), Announcement { id, state, ..template.clone() });
            }
            // A process that was only paused comes back as itself; otherwise a new one takes its place.
            if !*is_there && random(3) > 0 {
                *life += 1;
            } else if *is_there {
                // A process that has announced its end does not come back.
                *life +=
                    u64::from(mail.values().any(|m| m.state == MemberState::Gone && m.id == format!("{place}-{life}")));
            }
            (*is_there, *since) = (!*is_there, now);
        }
        for (place, (life, is_there, since)) in lives.iter().enumerate() {
            if *is_there && (now - since) % 1_000 == 0 && random(100) > 0 {
                letters += 1;
                let announcement = Announcement { id: format!("{place}-{life}"), beat: now, ..template.clone() };
                mail.insert((now + random(900), letters), announcement);
            }
        }
        while let Some(entry) = mail.first_entry().filter(|entry| entry.key().0 <= now) {
            table.hear(entry.remove(), at(now));
        }
        table.expire(at(now));
        if now % 1_000 != 0 {
            continue;
        }
        let known: std::collections::BTreeSet<&str> = table.members().map(|member| member.id.as_str()).collect();
        for (place, (life, is_there, since)) in lives.iter().enumerate().filter(|(_, life)| now - life.2 >= 6_000) {
            let id = format!("{place}-{life}");
            assert_eq!(known.contains(id.as_str()), *is_there, "member {id} at {now} ms, unchanged since {since}");
        }
        assert!(known.len() <= MEMBERS * 2, "departed members are forgotten");
    }
}
