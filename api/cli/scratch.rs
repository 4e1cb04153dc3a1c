//! A temporary folder for a measurement or a drill.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::output::note;

/// Removed on drop, with everything in it.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// Creates a folder inside `parent`.
    pub(crate) fn create(parent: &Path) -> anyhow::Result<Self> {
        let name = format!(".sightline-scratch-{:012x}", rand::random::<u64>() >> 16);
        let path = std::path::absolute(parent)?.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            note!("note: {} was not removed: {error}", self.0.display());
        }
    }
}
