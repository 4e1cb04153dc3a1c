//! `sightline consume`: prints the messages of a topic as they arrive. Reading removes nothing.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use futures::{FutureExt, StreamExt};
use queue::client::{GroupReader, Message, Position};
use queue::{PartitionId, Queue, Sequence, Timestamp, Topic};
use serde_json::json;

use crate::config::ConsumeArgs;
use crate::output::outln;
use crate::setup::connect;

/// How often to look for more without a notification.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Prints messages up to the requested number, or until interrupted.
pub(crate) async fn run(args: ConsumeArgs) -> anyhow::Result<ExitCode> {
    let queue = connect(&args.queue).await?;
    let topic = queue.fresh_topic(&args.topic).await?;
    let topic = topic.with_context(|| format!("topic {} does not exist", args.topic))?;
    let partitions: Vec<PartitionId> =
        topic.partitions().filter(|partition| args.partition.is_none_or(|wanted| wanted == *partition)).collect();
    anyhow::ensure!(!partitions.is_empty(), "topic {} has no partition {}", args.topic, args.partition.context("all")?);
    if let Some(folder) = &args.save {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    // Subscribed before the first look, so that no message is missed in between.
    let mut rings = queue.logs.rings(topic.name()).await?;
    let mut reader = Reader::new(&queue, &topic, &partitions, &args).await?;
    let mut printed = 0;
    loop {
        let mut found = false;
        for (number, partition) in partitions.iter().enumerate() {
            if args.max.is_some_and(|max| printed >= max) {
                return Ok(ExitCode::SUCCESS);
            }
            if let Some(message) = reader.next(number).await? {
                print(&message, *partition, &args)?;
                reader.done().await?;
                printed += 1;
                found = true;
            }
        }
        if !found {
            drop(tokio::time::timeout(LOOK_INTERVAL, rings.next()).await);
            while rings.next().now_or_never().flatten().is_some() {}
        }
    }
}

/// Where the messages come from.
enum Reader<'a> {
    /// A position of our own in each partition.
    Alone { queue: &'a Queue, topic: &'a Topic, places: Vec<(PartitionId, Sequence)> },
    /// The group's position, which the server keeps.
    Group { readers: Vec<GroupReader>, pending: Option<Box<queue::client::GroupMessage>> },
}

impl<'a> Reader<'a> {
    async fn new(
        queue: &'a Queue,
        topic: &'a Topic,
        partitions: &[PartitionId],
        args: &ConsumeArgs,
    ) -> anyhow::Result<Self> {
        let from = match (args.from_beginning, args.sequence, args.since) {
            (true, _, _) => Position::Beginning,
            (_, Some(sequence), _) => Position::At(Sequence(sequence)),
            (_, _, Some(ago)) => Position::Since(before(ago)),
            _ => Position::End,
        };
        if let Some(group) = &args.group {
            let mut readers = Vec::new();
            for partition in partitions {
                readers.push(queue.logs.join_group(topic, *partition, group, from).await?);
            }
            return Ok(Self::Group { readers, pending: None });
        }
        let mut places = Vec::new();
        for partition in partitions {
            places.push((*partition, queue.logs.resolve(topic.name(), *partition, from).await?));
        }
        Ok(Self::Alone { queue, topic, places })
    }

    async fn next(&mut self, number: usize) -> anyhow::Result<Option<Message>> {
        match self {
            Self::Alone { queue, topic, places } => {
                let (partition, from) = places[number];
                Ok(queue.logs.peek(topic.name(), partition, from).await?)
            }
            Self::Group { readers, pending } => {
                *pending = readers[number].next().await?.map(Box::new);
                Ok(pending.as_ref().map(|message| message.message.clone()))
            }
        }
        .inspect(|message| {
            if let (Self::Alone { places, .. }, Some(message)) = (&mut *self, message) {
                places[number].1 = Sequence(message.sequence.0 + 1);
            }
        })
    }

    /// Acknowledges the printed message, if a group reads.
    async fn done(&mut self) -> anyhow::Result<()> {
        if let Self::Group { pending, .. } = self
            && let Some(message) = pending.take()
        {
            message.ack().await?;
        }
        Ok(())
    }
}

/// The time this long ago.
pub(crate) fn before(ago: Duration) -> Timestamp {
    let millis = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(Timestamp::now().as_millis().saturating_sub(millis))
}

fn print(message: &Message, partition: PartitionId, args: &ConsumeArgs) -> anyhow::Result<()> {
    let id = message.job_id().map_or_else(|| message.subject.clone(), |id| id.to_string());
    // Bytes that are text are shown; an image is not.
    let text = std::str::from_utf8(&message.payload).ok().filter(|text| !text.contains(char::is_control));
    if args.json {
        let line = json!({
            "id": id, "partition": partition, "sequence": message.sequence, "time": message.time,
            "key": message.key(), "bytes": message.payload.len(), "text": text, "job": message.spec(),
        });
        outln!("{line}");
    } else {
        let key = message.key().map(|key| format!("  key {key}")).unwrap_or_default();
        let what = text.map(|text| format!("  {text}")).unwrap_or_default();
        let bytes = message.payload.len();
        outln!("{partition}:{}  {}  {id}  {bytes} bytes{key}{what}", message.sequence, message.time);
    }
    if let Some(folder) = &args.save {
        save(folder, &id, message)?;
    }
    Ok(())
}

fn save(folder: &Path, id: &str, message: &Message) -> anyhow::Result<()> {
    // A name from a message must not leave the folder.
    let plain = id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')) && !id.starts_with('.');
    let name = if plain { id.to_owned() } else { format!("message-{}", message.sequence) };
    let ending = message.spec().map(|spec| format!(".{}", spec.image.format)).unwrap_or_default();
    let path = folder.join(format!("{name}{}", if ending.contains('/') { String::new() } else { ending }));
    std::fs::write(&path, &message.payload).with_context(|| format!("write {}", path.display()))
}
