//! Files of one folder, as the journal needs them.
//!
//! Durability: written bytes are on disk after [`File::sync`], names after [`Storage::sync_names`].
//! The journal relies on nothing else: neither on the order of writes, nor on sectors being written
//! whole.

use std::fmt::Debug;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the lock file.
const LOCK: &str = "lock";

/// A flat folder of files.
pub(crate) trait Storage: Send + Sync + Debug {
    /// Names of all files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Creates a file of this many zero bytes and allocates its disk space, so that later writes
    /// inside it do not run out of space.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>>;
    /// Opens a file to read and write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Renames a file, replacing any file with the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names and removals durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Size of the whole disk, bytes.
    fn disk_bytes(&self) -> io::Result<u64>;
    /// Free bytes of the disk.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file.
pub(crate) trait File: Send + Sync + Debug {
    /// Fills `buffer` from `offset`; fails if the file ends before that.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once everything written before is on disk.
    fn sync(&self) -> io::Result<()>;
    /// The file's length, bytes.
    fn bytes(&self) -> io::Result<u64>;
}

/// A folder of the file system.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Always open: making names durable must not depend on a free file descriptor.
    names: std::fs::File,
    /// Held as long as the folder is open.
    _lock: std::fs::File,
    /// Off only to show what a journal loses without it.
    sync: bool,
    /// Nothing is changed on disk.
    read_only: bool,
}

impl Folder {
    /// Opens an existing folder for inspection. Writes and removals have no effect.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it open.
    pub(crate) fn open_to_look(path: &Path) -> io::Result<Self> {
        let lock = private().create(true).truncate(false).write(true).open(path.join(LOCK))?;
        lock.try_lock()?;
        let names = std::fs::File::open(path)?;
        Ok(Self { path: path.to_owned(), names, _lock: lock, sync: false, read_only: true })
    }

    /// Creates the folder if it is missing, and locks it for this process.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it open.
    pub(crate) fn open(path: &Path, sync: bool) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if let (true, Some(parent)) = (sync, path.parent().filter(|parent| !parent.as_os_str().is_empty())) {
            std::fs::File::open(parent)?.sync_all()?;
        }
        let lock = private().create(true).truncate(false).write(true).open(path.join(LOCK))?;
        lock.try_lock()?;
        let names = std::fs::File::open(path)?;
        Ok(Self { path: path.to_owned(), names, _lock: lock, sync, read_only: false })
    }

    fn wrap(&self, file: std::fs::File) -> Arc<dyn File> {
        Arc::new(DiskFile { file, sync: self.sync, read_only: self.read_only })
    }
}

impl Storage for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let path = self.path.join(name);
        let file = private().read(true).write(true).create(true).truncate(true).open(&path)?;
        if bytes > 0 {
            let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
            if let Err(error) = taken {
                // A partly allocated file would keep its space.
                drop(std::fs::remove_file(&path));
                return Err(error.into());
            }
        }
        Ok(self.wrap(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        std::fs::File::options().read(true).write(true).open(self.path.join(name)).map(|file| self.wrap(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        if self.sync { self.names.sync_all() } else { Ok(()) }
    }

    fn disk_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(disk.f_blocks.saturating_mul(disk.f_frsize))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// These files hold uploads: other users of the machine must not read them.
pub(crate) fn private() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.mode(0o600);
    options
}

#[derive(Debug)]
struct DiskFile {
    file: std::fs::File,
    sync: bool,
    read_only: bool,
}

impl File for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.write_all_at(bytes, offset) }
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync { self.file.sync_data() } else { Ok(()) }
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
