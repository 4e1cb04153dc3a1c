//! The power is cut in the first two seconds of the very first start: the next one is as if nothing had been.

use std::process::{Child, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::disk::Disk;
use super::harness::{Stack, sightline};

const FLAGS: [&str; 4] = ["--workers", "0..1", "--models", "efficientnet-lite0"];

fn start(data: &std::path::Path) -> Child {
    let mut command = sightline();
    command.args(["up", "--listen", "127.0.0.1:0", "--broker-listen", "127.0.0.1:0", "--data"]).arg(data).args(FLAGS);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it starts")
}

#[tokio::test]
async fn a_power_cut_in_the_first_start_leaves_a_folder_that_starts() {
    let Some(disk) = Disk::mount(400) else { return };
    let mut dice = StdRng::seed_from_u64(20);
    for turn in 0..20 {
        let data = disk.path().join(format!("data-{turn}"));
        let scissors = disk.scissors();
        let mut up = start(&data);
        // Any moment of it, which is what is tried here.
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..2_000))).await;
        scissors.cut();
        up.kill().and_then(|()| up.wait()).expect("it is gone");
        disk.restore();
        let stack = Stack::try_start_at(data.clone(), &FLAGS).unwrap_or_else(|log| panic!("turn {turn}: {log}"));
        assert_eq!(stack.get("/readyz").await.status, 200);
        drop(stack);
        std::fs::remove_dir_all(data).expect("removed");
    }
}
