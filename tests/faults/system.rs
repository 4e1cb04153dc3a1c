//! The whole system, and the queue's server.

use super::harness::{Broker, Engine, Stack, descendants, engine, eventually, is_alive, photo, signal};
use super::{all_end, rounds, states, uploads_are_taken_again};

const JOBS: usize = 40;

#[tokio::test]
async fn when_all_is_killed_no_child_is_left_and_every_accepted_job_ends() {
    let mut stack = Stack::start(&["--workers", "2", "--lease", "2s"]);
    for _ in 0..rounds(2, 30) {
        let accepted = (0..JOBS).map(|_| stack.accept("efficientnet-lite0", photo("rocket.jpg")));
        let ids = futures::future::join_all(accepted).await;
        let children = descendants(stack.pid());
        // Two workers; a NATS server is a child as well, and has its guard.
        assert!(children.len() >= if engine() == Engine::Own { 2 } else { 4 }, "{children:?}");
        stack.kill();
        eventually("all children are gone", async || children.iter().all(|(pid, _)| !is_alive(*pid)).then_some(()))
            .await;
        stack.restart();
        let jobs = all_end(&stack, &ids).await;
        assert_eq!(states(&jobs), [("succeeded".to_owned(), JOBS)].into(), "{}", stack.log());
    }
}

#[tokio::test]
async fn a_kill_in_the_middle_of_uploads_loses_nothing_that_was_accepted() {
    let mut stack = Stack::start(&["--workers", "1", "--lease", "2s"]);
    let accepted = std::sync::Mutex::new(Vec::new());
    let uploading = futures::future::join_all((0..8).map(|_| async {
        loop {
            let request = stack.upload("model=efficientnet-lite0", photo("rocket.jpg")).send().await;
            // The kill ends every connection.
            let Ok(response) = request else { return };
            if response.status() == 202 {
                let Ok(job) = response.json::<serde_json::Value>().await else { return };
                accepted.lock().expect("no panic").push(job["id"].as_str().expect("an id").to_owned());
            }
        }
    }));
    let killing = async {
        eventually("fifty are accepted", async || (accepted.lock().expect("no panic").len() > 50).then_some(())).await;
        signal(stack.pid(), "KILL");
    };
    tokio::join!(uploading, killing);
    let ids = accepted.into_inner().expect("no panic");
    stack.kill();
    stack.restart();
    let jobs = all_end(&stack, &ids).await;
    assert_eq!(states(&jobs), [("succeeded".to_owned(), ids.len())].into(), "{}", stack.log());
}

#[tokio::test]
async fn a_queue_that_is_killed_and_comes_back_has_everything() {
    let mut broker = Broker::start().await;
    let stack = Stack::start(&["--workers", "2", "--lease", "2s", "--queue", &broker.url()]);
    for _ in 0..rounds(2, 20) {
        let accepted = (0..JOBS).map(|_| stack.accept("efficientnet-lite0", photo("rocket.jpg")));
        let ids = futures::future::join_all(accepted).await;
        broker.kill();
        broker.restart().await;
        let jobs = all_end(&stack, &ids).await;
        assert_eq!(states(&jobs), [("succeeded".to_owned(), JOBS)].into(), "{}", stack.log());
        uploads_are_taken_again(&stack).await;
    }
}
