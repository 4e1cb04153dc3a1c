//! Which clients may connect, and what they may do.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use subtle::ConstantTimeEq;

use crate::nats::{covers, is_valid, matches, overlaps};
use crate::stream::go_duration;

/// Requests that a client may still answer, at most; beyond that, some are forgotten.
const RESPONSES_MAX: usize = 4096;
const RESPONSES_COUNT: u32 = 1;
const RESPONSES_FOR: Duration = Duration::from_secs(120);

/// Which clients may connect. With neither token nor users, all may.
#[derive(Clone, Default)]
pub struct Auth {
    /// A client with this token may do everything.
    pub token: Option<String>,
    /// Named users: people and programs.
    pub users: Vec<User>,
}

/// A named user.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
    /// What it may do; everything if unset.
    pub permissions: Option<Permissions>,
}

impl std::fmt::Debug for User {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a user may publish and subscribe to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Permissions {
    /// Subjects to publish to.
    pub publish: Option<Rules>,
    /// Subjects to subscribe to; `subject queue` applies only to that queue group.
    pub subscribe: Option<Rules>,
    /// Lets it also answer requests that it receives.
    pub allow_responses: Option<Responses>,
}

/// Subjects that are allowed, and exceptions to them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Only these; everything if unset.
    pub allow: Option<Vec<String>>,
    /// Not these, even if they are allowed.
    pub deny: Vec<String>,
}

/// How often and for how long a request may be answered.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Responses {
    /// Answers to one request; 1 if unset.
    pub max: Option<u32>,
    /// How long it may be answered, such as `2m`, which is the default.
    pub expires: Option<String>,
}

impl Auth {
    /// Whether clients must authenticate.
    pub(super) fn is_asked(&self) -> bool {
        self.token.is_some() || !self.users.is_empty()
    }

    /// Checks that names, patterns and durations are valid.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut names: Vec<&str> = self.users.iter().map(|user| user.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("user {:?} is configured twice", pair[0]));
        }
        for user in &self.users {
            if user.name.is_empty() || user.password.is_empty() {
                return Err("a user needs a name and a password".into());
            }
            let Some(permissions) = &user.permissions else { continue };
            let rules = permissions.publish.iter().chain(&permissions.subscribe);
            for pattern in rules.flat_map(|rules| rules.allow.iter().flatten().chain(&rules.deny)) {
                if !is_valid(subject_of(pattern).0.as_bytes()) {
                    return Err(format!("user {}: {pattern:?} is not a valid subject", user.name));
                }
            }
            let expires = permissions.allow_responses.as_ref().and_then(|responses| responses.expires.as_deref());
            if let Some(text) = expires.filter(|text| go_duration(text).is_none()) {
                return Err(format!("user {}: {text:?} is not a duration", user.name));
            }
        }
        Ok(())
    }

    /// What a client with these credentials may do; `None` if they are wrong. Takes the same time for every
    /// wrong password.
    pub(super) fn identify(&self, token: &str, name: &str, password: &str) -> Option<Permissions> {
        if !self.is_asked() {
            return Some(Permissions::default());
        }
        let is_same = |one: &str, other: &str| bool::from(one.as_bytes().ct_eq(other.as_bytes()));
        if self.token.as_ref().is_some_and(|known| is_same(known, token)) {
            return Some(Permissions::default());
        }
        let mut found = None;
        for user in &self.users {
            if is_same(&user.name, name) & is_same(&user.password, password) {
                found = Some(user.permissions.clone().unwrap_or_default());
            }
        }
        found
    }
}

/// A pattern's subject, and the queue group that it applies to, if any.
fn subject_of(pattern: &str) -> (&str, Option<&str>) {
    pattern.split_once(' ').map_or((pattern, None), |(subject, queue)| (subject, Some(queue.trim())))
}

impl Permissions {
    /// Whether a message may be published to a subject.
    pub(super) fn may_publish(&self, subject: &[u8]) -> bool {
        let Some(rules) = &self.publish else { return self.allow_responses.is_none() };
        let is_in = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), subject));
        rules.allow.as_deref().is_none_or(is_in) && !is_in(&rules.deny)
    }

    /// Whether a client may subscribe to a subject or pattern.
    pub(super) fn may_subscribe(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let Some(rules) = &self.subscribe else { return true };
        let is_in = |patterns: &[String]| {
            patterns.iter().any(|pattern| {
                let (allowed, group) = subject_of(pattern);
                covers(allowed.as_bytes(), subject) && group.is_none_or(|group| queue == Some(group.as_bytes()))
            })
        };
        rules.allow.as_deref().is_none_or(is_in) && !is_in(&rules.deny)
    }

    /// Whether a message must not be delivered although its subject matches a subscription.
    pub(super) fn hides(&self, subject: &[u8]) -> bool {
        let deny = self.subscribe.iter().flat_map(|rules| &rules.deny);
        // A rule that denies a subject to one queue group does not deny it to all.
        let patterns = deny.map(|pattern| subject_of(pattern)).filter(|(_, queue)| queue.is_none());
        patterns.map(|(pattern, _)| pattern).any(|pattern| overlaps(pattern.as_bytes(), subject))
    }
}

/// Requests that a client has received and may answer.
#[derive(Debug, Default)]
pub(super) struct Asked {
    open: HashMap<Bytes, (u32, Instant)>,
}

impl Asked {
    /// Records a request that the client may answer on `reply`.
    pub(super) fn put(&mut self, responses: &Responses, reply: &[u8], now: Instant) {
        if self.open.len() >= RESPONSES_MAX {
            self.open.retain(|_, (_, until)| *until > now);
        }
        if self.open.len() >= RESPONSES_MAX
            && let Some(any) = self.open.keys().next().cloned()
        {
            self.open.remove(&any);
        }
        let text = responses.expires.as_deref().and_then(go_duration);
        let expires = text.map_or(RESPONSES_FOR, |nanos| Duration::from_nanos(nanos.unsigned_abs()));
        self.open.insert(Bytes::copy_from_slice(reply), (responses.max.unwrap_or(RESPONSES_COUNT), now + expires));
    }

    /// Uses up one answer to `subject`, and returns whether it was allowed.
    pub(super) fn take(&mut self, subject: &[u8], now: Instant) -> bool {
        let Some((left, until)) = self.open.get_mut(subject) else { return false };
        let is_in_time = *left > 0 && *until > now;
        *left = left.saturating_sub(1);
        if *left == 0 || !is_in_time {
            self.open.remove(subject);
        }
        is_in_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str], deny: &[&str]) -> Option<Rules> {
        let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Some(Rules { allow: Some(owned(allow)), deny: owned(deny) })
    }

    #[test]
    fn only_who_says_the_right_words_comes_in() {
        let user = |name: &str| User { name: name.into(), password: format!("pw-{name}"), permissions: None };
        let auth = Auth { token: Some("t".into()), users: vec![user("a"), user("b")] };
        for (token, name, password, is_in) in [
            ("t", "", "", true),
            ("", "a", "pw-a", true),
            ("", "b", "pw-b", true),
            ("", "a", "pw-b", false),
            ("x", "", "", false),
            ("", "", "", false),
        ] {
            assert_eq!(auth.identify(token, name, password).is_some(), is_in, "{token} {name} {password}");
        }
        assert!(Auth::default().identify("", "", "").is_some(), "no client is asked");
        let twice = Auth { token: None, users: vec![user("a"), user("a")] };
        assert!(twice.check().is_err_and(|problem| problem.contains("twice")));
    }

    #[test]
    fn what_is_denied_is_taken_from_what_is_allowed() {
        let permissions = Permissions {
            publish: rules(&["a.>", "b"], &["a.secret"]),
            subscribe: rules(&["a.>", "q.x grp"], &["a.hidden"]),
            allow_responses: None,
        };
        for (subject, may) in [("a.b", true), ("b", true), ("a.secret", false), ("c", false)] {
            assert_eq!(permissions.may_publish(subject.as_bytes()), may, "{subject}");
        }
        for (subject, queue, may) in [
            ("a.b", None, true),
            ("a.*", None, true),
            (">", None, false),
            ("a.hidden", None, false),
            ("q.x", None, false),
            ("q.x", Some("grp"), true),
            ("q.x", Some("other"), false),
        ] {
            let found = permissions.may_subscribe(subject.as_bytes(), queue.map(str::as_bytes));
            assert_eq!(found, may, "{subject} {queue:?}");
        }
        assert!(permissions.hides(b"a.hidden") && !permissions.hides(b"a.b"));
    }

    #[test]
    fn a_question_may_be_answered_so_often_and_for_so_long() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        asked.put(&Responses { max: Some(2), expires: Some("1s".into()) }, b"r", now);
        assert!(!asked.take(b"other", now) && asked.take(b"r", now) && asked.take(b"r", now) && !asked.take(b"r", now));
        asked.put(&Responses::default(), b"r", now);
        assert!(!asked.take(b"r", now + RESPONSES_FOR));
        // However many requests it has answered, it may answer the next one.
        for number in 0..2 * RESPONSES_MAX {
            let reply = number.to_string();
            asked.put(&Responses::default(), reply.as_bytes(), now);
            assert!(asked.take(reply.as_bytes(), now), "question {number}");
        }
        let only_answers = Permissions { allow_responses: Some(Responses::default()), ..Permissions::default() };
        assert!(!only_answers.may_publish(b"r"));
    }
}
