//! What our broker promises when it is killed, when the power is cut, and when the disk is full.
//!
//! The short form runs always. `SIGHTLINE_FAULTS=long cargo test --release --test durability`
//! repeats each fault many times. Power cuts and small disks are loop-mounted images: Linux, root.

#[path = "../harness/mod.rs"]
mod harness;

/// A disk of its own, whose power can be cut.
mod disk;
/// The broker is killed, again and again, under load.
mod kills;
/// The power is cut, with and without syncs.
mod power;
/// The power is cut before anything was ever done.
mod first_start;
/// One system call fails.
mod shim;
/// The disk is full, and drains.
mod full;
/// Room comes back.
mod space;
/// Copies under load, and decay.
mod backup;

/// How often a fault is repeated.
fn rounds(short: usize, long: usize) -> usize {
    if std::env::var("SIGHTLINE_FAULTS").is_ok_and(|form| form == "long") { long } else { short }
}

/// A small generator, so that a run can be told apart and repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}
