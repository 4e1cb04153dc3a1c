//! What each crash between two steps leaves, built by hand and then taken up.
//!
//! The steps of a job are: message, record, `running`, terminal record, dead letter, ack. For each
//! border between two of them the state that a crash leaves there is written into a live system
//! while its worker is paused; then the worker goes on, and the job must end as it should.

use bytes::Bytes;
use queue::client::{RedriveError, Redriven, Replaced};
use queue::{
    ImageFacts, JobError, JobId, JobOptions, JobSpec, PartitionId, Queue, Record, Sequence, Timestamp, Timings,
    TopicName,
};
use serde_json::Value;

use super::harness::{Stack, eventually, photo, signal};
use super::worker_pids;
use super::workers::dead_letter;

const MODEL: &str = "efficientnet-lite0";

/// A system whose worker is paused, with a job's message in its queue and nothing else.
struct Crash {
    stack: Stack,
    queue: Queue,
    record: Record,
}

impl Crash {
    async fn with_message(image: &[u8]) -> Self {
        let stack = Stack::start(&["--workers", "1", "--lease", "2s", "--attempts", "2"]);
        let template = stack.run(&format!("model={MODEL}"), photo("china.jpg")).await;
        signal(worker_pids(&stack)[0], "STOP");
        let queue = stack.queue().await;
        let spec = spec(&template);
        let (partition, id) = (PartitionId::normal(0), spec.id.clone());
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Sl-Job", serde_json::to_string(&spec).expect("writes").as_str());
        let subject = format!("jobs.{MODEL}.{partition}.{}", id.uuid());
        let bare = stack.bare().await;
        let published = bare.publish_with_headers(subject, headers, Bytes::copy_from_slice(image)).await;
        let ack = published.expect("sent").await.expect("stored");
        let record = Record::queued(spec, partition, Sequence(ack.sequence));
        Self { stack, queue, record }
    }

    /// Writes a job's history up to a crash.
    async fn with_history(self, steps: &[Record]) -> Self {
        let mut revision = queue::client::Revision::default();
        for step in steps {
            match self.queue.work.replace(revision, step).await.expect("written") {
                Replaced::Done(next) => revision = next,
                Replaced::Refused => panic!("refused"),
            }
        }
        self
    }

    /// Lets the worker go on, and returns the finished job once its message is gone.
    async fn take_up(&self) -> Value {
        signal(worker_pids(&self.stack)[0], "CONT");
        let id = self.record.spec.id.to_string();
        eventually("the job is known", async || {
            (self.stack.get(&format!("/v1/jobs/{id}")).await.status == 200).then_some(())
        })
        .await;
        let job = self.stack.finish(&id).await;
        eventually("its message is gone", async || {
            let topic = self.queue.topic(self.record.spec.id.topic()).await.ok()??;
            let depths = self.queue.topics.depth(&topic).await.ok()?;
            depths.iter().all(|depth| depth.queued + depth.in_hand == 0).then_some(())
        })
        .await;
        assert_eq!(self.stack.finish(&id).await, job, "it stays as it ended");
        job
    }

    async fn dead_letter(&self) -> Option<Vec<u8>> {
        dead_letter(&self.stack, &self.record.spec.id.to_string()).await
    }
}

fn spec(template: &Value) -> JobSpec {
    let bytes = photo("coffee.png").len() as u64;
    JobSpec {
        origin: queue::Origin::default(),
        id: JobId::random(TopicName::new(MODEL).expect("valid")),
        model: MODEL.into(),
        model_version: 1,
        model_digest: template["model_digest"].as_str().expect("a digest").into(),
        created_at: Timestamp::now(),
        accepted_by: String::new(),
        image: ImageFacts { width: 600, height: 400, format: "png".into(), bytes, sha256: "unknown".into() },
        options: JobOptions::default(),
        metadata: [("from".to_owned(), "a crash".to_owned())].into(),
    }
}

fn now() -> Timestamp {
    Timestamp::now()
}

#[tokio::test]
async fn after_the_message_the_worker_writes_the_record_itself() {
    let crash = Crash::with_message(&photo("coffee.png")).await;
    let job = crash.take_up().await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{job}");
    assert_eq!(job["result"]["predictions"][0]["label"], "espresso");
    assert_eq!(job["metadata"]["from"], "a crash", "all that was asked for stands in the message");
}

#[tokio::test]
async fn after_running_the_next_worker_begins_another_attempt() {
    let crash = Crash::with_message(&photo("coffee.png")).await;
    let running = crash.record.start("w-lost", now()).expect("starts");
    let history = [crash.record.clone(), running];
    let job = crash.with_history(&history).await.take_up().await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(2)), "{job}");
    assert_eq!((&job["attempts"][0]["worker"], &job["attempts"][0]["outcome"]), (&"w-lost".into(), &"lost".into()));
}

#[tokio::test]
async fn after_the_last_attempt_the_job_is_given_up_and_its_input_kept() {
    let crash = Crash::with_message(b"what killed two workers").await;
    let first = crash.record.start("w-lost", now()).expect("starts");
    let second = first.start("w-lost-too", now()).expect("starts");
    let history = [crash.record.clone(), first, second];
    let crash = crash.with_history(&history).await;
    let job = crash.take_up().await;
    assert_eq!(
        (job["state"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("attempts_exhausted")),
        "{job}"
    );
    assert_eq!(job["attempt"], 2, "not a third time");
    assert_eq!(crash.dead_letter().await.as_deref(), Some(&b"what killed two workers"[..]));
}

#[tokio::test]
async fn after_a_result_the_message_goes_and_the_result_stays() {
    let crash = Crash::with_message(&photo("coffee.png")).await;
    let running = crash.record.start("w-lost", now()).expect("starts");
    let done = running.succeed("the first result".into(), Timings::default(), now()).expect("succeeds");
    let history = [crash.record.clone(), running, done];
    let crash = crash.with_history(&history).await;
    let job = crash.take_up().await;
    assert_eq!((&job["result"], job["attempt"].as_u64()), (&"the first result".into(), Some(1)), "not run again");
    assert_eq!(crash.dead_letter().await, None);
}

#[tokio::test]
async fn after_a_failure_the_dead_letter_is_still_written() {
    let crash = Crash::with_message(b"bad input").await;
    let running = crash.record.start("w-lost", now()).expect("starts");
    let failed = running.fail(JobError::new("image_unsupported", "no image"), now()).expect("fails");
    let history = [crash.record.clone(), running, failed];
    let crash = crash.with_history(&history).await;
    let job = crash.take_up().await;
    assert_eq!(job["error"]["code"], "image_unsupported");
    assert_eq!(crash.dead_letter().await.as_deref(), Some(&b"bad input"[..]));
}

#[tokio::test]
async fn a_stray_double_of_a_message_is_let_go() {
    // A publish that was repeated after the first one had been worked off.
    let crash = Crash::with_message(&photo("coffee.png")).await;
    let mut elsewhere = crash.record.clone();
    elsewhere.sequence = Sequence(crash.record.sequence.0 + 100);
    let running = elsewhere.start("w-other", now()).expect("starts");
    let history = [elsewhere, running.clone()];
    let crash = crash.with_history(&history).await;
    signal(worker_pids(&crash.stack)[0], "CONT");
    eventually("the stray message is gone", async || {
        let topic = crash.queue.topic(crash.record.spec.id.topic()).await.ok()??;
        let depths = crash.queue.topics.depth(&topic).await.ok()?;
        depths.iter().all(|depth| depth.queued + depth.in_hand == 0).then_some(())
    })
    .await;
    let stored = crash.queue.find_record(&crash.record.spec.id).await.expect("answered").expect("known");
    assert_eq!(stored.record, running, "the job is where its record says, untouched");
}

#[tokio::test]
async fn a_foreign_message_is_put_aside() {
    let stack = Stack::start(&["--workers", "1"]);
    stack.run(&format!("model={MODEL}"), photo("china.jpg")).await;
    let id = JobId::random(TopicName::new(MODEL).expect("valid"));
    let subject = format!("jobs.{MODEL}.0.{}", id.uuid());
    let bare = stack.bare().await;
    let published = bare.publish(subject, "garbage".into()).await;
    published.expect("sent").await.expect("stored");
    let kept = eventually("it is put aside", async || dead_letter(&stack, &id.to_string()).await).await;
    assert_eq!(kept, b"garbage");
    assert_eq!(stack.run(&format!("model={MODEL}"), photo("china.jpg")).await["state"], "succeeded", "work goes on");
}

/// A job that failed, its letter in the topic of dead letters, and its worker paused.
async fn failed_and_kept(image: &str) -> Crash {
    let crash = Crash::with_message(&photo(image)).await;
    let running = crash.record.start("w-lost", now()).expect("starts");
    let failed = running.fail(JobError::new("out_of_luck", "a test"), now()).expect("fails");
    let history = [crash.record.clone(), running, failed];
    let crash = crash.with_history(&history).await;
    let job = crash.take_up().await;
    assert_eq!(job["error"]["code"], "out_of_luck");
    eventually("its input is kept", async || crash.dead_letter().await).await;
    signal(worker_pids(&crash.stack)[0], "STOP");
    crash
}

async fn succeeds_again(crash: &Crash) {
    signal(worker_pids(&crash.stack)[0], "CONT");
    let id = crash.record.spec.id.to_string();
    let job = eventually("it runs again", async || {
        let job = crash.stack.get(&format!("/v1/jobs/{id}")).await.json;
        (job["state"] == "succeeded").then_some(job)
    })
    .await;
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "it ran once more, not twice: {job}");
    let audit =
        crash.queue.admin.audit(crash.record.spec.id.topic(), std::slice::from_ref(&crash.record.spec.id)).await;
    assert_eq!(audit.expect("answered").wrong, []);
}

#[tokio::test]
async fn after_the_message_of_a_redrive_the_worker_takes_the_job_back_itself() {
    let crash = failed_and_kept("coffee.png").await;
    let id = &crash.record.spec.id;
    let stored = crash.queue.find_record(id).await.expect("answered").expect("known");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Sl-Job", serde_json::to_string(&crash.record.spec).expect("writes").as_str());
    headers.insert("Sl-Again", u64::from(stored.revision).to_string().as_str());
    let subject = format!("jobs.{MODEL}.0.{}", id.uuid());
    let message = Bytes::from(photo("coffee.png"));
    let bare = crash.stack.bare().await;
    let published = bare.publish_with_headers(subject, headers, message).await;
    published.expect("sent").await.expect("stored");
    succeeds_again(&crash).await;
    // A second request is answered that it is done, and the letter is removed.
    assert_eq!(crash.queue.jobs.redrive(id).await.expect("answered"), Redriven::AlreadyQueued);
    assert_eq!(crash.dead_letter().await, None);
}

#[tokio::test]
async fn many_redrives_at_once_run_a_job_once() {
    let crash = failed_and_kept("coffee.png").await;
    let id = &crash.record.spec.id;
    let redrives = futures::future::join_all((0..8).map(|_| crash.queue.jobs.redrive(id))).await;
    // All of them may have written the very same record.
    assert!(redrives.iter().any(|redrive| matches!(redrive, Ok(Redriven::Queued))), "{redrives:?}");
    let others = |redrive: &Result<Redriven, RedriveError>| {
        matches!(redrive, Ok(_) | Err(RedriveError::NoLetter(_) | RedriveError::Submit(_)))
    };
    assert!(redrives.iter().all(others), "{redrives:?}");
    succeeds_again(&crash).await;
}

#[tokio::test]
async fn a_job_that_is_called_off_after_its_redrive_does_not_run() {
    let crash = failed_and_kept("coffee.png").await;
    let id = &crash.record.spec.id;
    assert_eq!(crash.queue.jobs.redrive(id).await.expect("answered"), Redriven::Queued);
    let stored = crash.queue.find_record(id).await.expect("answered").expect("known");
    let canceled = stored.record.cancel(now()).expect("it is queued");
    assert!(matches!(crash.queue.work.replace(stored.revision, &canceled).await.expect("written"), Replaced::Done(_)));
    let job = crash.take_up().await;
    assert_eq!((job["state"].as_str(), job["attempts"].as_array().map(Vec::len)), (Some("canceled"), Some(1)), "{job}");
}

#[tokio::test]
async fn a_growth_that_was_interrupted_is_completed_by_the_next() {
    let stack = Stack::start(&["--workers", "1", "--models", MODEL]);
    let topics = |words: &[&str]| {
        let output = stack.command(&[&["topics"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    topics(&["create", "torn", "--model", MODEL, "--partitions", "2"]);
    // One of two new streams is there, with no consumer; the settings say nothing of it.
    let bare = stack.bare().await;
    let mut config = bare.get_stream("jobs_torn_1").await.expect("there").cached_info().config.clone();
    config.name = "jobs_torn_2".into();
    config.subjects = vec!["jobs.torn.2.*".into()];
    bare.create_stream(config).await.expect("created");
    for _ in 0..4 {
        assert_eq!(stack.run("topic=torn", photo("rocket.jpg")).await["state"], "succeeded", "it goes on as it was");
    }
    topics(&["alter", "torn", "--partitions", "4"]);
    let described: Value = serde_json::from_str(&topics(&["describe", "torn", "--json"])).expect("JSON");
    let partitions = described["partitions"].as_array().expect("a list");
    assert_eq!(partitions.len(), 4);
    assert!(partitions.iter().all(|partition| partition["consumer_missing"] == false), "{described}");
    eventually("the new ones are used, and worked off", async || {
        let job = stack.run("topic=torn", photo("rocket.jpg")).await;
        assert_eq!(job["state"], "succeeded");
        (job["partition"] == "2").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_redrive_does_not_take_the_message_of_the_run_before_for_its_own() {
    // Its worker died between the dead letter and the end of the message.
    let crash = Crash::with_message(&photo("coffee.png")).await;
    let running = crash.record.start("w-lost", now()).expect("starts");
    let failed = running.fail(JobError::new("out_of_luck", "a test"), now()).expect("fails");
    let history = [crash.record.clone(), running, failed];
    let crash = crash.with_history(&history).await;
    let id = &crash.record.spec.id;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Sl-Job", serde_json::to_string(&crash.record.spec).expect("writes").as_str());
    let subject = format!("dead.{MODEL}.{}", id.uuid());
    let bare = crash.stack.bare().await;
    let letter = bare.publish_with_headers(subject, headers, Bytes::from(photo("coffee.png"))).await;
    letter.expect("sent").await.expect("stored");
    assert_eq!(crash.queue.jobs.redrive(id).await.expect("answered"), Redriven::Queued);
    succeeds_again(&crash).await;
}
