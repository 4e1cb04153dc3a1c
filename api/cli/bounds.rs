//! What this machine allows one process to use, and how its parts share it.
//!
//! Open files: the journal, the database and the pipes to workers come first ([`RESERVE`]), since accepted jobs
//! cannot be kept without them; the rest is shared between clients of the API and of the broker. So a segment can
//! always be opened, however many connections clients open. Memory: request bodies that are held at a time take at
//! most an eighth of it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that connections never take: spares, segments and snapshots of the journal, some 48; the database, up to 24;
/// webhook calls, 128; three pipes per worker, and what libraries open for a moment.
const RESERVE: u64 = 320;
/// More connections than this are of no use to one process.
const CONNECTIONS_MAX: u64 = 16_384;
/// Most memory for request bodies, however much the machine has.
const BODIES_BYTES_MAX: u64 = 256 << 20;

/// The bounds of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Open files.
    files: u64,
    /// Bytes of memory, of the machine or of the container.
    memory: u64,
}

impl Bounds {
    /// Raises the limit of open files as far as this process may, and reads both bounds.
    pub(crate) fn of_this_process() -> Self {
        Self { files: raise_open_files(), memory: memory_bytes() }
    }

    /// Connections of a process that is only an API or only a broker: `sightline api`, `sightline broker`.
    pub(crate) fn connections_alone(self) -> usize {
        (self.connections() as usize).max(1)
    }

    /// Connections of the API if the broker is in the same process: three quarters.
    pub(crate) fn api_connections(self) -> usize {
        ((self.connections() * 3 / 4) as usize).max(1)
    }

    /// Connections of the broker if the API is in the same process.
    pub(crate) fn broker_connections(self) -> usize {
        ((self.connections() / 4) as usize).max(1)
    }

    /// Memory for request bodies, bytes.
    pub(crate) fn bodies_bytes(self) -> usize {
        (self.memory / 8).min(BODIES_BYTES_MAX) as usize
    }

    fn connections(self) -> u64 {
        // At least half: if the limit is too low for both, clients come first, and `raise_open_files` has warned.
        self.files.saturating_sub(RESERVE).max(self.files / 2).min(CONNECTIONS_MAX)
    }
}

/// Raises the limit of open files to the hard limit, and returns the new one.
fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum;
    if limit.current != wanted
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted })
    {
        tracing::debug!(%error, "limit of open files not raised");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < 2 * RESERVE {
        tracing::warn!(files, "limit of open files is low; raise it (ulimit -n) to at least 1024");
    }
    files
}

/// Memory of the machine, or of the container if that is less.
fn memory_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let container = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).map(str::to_owned)?;
        line.trim_end_matches("kB").trim().parse::<u64>().ok()
    });
    machine.map_or(u64::MAX, |kib| kib * 1024).min(container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_keeps_its_files_whatever_connections_take() {
        for files in [256, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
            let bounds = Bounds { files, memory: 1 << 33 };
            let taken = (bounds.api_connections() + bounds.broker_connections()) as u64;
            assert!(taken <= files / 2 || taken + RESERVE <= files, "{files}: {taken}");
            assert!(taken <= bounds.connections_alone() as u64);
            assert!(bounds.broker_connections() >= 32);
        }
    }

    #[test]
    fn bodies_take_an_eighth_of_a_small_machine() {
        assert_eq!(Bounds { files: 1024, memory: 1 << 30 }.bodies_bytes(), 128 << 20);
        assert_eq!(Bounds { files: 1024, memory: u64::MAX }.bodies_bytes(), 256 << 20);
    }
}
