//! The JetStream API: dispatches requests, and creates, shows, updates and deletes streams.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{self, API_LEVEL, object};
use super::consumers;
use super::core::Core;
use super::request::{Answer, LIST_PAGE, NAMES_PAGE, PageRequest, Request, page};
use crate::journal::Change;
use crate::nats::{Publication, matches, overlaps, status};
use crate::stream::config;
use crate::stream::{Found, Now, Refusal, StreamConfig};

const SUBJECTS_PAGE: usize = 100_000;
/// The header with which a client requires an API level.
const LEVEL_HEADER: &str = "Nats-Required-Api-Level";

/// Handles a request to `$JS.API.<operation>`. `false`: the operation is unknown, or its stream or
/// consumer does not exist; the client gets "no responders".
pub(super) fn request(core: &mut Core, client: &str, operation: &[u8], publication: &Publication, now: Now) -> bool {
    let Ok(operation) = std::str::from_utf8(operation) else { return false };
    let tokens: Vec<&str> = operation.split('.').collect();
    let (body, reply) = (&publication.payload[..], publication.reply.as_ref());
    let header = crate::nats::HeaderBlock(&publication.header);
    let level = header.get(LEVEL_HEADER).and_then(|level| level.parse::<u64>().ok()).unwrap_or(0);
    match tokens[..] {
        ["CONSUMER", "MSG", "NEXT", ..] | ["DIRECT", "GET", ..] if level > API_LEVEL => {
            if let Some(reply) = reply {
                core.tell(reply, &status("412 Required Api Level", &[]), &Bytes::new());
            }
            return true;
        }
        // The two that answer with messages come first, because a busy broker mostly handles these.
        ["CONSUMER", "MSG", "NEXT", stream, consumer] => return core.pull(stream, consumer, reply, body, now),
        ["DIRECT", "GET", stream, ..] => {
            let Some(reply) = reply else { return true };
            let subject = operation.splitn(4, '.').nth(3);
            return core.direct_get(stream, subject, reply, body);
        }
        _ => {}
    }
    let request = Request { body, now };
    let operated =
        if level > API_LEVEL { Some(("error", Err(Refusal::level()))) } else { operate(core, &tokens, &request) };
    let Some((kind, result)) = operated else { return false };
    core.api_requests += 1;
    core.api_errors += u64::from(result.is_err());
    let mut fields = Map::from_iter([("type".to_owned(), format!("io.nats.jetstream.api.v1.{kind}_response").into())]);
    match result {
        Ok(value) => fields.extend(object(value)),
        Err(refusal) => drop(fields.insert("error".into(), answer::error(&refusal))),
    }
    let text = Value::Object(fields).to_string();
    core.audit(client, &publication.subject, body, &text, now);
    if let Some(reply) = reply {
        core.tell(reply, &[], &Bytes::from(text));
    }
    true
}

/// Runs the operation that the tokens name. Returns the kind of answer, and the answer.
fn operate(core: &mut Core, tokens: &[&str], request: &Request<'_>) -> Option<(&'static str, Answer)> {
    Some(match *tokens {
        ["INFO"] => ("account_info", Ok(account(core))),
        ["STREAM", "CREATE", name] => ("stream_create", create_stream(core, name, request)),
        ["STREAM", "UPDATE", name] => ("stream_update", update_stream(core, name, request)),
        ["STREAM", "INFO", name] => ("stream_info", stream_info(core, name, request)),
        ["STREAM", "NAMES"] => ("stream_names", stream_names(core, request)),
        ["STREAM", "LIST"] => ("stream_list", stream_list(core, request)),
        ["STREAM", "DELETE", name] => ("stream_delete", delete_stream(core, name, request)),
        ["STREAM", "PURGE", name] => ("stream_purge", purge(core, name, request)),
        ["STREAM", "MSG", "GET", name] => ("stream_msg_get", core.message_get(name, request.body)),
        ["STREAM", "MSG", "DELETE", name] => ("stream_msg_delete", delete_message(core, name, request)),
        ["CONSUMER", operation, ref names @ ..] => return consumers::operate(core, operation, names, request),
        ["STREAM", "PEER" | "LEADER", ..] => ("stream_leader_stepdown", Err(Refusal::not_clustered())),
        ["META", "LEADER", ..] => ("meta_leader_stepdown", Err(Refusal::not_clustered())),
        _ => return None,
    })
}

fn account(core: &Core) -> Value {
    let consumers: usize = core.streams.values().map(|stream| stream.consumers().count()).sum();
    let storage: u64 = core.streams.values().map(|stream| stream.messages.bytes()).sum();
    json!({
        "memory": 0, "storage": storage, "reserved_memory": 0, "reserved_storage": 0,
        "streams": core.streams.len(), "consumers": consumers,
        "limits": {
            "max_memory": -1, "max_storage": -1, "max_streams": -1, "max_consumers": -1, "max_ack_pending": -1,
            "memory_max_stream_bytes": -1, "storage_max_stream_bytes": -1, "max_bytes_required": false,
        },
        "api": {"level": API_LEVEL, "total": core.api_requests, "errors": core.api_errors},
    })
}

fn read_stream_config(name: &str, request: &Request<'_>) -> Result<StreamConfig, Refusal> {
    let config: StreamConfig = config::read(request.body)?;
    if config.name != name {
        return Err(Refusal::name_mismatch());
    }
    config.checked()
}

fn check_overlap(core: &Core, config: &StreamConfig) -> Result<(), Refusal> {
    let others = core.streams.values().filter(|stream| stream.config.name != config.name);
    let meets = |other: &String| config.subjects.iter().any(|own| overlaps(own.as_bytes(), other.as_bytes()));
    if others.flat_map(|stream| &stream.config.subjects).any(meets) { Err(Refusal::overlap()) } else { Ok(()) }
}

fn put_stream(core: &mut Core, id: u32, created: i64, config: &StreamConfig, now: Now) -> Result<(), Refusal> {
    let json = serde_json::to_vec(config).expect("a configuration holds strings and numbers only");
    let change = Change::StreamPut { stream: id, created, config: &json };
    core.change(&change, true, now).map_err(|_| Refusal::no_room())?;
    core.schedule(id, 0, now);
    Ok(())
}

fn create_stream(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    let config = read_stream_config(name, request)?;
    if let Some(stream) = core.stream(name) {
        if stream.config != config {
            return Err(Refusal::name_in_use());
        }
        // Otherwise another client could learn of it before it is durable.
        core.journal.require_sync();
    } else {
        if config.sealed {
            return Err(Refusal::invalid_stream("stream configuration for create can not be sealed".into()));
        }
        check_overlap(core, &config)?;
        put_stream(core, core.new_stream_id(), request.now.wall, &config, request.now)?;
        core.advise_stream(name, ("CREATED", "create"), request.now);
    }
    let mut answer = answer::stream(core.stream(name).ok_or_else(Refusal::stream_not_found)?, request.now);
    answer.insert("did_create".into(), true.into());
    Ok(Value::Object(answer))
}

fn update_stream(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    let config = read_stream_config(name, request)?;
    let old = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    config.check_update(&old.config)?;
    let (id, created) = (old.id, old.created);
    check_overlap(core, &config)?;
    put_stream(core, id, created, &config, request.now)?;
    // Lowered limits apply at once, and so does a change to interest retention.
    let stream = &core.streams[&id];
    let mut gone = stream.over_limits();
    gone.extend(stream.unneeded(stream.messages.from(0).map(Found::sequence)));
    remove(core, id, &gone, request.now)?;
    core.advise_stream(name, ("UPDATED", "modify"), request.now);
    Ok(Value::Object(answer::stream(&core.streams[&id], request.now)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InfoRequest {
    offset: usize,
    subjects_filter: Option<String>,
    deleted_details: bool,
}

fn stream_info(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    let asked: InfoRequest = request.read()?;
    let stream = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    let mut answer = answer::stream(stream, request.now);
    let (mut total, mut limit) = (0, 0);
    if let Some(filter) = asked.subjects_filter.as_ref().filter(|filter| !filter.is_empty()) {
        let counts = stream.messages.counts().filter(|(s, _)| matches(filter.as_bytes(), s.as_bytes()));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_unstable();
        (total, limit) = (counts.len(), SUBJECTS_PAGE);
        let page = counts.into_iter().skip(asked.offset).take(SUBJECTS_PAGE);
        let page: Map<String, Value> = page.map(|(subject, count)| (subject.to_string(), count.into())).collect();
        if total == 0 {
            // As if the request had no filter.
            limit = 0;
        } else {
            answer["state"]["subjects"] = Value::Object(page);
        }
    }
    if asked.deleted_details {
        let present: std::collections::BTreeSet<u64> = stream.messages.from(0).map(Found::sequence).collect();
        let first = present.first().copied().unwrap_or(stream.last + 1);
        let gaps = (first..=stream.last).filter(|sequence| !present.contains(sequence));
        let deleted: Vec<u64> = gaps.take(SUBJECTS_PAGE).collect();
        if !deleted.is_empty() {
            answer["state"]["deleted"] = deleted.into();
        }
    }
    answer.insert("total".into(), total.into());
    answer.insert("offset".into(), asked.offset.min(total).into());
    answer.insert("limit".into(), limit.into());
    Ok(Value::Object(answer))
}

/// Streams whose subjects overlap the subject asked for; all streams if none is.
fn asked_streams<'a>(core: &'a Core, asked: &PageRequest) -> Vec<&'a crate::stream::Stream> {
    let wanted = |config: &StreamConfig| {
        let filter = asked.subject.as_deref().filter(|subject| !subject.is_empty());
        filter.is_none_or(|filter| config.subjects.iter().any(|own| overlaps(own.as_bytes(), filter.as_bytes())))
    };
    core.by_name().filter(|stream| wanted(&stream.config)).collect()
}

fn stream_names(core: &Core, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let streams = asked_streams(core, &asked);
    let names = streams.iter().skip(asked.offset).take(NAMES_PAGE).map(|stream| stream.config.name.clone().into());
    let mut page = page(streams.len(), asked.offset, NAMES_PAGE, "streams", names.collect());
    // Only this list is null when empty on nats-server, and clients expect that.
    if page["streams"] == json!([]) {
        page["streams"] = Value::Null;
    }
    Ok(page)
}

fn stream_list(core: &Core, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let streams = asked_streams(core, &asked);
    let infos = streams.iter().skip(asked.offset).take(LIST_PAGE);
    let infos = infos.map(|stream| Value::Object(answer::stream(stream, request.now))).collect();
    Ok(page(streams.len(), asked.offset, LIST_PAGE, "streams", infos))
}

fn delete_stream(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    request.must_be_empty()?;
    let stream = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    let (id, consumers) = (stream.id, stream.consumers().map(|consumer| consumer.name.clone()).collect::<Vec<_>>());
    for consumer in consumers {
        consumers::end_requests(core, name, &consumer, "409 Consumer Deleted");
    }
    let change = Change::StreamDeleted { stream: id };
    core.change(&change, true, request.now).map_err(|_| Refusal::no_room())?;
    core.advise_stream(name, ("DELETED", "delete"), request.now);
    Ok(json!({"success": true}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PurgeRequest {
    filter: Option<String>,
    seq: Option<u64>,
    keep: Option<u64>,
}

fn purge(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    let asked: PurgeRequest = request.read()?;
    let stream = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    let (before, keep) = (asked.seq.filter(|n| *n > 0), asked.keep.filter(|n| *n > 0));
    if before.is_some() && keep.is_some() {
        return Err(Refusal::bad_request());
    }
    if stream.config.sealed {
        return Err(Refusal::sealed());
    }
    if stream.config.deny_purge {
        return Err(Refusal::purge_denied());
    }
    let filter = asked.filter.as_deref().filter(|filter| !filter.is_empty());
    let (id, ranges, held) = (stream.id, stream.purged(filter, before, keep), stream.messages.len());
    remove(core, id, &ranges, request.now)?;
    core.journal.require_sync();
    Ok(json!({"success": true, "purged": held - core.streams[&id].messages.len()}))
}

/// Removes ranges of messages, durably.
pub(super) fn remove(core: &mut Core, id: u32, ranges: &[(u64, u64)], now: Now) -> Result<(), Refusal> {
    for (from, to) in ranges {
        let change = Change::Removed { stream: id, from: *from, to: *to };
        core.change(&change, true, now).map_err(|_| Refusal::no_room())?;
    }
    core.serve_all(id, now);
    Ok(())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DeleteRequest {
    seq: u64,
    /// Messages are never overwritten: their bytes are deleted with their segment.
    #[serde(rename = "no_erase")]
    _no_erase: bool,
}

fn delete_message(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    if matches!(request.body.trim_ascii(), b"" | b"{}") {
        return Err(Refusal::bad_request());
    }
    let asked: DeleteRequest = request.read()?;
    let stream = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    if stream.config.sealed {
        return Err(Refusal::sealed());
    }
    if stream.config.deny_delete {
        return Err(Refusal::delete_denied());
    }
    if stream.messages.get(asked.seq).is_none() {
        return Err(Refusal::nothing_to_delete());
    }
    remove(core, stream.id, &[(asked.seq, asked.seq)], request.now)?;
    Ok(json!({"success": true}))
}
