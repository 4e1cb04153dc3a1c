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
