//! The JetStream API: streams and consumers are made, shown, changed and removed.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{self, object};
use super::core::Core;
use crate::journal::Change;
use crate::nats::{Publication, matches, overlaps, status};
use crate::stream::config;
use crate::stream::{ConsumerConfig, Now, Refusal, StreamConfig};

/// How many entries a page has.
const NAMES_PAGE: usize = 1024;
const LIST_PAGE: usize = 256;
const SUBJECTS_PAGE: usize = 100_000;
/// The API level that is offered, and the header by which a client asks for one.
const API_LEVEL: u64 = 1;
const LEVEL_HEADER: &str = "Nats-Required-Api-Level";

type Answer = Result<Value, Refusal>;

/// A request, taken apart.
struct Request<'a> {
    body: &'a [u8],
    now: Now,
}

impl<'a> Request<'a> {
    /// The body; nothing, `null` and `[]` are as if it were `{}`.
    fn read<T: Deserialize<'a> + Default>(&self) -> Result<T, Refusal> {
        match self.body.trim_ascii() {
            b"" | b"null" | b"[]" => Ok(T::default()),
            body => config::read(body),
        }
    }
}

/// Carries out a request to `$JS.API.<operation>`. `false`: there is no such operation, stream or
/// consumer behind it, which the client hears as "no responders".
pub(super) fn request(core: &mut Core, operation: &[u8], publication: &Publication, now: Now) -> bool {
    let Ok(operation) = std::str::from_utf8(operation) else { return false };
    let tokens: Vec<&str> = operation.split('.').collect();
    let (body, reply) = (&publication.payload[..], publication.reply.as_ref());
    match tokens[..] {
        // The two that answer with messages come first; they are what a busy broker does.
        ["CONSUMER", "MSG", "NEXT", stream, consumer] => return core.pull(stream, consumer, reply, body, now),
        ["DIRECT", "GET", stream, ..] => {
            let Some(reply) = reply else { return true };
            let subject = operation.splitn(4, '.').nth(3);
            return core.direct_get(stream, subject, reply, body);
        }
        _ => {}
    }
    let header = crate::nats::HeaderBlock(&publication.header);
    let level = header.get(LEVEL_HEADER).and_then(|level| level.parse::<u64>().ok()).unwrap_or(0);
    let request = Request { body, now };
    let operated =
        if level > API_LEVEL { Some(("error", Err(Refusal::level()))) } else { operate(core, &tokens, &request) };
    let Some((kind, result)) = operated else { return false };
    core.api_requests += 1;
    core.api_errors += u64::from(result.is_err());
    if let Some(reply) = reply {
        let mut fields =
            Map::from_iter([("type".to_owned(), format!("io.nats.jetstream.api.v1.{kind}_response").into())]);
        match result {
            Ok(value) => fields.extend(object(value)),
            Err(refusal) => drop(fields.insert("error".into(), answer::error(&refusal))),
        }
        core.tell(reply, &[], &Bytes::from(Value::Object(fields).to_string()));
    }
    true
}

/// What the tokens ask for: the kind of answer, and the answer.
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
        ["CONSUMER", "CREATE", stream] => ("consumer_create", create_consumer(core, stream, None, None, request)),
        ["CONSUMER", "CREATE", stream, name] | ["CONSUMER", "DURABLE", "CREATE", stream, name] => {
            ("consumer_create", create_consumer(core, stream, Some(name), None, request))
        }
        ["CONSUMER", "CREATE", stream, name, ref filter @ ..] => {
            ("consumer_create", create_consumer(core, stream, Some(name), Some(filter.join(".")), request))
        }
        ["CONSUMER", "INFO", stream, name] => ("consumer_info", consumer_info(core, stream, name, request.now)),
        ["CONSUMER", "NAMES", stream] => ("consumer_names", consumer_names(core, stream, request)),
        ["CONSUMER", "LIST", stream] => ("consumer_list", consumer_list(core, stream, request)),
        ["CONSUMER", "DELETE", stream, name] => ("consumer_delete", delete_consumer(core, stream, name, request.now)),
        ["STREAM", "PEER" | "LEADER", ..] => ("stream_leader_stepdown", Err(Refusal::not_clustered())),
        ["CONSUMER", "LEADER", ..] => ("consumer_leader_stepdown", Err(Refusal::not_clustered())),
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
        // Somebody else may be told of it before it is durable otherwise.
        core.journal.require_sync();
    } else {
        check_overlap(core, &config)?;
        put_stream(core, core.new_stream_id(), request.now.wall, &config, request.now)?;
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
    // Lowered limits hold at once.
    let evicted = core.streams[&id].over_limits();
    remove(core, id, &evicted, request.now)?;
    Ok(Value::Object(answer::stream(&core.streams[&id], request.now)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
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
    if let Some(filter) = &asked.subjects_filter {
        let counts = stream.messages.counts().filter(|(s, _)| matches(filter.as_bytes(), s.as_bytes()));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_unstable();
        (total, limit) = (counts.len(), SUBJECTS_PAGE);
        let page = counts.into_iter().skip(asked.offset).take(SUBJECTS_PAGE);
        let page: Map<String, Value> = page.map(|(subject, count)| (subject.to_string(), count.into())).collect();
        answer["state"]["subjects"] = Value::Object(page);
    }
    if asked.deleted_details {
        let present: std::collections::BTreeSet<u64> = stream.messages.from(0).map(|(sequence, _)| sequence).collect();
        let first = present.first().copied().unwrap_or(stream.last + 1);
        let gaps = (first..=stream.last).filter(|sequence| !present.contains(sequence));
        let deleted: Vec<u64> = gaps.take(SUBJECTS_PAGE).collect();
        answer["state"]["deleted"] = deleted.into();
    }
    answer.insert("total".into(), total.into());
    answer.insert("offset".into(), asked.offset.into());
    answer.insert("limit".into(), limit.into());
    Ok(Value::Object(answer))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PageRequest {
    offset: usize,
    subject: Option<String>,
}

/// Streams that have to do with the subject that is asked for, if one is.
fn asked_streams<'a>(core: &'a Core, asked: &PageRequest) -> Vec<&'a crate::stream::Stream> {
    let wanted = |config: &StreamConfig| {
        let filter = asked.subject.as_deref().filter(|subject| !subject.is_empty());
        filter.is_none_or(|filter| config.subjects.iter().any(|own| overlaps(own.as_bytes(), filter.as_bytes())))
    };
    core.by_name().filter(|stream| wanted(&stream.config)).collect()
}

fn page(total: usize, offset: usize, limit: usize, name: &str, entries: Vec<Value>) -> Value {
    let entries = if entries.is_empty() { Value::Null } else { entries.into() };
    json!({"total": total, "offset": offset, "limit": limit, name: entries})
}

fn stream_names(core: &Core, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let streams = asked_streams(core, &asked);
    let names = streams.iter().skip(asked.offset).take(NAMES_PAGE).map(|stream| stream.config.name.clone().into());
    Ok(page(streams.len(), asked.offset, NAMES_PAGE, "streams", names.collect()))
}

fn stream_list(core: &Core, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let streams = asked_streams(core, &asked);
    let infos = streams.iter().skip(asked.offset).take(LIST_PAGE);
    let infos = infos.map(|stream| Value::Object(answer::stream(stream, request.now))).collect();
    Ok(page(streams.len(), asked.offset, LIST_PAGE, "streams", infos))
}

fn delete_stream(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    let stream = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    let (id, consumers) = (stream.id, stream.consumers().map(|consumer| consumer.name.clone()).collect::<Vec<_>>());
    for consumer in consumers {
        end_requests(core, name, &consumer, "409 Consumer Deleted");
    }
    let change = Change::StreamDeleted { stream: id };
    core.change(&change, true, request.now).map_err(|_| Refusal::no_room())?;
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
    /// Nothing is ever written over: the bytes go with their segment.
    #[serde(rename = "no_erase")]
    _no_erase: bool,
}

fn delete_message(core: &mut Core, name: &str, request: &Request<'_>) -> Answer {
    let stream = core.stream(name).ok_or_else(Refusal::stream_not_found)?;
    if request.body.trim_ascii().is_empty() {
        return Err(Refusal::bad_request());
    }
    let asked: DeleteRequest = request.read()?;
    if stream.config.sealed || stream.config.deny_delete {
        return Err(Refusal::delete_denied());
    }
    if stream.messages.get(asked.seq).is_none() {
        return Err(Refusal::sequence_not_found(asked.seq));
    }
    remove(core, stream.id, &[(asked.seq, asked.seq)], request.now)?;
    Ok(json!({"success": true}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConsumerRequest {
    stream_name: String,
    config: ConsumerConfig,
    action: Option<String>,
}

fn create_consumer(
    core: &mut Core,
    stream_name: &str,
    name: Option<&str>,
    filter: Option<String>,
    request: &Request<'_>,
) -> Answer {
    let stream = core.stream(stream_name).ok_or_else(Refusal::stream_not_found)?;
    let asked: ConsumerRequest = config::read(request.body)?;
    if asked.stream_name != stream_name {
        return Err(Refusal::name_mismatch());
    }
    let mut config = asked.config;
    if let Some(name) = name {
        let said = config.durable_name.as_deref().or(config.name.as_deref()).filter(|said| !said.is_empty());
        if said.is_some_and(|said| said != name) {
            return Err(Refusal::consumer_name_mismatch());
        }
        config.name = Some(name.to_owned());
    }
    if filter.is_some_and(|filter| filter != config.filter_subject) {
        return Err(Refusal::consumer_filter_mismatch());
    }
    let mut config = config.checked(&stream.config)?;
    let name = config.name.get_or_insert_with(random_name).clone();
    let action = asked.action.as_deref().unwrap_or_default();
    let (id, created, start) = match stream.consumer(&name) {
        Some(found) if found.config == config => (found.id, found.created, 0),
        Some(_) if action == "create" => return Err(Refusal::consumer_exists()),
        Some(found) => {
            config.check_update(&found.config)?;
            (found.id, found.created, 0)
        }
        None if action == "update" => return Err(Refusal::consumer_missing()),
        None => {
            let (id, start) = stream.admit_consumer(&config)?;
            (id, request.now.wall, start)
        }
    };
    let json = serde_json::to_vec(&config).expect("a configuration holds strings and numbers only");
    let change = Change::ConsumerPut { stream: stream.id, consumer: id, created, start, config: &json };
    let stream_id = stream.id;
    core.change(&change, true, request.now).map_err(|_| Refusal::no_room())?;
    core.serve(stream_id, id, request.now);
    core.schedule(stream_id, id, request.now);
    consumer_info(core, stream_name, &name, request.now)
}

fn random_name() -> String {
    let name = uuid::Uuid::new_v4().simple().to_string();
    name.chars().take(8).collect()
}

fn consumer_info(core: &Core, stream: &str, name: &str, now: Now) -> Answer {
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let consumer = stream.consumer(name).ok_or_else(Refusal::consumer_not_found)?;
    Ok(Value::Object(answer::consumer(stream, consumer, now)))
}

fn consumer_names(core: &Core, stream: &str, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let names = stream.consumers().skip(asked.offset).take(NAMES_PAGE).map(|consumer| consumer.name.clone().into());
    Ok(page(stream.consumers().count(), asked.offset, NAMES_PAGE, "consumers", names.collect()))
}

fn consumer_list(core: &Core, stream: &str, request: &Request<'_>) -> Answer {
    let asked: PageRequest = request.read()?;
    let stream = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let infos = stream.consumers().skip(asked.offset).take(LIST_PAGE);
    let infos = infos.map(|consumer| Value::Object(answer::consumer(stream, consumer, request.now))).collect();
    Ok(page(stream.consumers().count(), asked.offset, LIST_PAGE, "consumers", infos))
}

fn delete_consumer(core: &mut Core, stream: &str, name: &str, now: Now) -> Answer {
    let found = core.stream(stream).ok_or_else(Refusal::stream_not_found)?;
    let consumer = found.consumer(name).ok_or_else(Refusal::consumer_not_found)?;
    let change = Change::ConsumerDeleted { stream: found.id, consumer: consumer.id };
    end_requests(core, stream, name, "409 Consumer Deleted");
    core.change(&change, true, now).map_err(|_| Refusal::no_room())?;
    Ok(json!({"success": true}))
}

/// Tells all who wait at a consumer that it ends.
pub(super) fn end_requests(core: &mut Core, stream: &str, name: &str, line: &str) {
    let found = core.id_of(stream).and_then(|id| core.streams.get_mut(&id)?.consumer_mut(name));
    let waiting = found.map(|consumer| std::mem::take(&mut consumer.waiting)).unwrap_or_default();
    for request in waiting {
        core.tell(&request.reply, &status(line, &[]), &Bytes::new());
    }
}
