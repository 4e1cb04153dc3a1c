//! The consumer part of the JetStream API.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer;
use super::core::Core;
use super::request::{Answer, LIST_PAGE, NAMES_PAGE, PageRequest, Request, page};
use crate::journal::Change;
use crate::nats::status;
use crate::stream::{ConsumerConfig, Now, Refusal, config, unix_nanos};

/// Runs an operation on the names that follow it. Returns the kind of answer, and the answer.
pub(super) fn operate(
    core: &mut Core,
    operation: &str,
    names: &[&str],
    request: &Request<'_>,
) -> Option<(&'static str, Answer)> {
    Some(match (operation, names) {
        ("CREATE", [stream]) => ("consumer_create", create(core, stream, NamedBy::Nowhere, None, request)),
        ("CREATE", [stream, name]) => ("consumer_create", create(core, stream, NamedBy::Here(name), None, request)),
        ("DURABLE", ["CREATE", stream, name]) => {
            ("consumer_create", create(core, stream, NamedBy::Durable(name), None, request))
        }
        ("CREATE", [stream, name, filter @ ..]) => {
            ("consumer_create", create(core, stream, NamedBy::Here(name), Some(filter.join(".")), request))
        }
        ("INFO", [stream, name]) => {
            ("consumer_info", request.must_be_empty().and_then(|()| info(core, stream, name, request.now)))
        }
        ("NAMES", [stream]) => ("consumer_names", list_names(core, stream, request)),
        ("LIST", [stream]) => ("consumer_list", list(core, stream, request)),
        ("DELETE", [stream, name]) => {
            ("consumer_delete", request.must_be_empty().and_then(|()| delete(core, stream, name, request.now)))
        }
        ("PAUSE", [stream, name]) => ("consumer_pause", pause(core, stream, name, request)),
        ("UNPIN", [stream, name]) => ("consumer_unpin", unpin(core, stream, name, request)),
        // If the consumer does not exist, nats-server does not answer; here the client gets "no responders" at once.
        ("RESET", [stream, name]) if core.stream(stream).is_some_and(|stream| stream.consumer(name).is_some()) => {
            ("consumer_reset", reset(core, stream, name, request))
        }
        ("LEADER", _) => ("consumer_leader_stepdown", Err(Refusal::not_clustered())),
        _ => return None,
    })
}

/// Where a new consumer's name comes from.
#[derive(Debug, Clone, Copy)]
enum NamedBy<'a> {
    /// From the body; without one, the server generates it.
    Nowhere,
    Here(&'a str),
    /// The consumer must be durable.
    Durable(&'a str),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CreateRequest {
    stream_name: String,
    config: ConsumerConfig,
    action: Option<String>,
    pedantic: Option<bool>,
}

fn create(
    core: &mut Core,
    stream_name: &str,
    named: NamedBy<'_>,
    filter: Option<String>,
    request: &Request<'_>,
) -> Answer {
    let stream = core.stream(stream_name).ok_or_else(Refusal::stream_not_found)?;
    let asked: CreateRequest = config::read(request.body)?;
    if asked.stream_name != stream_name {
        return Err(Refusal::name_mismatch());
    }
    let mut config = asked.config;
    if config.pause_until.as_deref().is_some_and(|text| unix_nanos(text).is_none()) {
        return Err(Refusal::invalid_json("pause_until is not a time"));
    }
    let durable = config.durable_name.as_deref().filter(|name| !name.is_empty());
    match (named, durable) {
        (NamedBy::Nowhere, Some(_)) => return Err(Refusal::durable_unexpected()),
        (NamedBy::Durable(_), None) => return Err(Refusal::durable_missing()),
        (NamedBy::Here(name) | NamedBy::Durable(name), Some(durable)) if name != durable => {
            return Err(Refusal::durable_not_in_subject());
        }
        (NamedBy::Here(name) | NamedBy::Durable(name), _) => config.name = Some(name.to_owned()),
        (NamedBy::Nowhere, None) => {}
    }
    if filter.is_some_and(|filter| filter != config.filter_subject) {
        return Err(Refusal::consumer_filter_mismatch());
    }
    let mut config = config.checked(&stream.config)?;
    let name = config.name.get_or_insert_with(random_name).clone();
    let action = asked.action.as_deref().unwrap_or_default();
    let mut is_new = false;
    let found = stream.consumer(&name);
    if let Some(found) = found.filter(|_| config.pause_until.is_none()) {
        // Recreated by a client that does not know about the pause.
        config.pause_until.clone_from(&found.config.pause_until);
    }
    let (id, created, start, resume) = match found {
        Some(found) if found.config == config => (found.id, found.created, 0, 0),
        Some(_) if action == "create" => return Err(Refusal::consumer_exists()),
        Some(found) => {
            config.check_update(&found.config)?;
            stream.check_share(&config, Some(found.id))?;
            if found.config.deliver_subject != config.deliver_subject && core.is_bound(stream.id, found.id) {
                return Err(Refusal::consumer_in_use());
            }
            (found.id, found.created, 0, 0)
        }
        None if action == "update" => return Err(Refusal::consumer_missing()),
        None => {
            is_new = true;
            let (id, start) = stream.admit_consumer(&config)?;
            (id, request.now.wall, start.cursor, start.resume)
        }
    };
    let stream_id = stream.id;
    put(core, (stream_id, id), (created, start, resume), &config, request.now)?;
    if is_new {
        core.advise_consumer(stream_name, &name, ("CREATED", "create"), request.now);
        core.begin_to_beat(stream_id, id, request.now);
    }
    core.remove_all_unneeded(stream_id, request.now);
    core.serve(stream_id, id, request.now);
    core.schedule(stream_id, id, request.now);
    info(core, stream_name, &name, request.now)
}

/// Creates or updates a consumer. One that ends with the process is not written to the journal.
fn put(
    core: &mut Core,
    (stream, consumer): (u32, u32),
    (created, start, resume): (i64, u64, u64),
    config: &ConsumerConfig,
    now: Now,
) -> Result<(), Refusal> {
    let json = serde_json::to_vec(config).expect("a configuration holds strings and numbers only");
    let change = Change::ConsumerPut { stream, consumer, created, start, resume, config: &json };
    if config.durable_name.is_none() {
        core.apply(&change, None, now);
        return Ok(());
    }
    core.change(&change, true, now).map_err(|_| Refusal::no_room())
}

fn random_name() -> String {
    let name = uuid::Uuid::new_v4().simple().to_string();
    name.chars().take(8).collect()
}

fn info(core: &Core, stream: &str, name: &str, now: Now) -> Answer {
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let consumer = stream.consumer(name).ok_or_else(Refusal::consumer_not_found)?;
    Ok(Value::Object(answer::consumer(stream, consumer, core.is_bound(stream.id, consumer.id), now)))
}

fn list_names(core: &Core, stream: &str, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let names = stream.consumers().skip(asked.offset).take(NAMES_PAGE).map(|consumer| consumer.name.clone().into());
    Ok(page(stream.consumers().count(), asked.offset, NAMES_PAGE, "consumers", names.collect()))
}

fn list(core: &Core, stream: &str, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let found = stream.consumers().skip(asked.offset).take(LIST_PAGE);
    let infos = found.map(|consumer| {
        Value::Object(answer::consumer(stream, consumer, core.is_bound(stream.id, consumer.id), request.now))
    });
    Ok(page(stream.consumers().count(), asked.offset, LIST_PAGE, "consumers", infos.collect()))
}

/// Ids of a stream and of its consumer, by their names.
fn ids(core: &Core, stream: &str, name: &str) -> Result<(u32, u32), Refusal> {
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let consumer = stream.consumer(name).ok_or_else(Refusal::consumer_not_found)?;
    Ok((stream.id, consumer.id))
}

fn delete(core: &mut Core, stream: &str, name: &str, now: Now) -> Answer {
    let ids = ids(core, stream, name)?;
    remove(core, ids, now)?;
    Ok(json!({"success": true}))
}

/// Deletes a consumer, ends its waiting requests, and removes messages that were kept only for it.
pub(super) fn remove(core: &mut Core, (stream, consumer): (u32, u32), now: Now) -> Result<(), Refusal> {
    let Some(found) = core.streams.get(&stream) else { return Ok(()) };
    let stream_name = found.config.name.clone();
    let Some(name) = found.consumer_of(consumer).map(|consumer| consumer.name.clone()) else { return Ok(()) };
    end_requests(core, &stream_name, &name, "409 Consumer Deleted");
    core.change(&Change::ConsumerDeleted { stream, consumer }, true, now).map_err(|_| Refusal::no_room())?;
    core.remove_all_unneeded(stream, now);
    core.advise_consumer(&stream_name, &name, ("DELETED", "delete"), now);
    Ok(())
}

/// Ends all waiting requests of a consumer with a status.
pub(super) fn end_requests(core: &mut Core, stream: &str, name: &str, line: &str) {
    let found = core.id_of(stream).and_then(|id| core.streams.get_mut(&id)?.consumer_mut(name));
    let waiting = found.map(|consumer| std::mem::take(&mut consumer.waiting)).unwrap_or_default();
    for request in waiting {
        core.tell(&request.reply, &status(line, &[]), &bytes::Bytes::new());
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PauseRequest {
    pause_until: Option<String>,
}

fn pause(core: &mut Core, stream: &str, name: &str, request: &Request<'_>) -> Answer {
    let asked: PauseRequest = request.read()?;
    let until = match asked.pause_until.as_deref().filter(|text| !text.starts_with("0001-01-01")) {
        None => None,
        Some(text) => {
            let nanos = unix_nanos(text).ok_or_else(|| Refusal::invalid_json(&format!("parsing time {text:?}")))?;
            Some(answer::rfc3339(nanos))
        }
    };
    let ids = ids(core, stream, name)?;
    let Some(consumer) = core.consumer(ids.0, ids.1) else { return Err(Refusal::consumer_not_found()) };
    let (created, mut config) = (consumer.created, consumer.config.clone());
    let was_paused = config.paused_until() > request.now.wall;
    config.pause_until.clone_from(&until);
    put(core, ids, (created, 0, 0), &config, request.now)?;
    core.serve(ids.0, ids.1, request.now);
    core.schedule(ids.0, ids.1, request.now);
    let left = config.paused_until().saturating_sub(request.now.wall);
    let mut answer = json!({"paused": left > 0, "pause_until": until.unwrap_or_else(|| answer::rfc3339(0))});
    if left > 0 {
        answer["pause_remaining"] = left.into();
    }
    if left > 0 || was_paused {
        core.advise_pause(stream, name, &answer, request.now);
    }
    Ok(answer)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UnpinRequest {
    group: String,
}

fn unpin(core: &mut Core, stream: &str, name: &str, request: &Request<'_>) -> Answer {
    let asked: UnpinRequest = config::read(request.body)?;
    if asked.group.is_empty() {
        return Err(Refusal::invalid_json("consumer group not specified"));
    }
    let ids = ids(core, stream, name)?;
    let Some(consumer) = core.consumer(ids.0, ids.1) else { return Err(Refusal::consumer_not_found()) };
    if !consumer.config.priority_groups.contains(&asked.group) {
        return Err(Refusal::group_unknown());
    }
    consumer.pin = None;
    core.advise_pin(ids.0, ids.1, "UNPINNED", ("reason", "admin"), request.now);
    core.serve(ids.0, ids.1, request.now);
    Ok(json!({}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResetRequest {
    seq: u64,
}

fn reset(core: &mut Core, stream: &str, name: &str, request: &Request<'_>) -> Answer {
    let asked: ResetRequest = request.read()?;
    let (stream_id, consumer) = ids(core, stream, name)?;
    let Some(found) = core.consumer(stream_id, consumer) else { return Err(Refusal::consumer_not_found()) };
    let start = if asked.seq == 0 { found.ack_floor().1 + 1 } else { asked.seq };
    if asked.seq > 0 {
        found.config.check_reset(asked.seq)?;
    }
    let change = Change::ConsumerReset { stream: stream_id, consumer, start };
    core.change(&change, true, request.now).map_err(|_| Refusal::no_room())?;
    core.remove_all_unneeded(stream_id, request.now);
    core.serve(stream_id, consumer, request.now);
    core.schedule(stream_id, consumer, request.now);
    let mut answer = info(core, stream, name, request.now)?;
    answer["reset_seq"] = start.into();
    Ok(answer)
}
