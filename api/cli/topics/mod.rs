//! `sightline topics`: creates, shows, changes and deletes topics.

mod replay;

use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use queue::client::Description;
use queue::members::Role;
use queue::topic::{Change, Defaults};
use queue::{Queue, TopicName};

use crate::config::{ConfirmedArgs, CreateArgs, ModelArgs, NamedArgs, SettingsArgs, TopicsAction, TopicsArgs};
use crate::output::{note, out, outln};
use crate::setup::{Models, connect};
use crate::table::Table;

/// How long to wait for copies, and how often to look.
const COPIES_PATIENCE: Duration = Duration::from_secs(300);
const COPIES_PAUSE: Duration = Duration::from_millis(500);

/// Runs the subcommand.
pub(crate) async fn run(args: TopicsArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        TopicsAction::List(args) => list(&connect(&args.queue).await?, args.json).await?,
        TopicsAction::Describe(args) => {
            let described = connect(&args.queue).await?.topics.describe(&args.topic).await?;
            show(&described, args.json)?;
        }
        TopicsAction::Create(args) => create(*args).await?,
        TopicsAction::Alter(args) => {
            let queue = connect(&args.queue).await?;
            let replicas = args.settings.replicas.map(usize::from);
            queue.topics.alter(&args.topic, replicas, |settings| change(&args.settings).apply(settings)).await?;
            if let Some(replicas) = replicas {
                wait_for_copies(&queue, &args.topic, replicas).await?;
            }
            show(&queue.topics.describe(&args.topic).await?, false)?;
        }
        TopicsAction::Delete(args) => {
            let queue = confirmed(&args, "Everything in it is lost: jobs, results, dead letters.").await?;
            queue.topics.delete(&args.topic).await?;
            outln!("topic {} deleted", args.topic);
        }
        TopicsAction::Purge(args) => {
            let queue = confirmed(&args, "Queued jobs are canceled.").await?;
            let purged = queue.topics.purge(&args.topic).await?;
            outln!("{} jobs canceled, {} messages removed", purged.canceled, purged.messages);
        }
        TopicsAction::Pause(args) => set_paused(&args, true).await?,
        TopicsAction::Resume(args) => set_paused(&args, false).await?,
        TopicsAction::Replay(args) => return replay::run(args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(queue: &Queue, json: bool) -> anyhow::Result<()> {
    let topics = queue.topics().await?;
    let mut described = Vec::with_capacity(topics.len());
    for topic in &topics {
        described.push(queue.topics.describe(topic.name()).await?);
    }
    if json {
        outln!("{}", serde_json::to_string_pretty(&described)?);
        return Ok(());
    }
    let mut table =
        Table::new(&["TOPIC", "MODEL", "RETENTION", "PARTITIONS", "REPLICAS", "QUEUED", "LEASED", "DEAD", "STATE"]);
    for topic in &described {
        let sum =
            |count: fn(&queue::client::Partition) -> u64| topic.partitions.iter().map(count).sum::<u64>().to_string();
        table.row([
            topic.name.to_string(),
            topic.model.clone().unwrap_or_else(|| "-".into()),
            topic.retention.to_string(),
            // Each priority that is used has partitions of its own, with the same numbers.
            topic.partitions.iter().map(|one| one.partition.index()).collect::<BTreeSet<_>>().len().to_string(),
            topic.replicas.to_string(),
            sum(|partition| partition.queued),
            sum(|partition| partition.in_work),
            topic.dead.to_string(),
            if topic.paused { "paused".into() } else { "open".into() },
        ]);
    }
    out!("{table}");
    Ok(())
}

fn show(topic: &Description, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_string_pretty(topic)?);
        return Ok(());
    }
    let time = |ms: u64| humantime::format_duration(std::time::Duration::from_millis(ms)).to_string();
    outln!("topic       {}", topic.name);
    outln!("model       {}", topic.model.as_deref().unwrap_or("none: a plain log"));
    outln!("retention   {}", topic.retention);
    outln!("replicas    {}", topic.replicas);
    outln!(
        "state       {}{}",
        if topic.paused { "paused" } else { "open" },
        if topic.ordered { ", ordered" } else { "" }
    );
    outln!(
        "lease       {}, {} attempts, runs up to {}",
        time(topic.lease_ms),
        topic.attempts,
        time(topic.run_timeout_ms)
    );
    outln!(
        "retries     after {}, doubling up to {}, plus or minus {} %",
        time(topic.retry.first_ms),
        time(topic.retry.max_ms),
        topic.retry.jitter_percent
    );
    outln!("results     {} kept, for {}", topic.records, time(topic.result_ttl_secs * 1_000));
    outln!("dead        {}", topic.dead);
    if let Some(bytes) = topic.max_bytes {
        outln!("room        {}", bytesize::ByteSize(bytes));
    }
    outln!();
    let headings = [
        "PARTITION",
        "LEADER",
        "REPLICAS",
        "FIRST",
        "LAST",
        "MESSAGES",
        "BYTES",
        "QUEUED",
        "LEASED",
        "REDELIVERED",
        "OLDEST",
    ];
    let mut table = Table::new(&headings);
    let now = queue::Timestamp::now();
    for partition in &topic.partitions {
        let replica = |replica: &queue::client::Replica| {
            let state = match (replica.offline, replica.current) {
                (true, _) => "offline",
                (false, true) => "current",
                (false, false) => "behind",
            };
            format!("{}:{state}", replica.server)
        };
        let replicas = partition.replicas.iter().map(replica).collect::<Vec<_>>().join(",");
        table.row([
            partition.partition.to_string(),
            partition.leader.clone(),
            if replicas.is_empty() { "-".into() } else { replicas },
            partition.first.to_string(),
            partition.last.to_string(),
            partition.messages.to_string(),
            bytesize::ByteSize(partition.bytes).to_string(),
            partition.queued.to_string(),
            partition.in_work.to_string(),
            partition.redelivered.to_string(),
            partition.oldest_at.map_or_else(|| "-".into(), |at| time(now.millis_since(at) / 1_000 * 1_000)),
        ]);
    }
    out!("{table}");
    Ok(())
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let queue = connect(&args.queue).await?;
    let served = served(&queue, &args.models).await?;
    // A topic that is named like a model runs that model, or the model's jobs would enter a topic that runs nothing.
    let own = || served.get(args.topic.as_str()).cloned();
    let model = args.model.clone().or_else(own);
    if let Some(unknown) = model.as_ref().filter(|model| !served.contains(*model)) {
        let names = served.into_iter().collect::<Vec<_>>().join(", ");
        bail!("neither a worker nor this command has model `{unknown}`; known models: {names}");
    }
    let mut settings = Defaults::default().settings(args.topic.clone(), model.as_deref());
    change(&args.settings).apply(&mut settings);
    settings.ordered = args.ordered;
    let is_log = settings.retention != queue::topic::Retention::Work;
    queue.topics.create(settings, args.settings.replicas.map(usize::from)).await?;
    if is_log && model.is_some() {
        note!("note: a log drops its oldest messages by age and size, even if they never ran");
    }
    show(&queue.topics.describe(&args.topic).await?, false)
}

/// Waits until every partition has its copies, and prints how many do.
async fn wait_for_copies(queue: &Queue, topic: &TopicName, replicas: usize) -> anyhow::Result<()> {
    let (began, mut told) = (Instant::now(), usize::MAX);
    loop {
        let partitions = queue.topics.describe(topic).await?.partitions;
        // A partition lists the copies besides its leader's.
        let is_done = |partition: &&queue::client::Partition| {
            partition.replicas.len() + 1 == replicas && partition.replicas.iter().all(|replica| replica.current)
        };
        let (done, all) = (partitions.iter().filter(is_done).count(), partitions.len());
        if done == all {
            return Ok(());
        }
        if told != done {
            note!("{done} of {all} partitions have {replicas} copies");
            told = done;
        }
        ensure!(
            began.elapsed() < COPIES_PATIENCE,
            "{done} of {all} partitions have {replicas} copies; the servers continue, and sightline topics describe {topic} shows their progress"
        );
        tokio::time::sleep(COPIES_PAUSE).await;
    }
}

/// The models that workers have now, and those that this command has: workers may start later.
async fn served(queue: &Queue, args: &ModelArgs) -> anyhow::Result<BTreeSet<String>> {
    let here = Models::open(args)?;
    let there = queue.ask_members().await?;
    let workers = there.members().filter(|member| member.role == Role::Worker);
    Ok(workers.flat_map(|worker| worker.models.clone()).chain(here.names).collect())
}

fn change(args: &SettingsArgs) -> Change {
    Change {
        partitions: args.partitions.map(u16::from),
        retention: args.retention,
        bytes_max: args.max_bytes.map(|bytes| bytes.as_u64()),
        lease: args.lease,
        attempts_max: args.attempts.map(u32::from),
        run_timeout: args.run_timeout,
        result_ttl: args.result_ttl,
        retry_first: args.retry_first,
        retry_max: args.retry_max,
        jitter_percent: args.retry_jitter,
    }
}

async fn set_paused(args: &NamedArgs, paused: bool) -> anyhow::Result<()> {
    let queue = connect(&args.queue).await?;
    queue.topics.pause(&args.topic, paused).await?;
    outln!("topic {} {}", args.topic, if paused { "is paused; its jobs wait" } else { "is resumed" });
    Ok(())
}

/// Connects, and asks for confirmation.
async fn confirmed(args: &ConfirmedArgs, consequence: &str) -> anyhow::Result<Queue> {
    let queue = connect(&args.queue).await?;
    let described = queue.topics.describe(&args.topic).await?;
    if !args.yes {
        ensure!(std::io::stdin().is_terminal(), "stdin is not a terminal; pass --yes to confirm");
        let waiting: u64 = described.partitions.iter().map(|partition| partition.messages).sum();
        ask(&args.topic, &format!("{waiting} messages, {} results. {consequence}", described.records))?;
    }
    Ok(queue)
}

fn ask(topic: &TopicName, what: &str) -> anyhow::Result<()> {
    out!("Topic {topic} has {what}\nType its name to confirm: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    ensure!(answer.trim() == topic.as_str(), "unchanged");
    Ok(())
}
