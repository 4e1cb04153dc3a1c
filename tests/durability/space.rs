//! Room on the disk comes back, and little is written twice.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use broker::{JournalUsage, Options};
use queue::bench::journal::{Load, Sample, journal};
use queue::client::Address;

use super::harness::{Broker, eventually};
use super::rounds;

const MIB: u64 = 1 << 20;

async fn publish_all(context: &Context, subject: impl Fn(u64) -> String, count: u64, bytes: usize) {
    let payload = Bytes::from(vec![7; bytes]);
    let publishing = futures::stream::iter(0..count).map(|number| {
        let (subject, payload) = (subject(number), payload.clone());
        async move { context.publish(subject, payload).await.map_err(drop)?.await.map(drop).map_err(drop) }
    });
    publishing.buffer_unordered(64).try_collect::<Vec<()>>().await.expect("acknowledged");
}

/// Bytes that the files of a folder take on disk.
fn taken(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(folder).expect("a folder").flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_is_given_back_to_the_disk() {
    let broker = Broker::start().await;
    let journal = broker.store().join("journal");
    let context = broker.bare().await;
    let config = Config { name: "s".into(), subjects: vec!["s.*".into()], ..Config::default() };
    let stream = context.create_stream(config).await.expect("created");
    eventually("spares are there", async || (taken(&journal) > 64 * MIB).then_some(())).await;
    let empty = taken(&journal);
    // Every tenth message stays, spread over all segments.
    publish_all(
        &context,
        |number| format!("s.{}", if number.is_multiple_of(10) { "keep" } else { "go" }),
        1000,
        200 << 10,
    )
    .await;
    eventually("it is all there", async || (taken(&journal) > empty + 150 * MIB).then_some(())).await;
    stream.purge().filter("s.go").await.expect("purged");
    eventually("the room is back", async || (taken(&journal) < empty + 60 * MIB).then_some(())).await;
    for sequence in [1, 501, 991] {
        let kept = stream.get_raw_message(sequence).await.expect("there");
        assert_eq!(kept.payload.len(), 200 << 10);
    }
    assert_eq!(stream.get_info().await.expect("answers").state.messages, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg(target_os = "linux")]
async fn with_a_tenth_that_stays_no_byte_is_written_twice_on_average() {
    let broker = Broker::start().await;
    let context = broker.bare().await;
    let config = Config {
        name: "s".into(),
        subjects: vec!["s.*".into()],
        // What is old goes, so that segments die while others are written.
        max_messages_per_subject: 200,
        ..Config::default()
    };
    let stream = context.create_stream(config).await.expect("created");
    let keep = Config { name: "k".into(), subjects: vec!["k.*".into()], ..Config::default() };
    context.create_stream(keep).await.expect("created");
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", broker.pid())).expect("Linux counts");
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("bytes written");
        // What goes to clients is counted as well: acknowledgements, some 40 bytes each.
        line.parse::<u64>().expect("a number")
    };
    let before = written();
    let (count, bytes) = (4000_u64, 100 << 10);
    let subject = |number: u64| if number.is_multiple_of(10) { format!("k.{number}") } else { "s.x".to_owned() };
    for _ in 0..2 {
        publish_all(&context, subject, count / 2, bytes).await;
        // Time for two sweeps: what they carry counts.
        let journal = broker.store().join("journal");
        let live = (count / 10 + 200) * bytes as u64;
        eventually("it is tidied up", async || (taken(&journal) < live * 2 + 120 * MIB).then_some(())).await;
    }
    assert_eq!(stream.get_info().await.expect("answers").state.messages, 200);
    let amplification = (written() - before) as f64 / (count * bytes as u64) as f64;
    println!("write amplification {amplification:.2}");
    assert!(amplification <= 2.0, "{amplification}");
}

/// Jobs at full speed: images come and go, and of each a record stays. The folder must follow what lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_follows_what_lives_at_full_speed() {
    let folder = super::harness::temporary_folder();
    for image_bytes in [800_000, 3_000] {
        let load = Load {
            image_bytes,
            in_flight: 64,
            backlog: 256,
            // Half an hour of each in the long form.
            span: Duration::from_secs(rounds(40, 1_800) as u64),
            sample_every: Duration::from_secs(2),
        };
        let (mut worst, mut amplification) = ((i64::MIN, 0), 0.0);
        let data = folder.path().join(image_bytes.to_string());
        let mut look = |sample: &Sample<JournalUsage>| {
            let excess = sample.folder_bytes.cast_signed() - 2 * sample.journal.live_bytes.cast_signed();
            worst = (worst.0.max(excess), worst.1.max(sample.open_files));
            amplification = sample.journal.amplification();
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let broker = broker::Broker::start(Options::new(data.clone()), listener).expect("starts");
        let address = Address::parse(&format!("nats://{}", broker.address())).expect("an address");
        journal(&address, &data, load, || broker.journal_usage(), &mut look).await.expect("all is acknowledged");
        broker.stop().await;
        println!(
            "images of {image_bytes} bytes: at most {} MiB beyond twice what lives, {} open files",
            worst.0 >> 20,
            worst.1
        );
        assert!(worst.0 <= 512 << 20, "{} MiB beyond twice what lives", worst.0 >> 20);
        // Other tests of this process have files too.
        assert!(worst.1 <= 400, "{} open files", worst.1);
        assert!(amplification < 2.0, "{amplification} bytes written for each that had to be");
        std::fs::remove_dir_all(data).expect("removed");
    }
}
