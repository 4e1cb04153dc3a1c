//! The user's cache folder: shared by all checkouts, safe to delete, never half written.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::PullError;

/// Prefix of a folder's name while it is being filled.
const PARTIAL: &str = ".partial-";

/// A folder of complete downloads, each under its final name.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache in `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The default cache folder: `sightline` in the user's cache folder.
    ///
    /// `None` when the environment names neither a cache folder nor a home.
    pub fn default_root() -> Option<PathBuf> {
        let folder = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = || {
            folder("HOME").map(|home| home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
        };
        Some(folder("XDG_CACHE_HOME").or_else(home)?.join("sightline"))
    }

    /// The cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of `name`, if the cache has it.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        Some(self.root.join(name)).filter(|path| path.exists())
    }

    /// Returns the folder `name`; if it is missing, `fill` fills a temporary folder, which is then renamed.
    ///
    /// One process at a time fills it; others wait and use the result.
    ///
    /// # Errors
    /// Those of `fill`, and [`PullError::Io`]. After an error, nothing exists under `name`.
    pub fn install(&self, name: &str, fill: impl FnOnce(&Path) -> Result<(), PullError>) -> Result<PathBuf, PullError> {
        if let Some(path) = self.find(name) {
            return Ok(path);
        }
        let path = self.root.join(name);
        let parent = path.parent().unwrap_or(&self.root);
        std::fs::create_dir_all(parent).map_err(PullError::io(parent))?;
        let lock_path = self.root.join(".lock");
        let lock = File::create(&lock_path).map_err(PullError::io(&lock_path))?;
        lock.lock().map_err(PullError::io(&lock_path))?;
        // Another process may have filled it while we waited.
        if path.exists() {
            return Ok(path);
        }
        self.sweep();
        let partial =
            tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&self.root).map_err(PullError::io(&self.root))?;
        fill(partial.path())?;
        sync_files(partial.path())?;
        let partial = partial.keep();
        std::fs::rename(&partial, &path).map_err(PullError::io(&path))?;
        // Durability: the name must not survive a power cut without the bytes, nor get lost.
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(PullError::io(parent))?;
        Ok(path)
    }

    /// Removes what an interrupted process left. Called only while the lock is held, so no process is filling a folder.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return };
        for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PARTIAL)) {
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "leftover download not removed");
            }
        }
    }
}

fn sync_files(folder: &Path) -> Result<(), PullError> {
    for entry in std::fs::read_dir(folder).map_err(PullError::io(folder))? {
        let path = entry.map_err(PullError::io(folder))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(PullError::io(&path))?;
    }
    File::open(folder).and_then(|file| file.sync_all()).map_err(PullError::io(folder))
}
