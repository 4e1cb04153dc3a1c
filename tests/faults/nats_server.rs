//! The NATS server as a child of `up`.

use super::harness::{Stack, descendants, photo, signal};
use super::{all_end, rounds, states, uploads_are_taken_again};

const JOBS: usize = 40;

#[tokio::test]
async fn a_killed_queue_server_is_replaced_and_work_goes_on() {
    let stack = Stack::start_on_nats(&["--workers", "2", "--lease", "2s"]);
    for _ in 0..rounds(1, 20) {
        let accepted = (0..JOBS).map(|_| stack.accept("efficientnet-lite0", photo("rocket.jpg")));
        let ids = futures::future::join_all(accepted).await;
        let is_guard = |args: &str| args.contains(" guard ");
        let all = descendants(stack.pid());
        let server_pid = all.iter().find(|(_, args)| args.contains("--config") && !is_guard(args)).expect("a server").0;
        signal(server_pid, "KILL");
        let jobs = all_end(&stack, &ids).await;
        assert_eq!(states(&jobs), [("succeeded".to_owned(), JOBS)].into(), "{}", stack.log());
        uploads_are_taken_again(&stack).await;
    }
}
