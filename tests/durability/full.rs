//! A small disk is filled with uploads. They are refused with a reason, those that were accepted
//! run, and then others are accepted, again and again.

use super::disk::Disk;
use super::harness::{Stack, descendants, eventually, photo, send, signal};
use super::rounds;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_drains_and_takes_again() {
    let Some(disk) = Disk::mount(64) else { return };
    let flags = ["--workers", "2", "--models", "efficientnet-lite0", "--queue-bytes", "1GiB", "--lease", "60s"];
    let stack = Stack::start_at(disk.path().join("data"), &flags);
    let workers: Vec<u32> = descendants(stack.pid())
        .into_iter()
        .filter(|(_, args)| args.contains(" worker --supervised"))
        .map(|(pid, _)| pid)
        .collect();
    let mut total = 0;
    for round in 0..rounds(3, 10) {
        // No worker drains it while it fills.
        workers.iter().for_each(|pid| signal(*pid, "STOP"));
        let mut accepted = Vec::new();
        let refused = loop {
            let answer = send(stack.upload("model=efficientnet-lite0", photo("chelsea.png"))).await;
            match answer.status {
                202 => accepted.push(answer.text("id")),
                _ => break answer,
            }
            assert!(accepted.len() < 1000, "64 MiB are never full");
        };
        assert_eq!((refused.status, refused.text("code").as_str()), (503, "queue_full"), "{}", refused.body);
        assert!(refused.headers.contains_key("retry-after"));
        assert!(accepted.len() > 50, "round {round}: full after {} uploads", accepted.len());
        workers.iter().for_each(|pid| signal(*pid, "CONT"));
        for id in &accepted {
            let job = stack.finish(id).await;
            assert_eq!(job["state"], "succeeded", "round {round}: {job}\n{}", stack.log());
        }
        eventually("uploads are taken again", async || {
            let answer = send(stack.upload("model=efficientnet-lite0", photo("chelsea.png"))).await;
            if answer.status == 202 {
                stack.finish(&answer.text("id")).await;
            }
            (answer.status == 202).then_some(())
        })
        .await;
        total += accepted.len();
    }
    println!("{total} uploads accepted by a disk of 64 MiB, all of them run");
}
