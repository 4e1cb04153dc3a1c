//! A disk of its own: an ext4 image in a file, mounted through a loop device.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The image, mounted for as long as this is kept.
pub(crate) struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Makes and mounts a disk of this many MiB. `None`, with a message, where that is not allowed.
    pub(crate) fn mount(mib: u64) -> Option<Self> {
        let uid = Command::new("id").arg("-u").output().expect("id runs");
        if !cfg!(target_os = "linux") || uid.stdout.trim_ascii() != b"0" {
            eprintln!("SKIPPED: mounting a disk image takes Linux and root");
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let disk = Self { folder };
        let image = std::fs::File::create(disk.image()).expect("created");
        image.set_len(mib << 20).expect("sized");
        std::fs::create_dir(disk.path()).expect("created");
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(disk.image()));
        disk.attach();
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn attach(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()));
    }

    /// Gets everything ready to cut the power, so that the cut itself takes no time.
    pub(crate) fn scissors(&self) -> Scissors {
        // EXT4_IOC_SHUTDOWN with "no log flush": from then on nothing reaches the disk, not even what
        // the journal of the file system holds.
        let script = "import fcntl,os,struct,sys\n\
                      disk=os.open(sys.argv[1],os.O_RDONLY)\n\
                      print('ready',flush=True)\n\
                      sys.stdin.readline()\n\
                      fcntl.ioctl(disk,0x8004587d,struct.pack('I',2))";
        let mut command = Command::new("python3");
        command.arg("-c").arg(script).arg(self.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python runs");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("it says so");
        Scissors(child)
    }

    /// Power is back; no process may have a file open on it.
    pub(crate) fn restore(&self) {
        unmount(&self.path());
        self.attach();
    }
}

/// A process that waits to cut the power.
pub(crate) struct Scissors(Child);

impl Scissors {
    /// Cuts it.
    pub(crate) fn cut(mut self) {
        self.0.stdin.take().expect("piped").write_all(b"\n").expect("told");
        assert!(self.0.wait().expect("it ends").success(), "the power was not cut");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

fn unmount(path: &Path) {
    // A process that was killed just now may hold it for a moment.
    for _ in 0..500 {
        let output = Command::new("umount").arg(path).output().expect("umount runs");
        if output.status.success() || String::from_utf8_lossy(&output.stderr).contains("not mounted") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    eprintln!("{} could not be unmounted", path.display());
}

fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
