//! Worker processes: killed, paused, told to end.

use std::time::Duration;

use super::harness::{Stack, eventually, photo, send, signal};
use super::{all_end, rounds, states, worker_pids};

const JOBS: usize = 60;

async fn accept_many(stack: &Stack, count: usize) -> Vec<String> {
    futures::future::join_all((0..count).map(|_| stack.accept("efficientnet-lite0", photo("rocket.jpg")))).await
}

#[tokio::test]
async fn a_killed_worker_costs_no_job() {
    let stack = Stack::start(&["--workers", "3", "--lease", "3s"]);
    for _ in 0..rounds(2, 100) {
        let ids = accept_many(&stack, JOBS).await;
        let victim = eventually("a worker to kill", async || worker_pids(&stack).first().copied()).await;
        signal(victim, "KILL");
        let jobs = all_end(&stack, &ids).await;
        assert_eq!(states(&jobs), [("succeeded".to_owned(), JOBS)].into(), "{}", stack.log());
        eventually("the worker is replaced", async || (worker_pids(&stack).len() == 3).then_some(())).await;
    }
}

#[tokio::test]
async fn jobs_of_a_killed_worker_come_back_before_their_lease_ends() {
    let models = super::harness::test_models();
    // A lease that no test would wait for.
    let stack = Stack::start(&["--workers", "1", "--models", &models, "--lease", "1h"]);
    let running = stack.accept("endless", photo("rocket.jpg")).await;
    let in_hand = stack.accept("efficientnet-lite0", photo("rocket.jpg")).await;
    eventually("one runs, the other is in hand or handed back", async || {
        (stack.get(&format!("/v1/jobs/{running}")).await.json["state"] == "running").then_some(())
    })
    .await;
    signal(worker_pids(&stack)[0], "KILL");
    eventually("the running job begins again", async || {
        let job = stack.get(&format!("/v1/jobs/{running}")).await.json;
        (job["attempt"] == 2 && job["attempts"][0]["outcome"] == "lost").then_some(())
    })
    .await;
    let waiting = stack.get(&format!("/v1/jobs/{in_hand}")).await.json;
    assert!(waiting["attempt"].as_u64() <= Some(1), "what had not begun lost no attempt: {waiting}");
}

#[tokio::test]
async fn a_worker_that_wakes_after_its_lease_neither_overwrites_nor_steals() {
    let models = super::harness::test_models();
    let stack = Stack::start(&["--workers", "2", "--models", &models, "--lease", "1s", "--attempts", "2"]);
    let worker_of = async |id: &str| {
        let job = stack.get(&format!("/v1/jobs/{id}")).await.json;
        (job["state"] == "running").then(|| job["worker"].as_str().expect("a worker").to_owned())
    };
    let id = stack.accept("slow", photo("china.jpg")).await;
    let holder = eventually("a worker runs it", async || worker_of(&id).await).await;
    let pid = eventually("its process is known", async || {
        let members = stack.members("worker").await;
        members.iter().find(|member| member["id"] == holder.as_str()).and_then(|member| member["pid"].as_u64())
    })
    .await as u32;
    signal(pid, "STOP");
    let successor = eventually("another one takes it", async || worker_of(&id).await.filter(|w| *w != holder)).await;
    // The sleeper wakes while its successor is still at work, with a result of its own.
    signal(pid, "CONT");
    let job = stack.finish(&id).await;
    assert_eq!((job["state"].as_str(), job["worker"].as_str()), (Some("succeeded"), Some(successor.as_str())), "{job}");
    assert_eq!((job["attempt"].as_u64(), &job["attempts"][0]["outcome"]), (Some(2), &"lost".into()), "{job}");
    // It notices, drops what it had, and works on.
    eventually("it says that it was superseded", async || {
        let members = stack.members("worker").await;
        let sleeper = members.iter().find(|member| member["id"] == holder.as_str())?;
        (sleeper["totals"]["outcomes"]["slow"]["superseded"] == 1).then_some(())
    })
    .await;
    let ids = accept_many(&stack, JOBS).await;
    all_end(&stack, &ids).await;
    assert_eq!(stack.finish(&id).await, job);
}

#[tokio::test]
async fn a_worker_paused_beyond_its_lease_changes_nothing_when_it_wakes() {
    let stack = Stack::start(&["--workers", "2", "--lease", "1s"]);
    for _ in 0..rounds(2, 50) {
        let ids = accept_many(&stack, JOBS).await;
        let sleeper = worker_pids(&stack)[0];
        signal(sleeper, "STOP");
        // The other one finishes all, also what the sleeper holds, once those leases have ended.
        let jobs = all_end(&stack, &ids).await;
        signal(sleeper, "CONT");
        assert_eq!(states(&jobs), [("succeeded".to_owned(), JOBS)].into(), "{}", stack.log());
        // It has woken and works again; what it tried to write must not show.
        eventually("the sleeper is heard again", async || (stack.members("worker").await.len() == 2).then_some(()))
            .await;
        assert_eq!(all_end(&stack, &ids).await, jobs);
    }
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_hands_back_and_costs_no_attempt() {
    let stack = Stack::start(&["--workers", "2", "--lease", "1h"]);
    let ids = accept_many(&stack, JOBS).await;
    for victim in worker_pids(&stack) {
        signal(victim, "TERM");
    }
    let jobs = all_end(&stack, &ids).await;
    assert_eq!(states(&jobs), [("succeeded".to_owned(), JOBS)].into(), "{}", stack.log());
    assert!(jobs.values().all(|job| job["attempt"] == 1), "a hand-back is no attempt");
}

#[tokio::test]
async fn a_job_that_kills_its_worker_each_time_is_given_up_and_kept() {
    let models = super::harness::test_models();
    let stack = Stack::start(&["--workers", "1", "--models", &models, "--attempts", "2", "--lease", "2s"]);
    let poison = stack.accept("endless", photo("china.jpg")).await;
    for attempt in 1..=2 {
        eventually("the attempt runs", async || {
            let job = stack.get(&format!("/v1/jobs/{poison}")).await.json;
            (job["state"] == "running" && job["attempt"] == attempt).then_some(())
        })
        .await;
        signal(worker_pids(&stack)[0], "KILL");
    }
    let job = stack.finish(&poison).await;
    assert_eq!((job["state"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("attempts_exhausted")));
    assert!(job["attempts"].as_array().expect("a list").iter().all(|attempt| attempt["outcome"] == "lost"), "{job}");
    let kept = eventually("its input is kept", async || dead_letter(&stack, &poison).await).await;
    assert_eq!(kept, photo("china.jpg"));
    assert_eq!(stack.run("model=slow", photo("china.jpg")).await["state"], "succeeded", "the others go on");
}

#[tokio::test]
async fn an_ordered_topic_keeps_its_order_through_worker_deaths() {
    let stack = Stack::start(&["--workers", "3", "--models", "efficientnet-lite0"]);
    let create = ["topics", "create", "belt", "--model", "efficientnet-lite0", "--ordered", "--partitions", "2"];
    assert!(stack.command(&[&create[..], &["--lease", "2s", "--attempts", "9"]].concat()).status.success());
    let mut ids = Vec::new();
    for number in 0..rounds(40, 400) {
        let key = if number % 2 == 0 { "even" } else { "odd" };
        let upload = stack.upload(&format!("topic=belt&partition_key={key}"), photo("rocket.jpg"));
        ids.push(send(upload).await.text("id"));
    }
    let deaths = async {
        for _ in 0..rounds(4, 40) {
            let victim = eventually("a worker to kill", async || worker_pids(&stack).last().copied()).await;
            signal(victim, "KILL");
            eventually("it is replaced", async || {
                let pids = worker_pids(&stack);
                (pids.len() == 3 && !pids.contains(&victim)).then_some(())
            })
            .await;
        }
    };
    let (jobs, ()) = tokio::join!(all_end(&stack, &ids), deaths);
    assert_eq!(states(&jobs), [("succeeded".to_owned(), ids.len())].into(), "{}", stack.log());
    for key in [0, 1] {
        let mut before = String::new();
        for id in ids.iter().skip(key).step_by(2) {
            let attempts = jobs[id]["attempts"].as_array().expect("a list");
            let first = attempts[0]["started_at"].as_str().expect("a time");
            assert!(before.as_str() <= first, "it began at {first}, the one before ended at {before}");
            before = jobs[id]["finished_at"].as_str().expect("a time").to_owned();
        }
    }
}

/// The dead letter of a job.
pub(crate) async fn dead_letter(stack: &Stack, id: &str) -> Option<Vec<u8>> {
    let (topic, uuid) = id.split_once('.').expect("an id");
    let stream = stack.bare().await.get_stream(format!("dead_{topic}")).await.ok()?;
    let letter = stream.get_last_raw_message_by_subject(&format!("dead.{topic}.{uuid}")).await.ok()?;
    Some(letter.payload.to_vec())
}

#[tokio::test]
async fn a_worker_that_keeps_dying_is_replaced_each_time() {
    let stack = Stack::start(&["--workers", "1"]);
    for _ in 0..3 {
        let victim = eventually("a worker", async || worker_pids(&stack).first().copied()).await;
        signal(victim, "KILL");
        eventually("another one", async || worker_pids(&stack).first().copied().filter(|pid| *pid != victim)).await;
    }
    let job = tokio::time::timeout(Duration::from_secs(60), stack.run("model=efficientnet-lite0", photo("china.jpg")));
    assert_eq!(job.await.expect("it works again")["state"], "succeeded");
}
