//! Files in memory, with simulated power cuts: each sector that was not synced survives or is lost.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::storage::{File, Storage};

const SECTOR_BYTES: usize = 512;

/// A disk in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    state: Mutex<DiskState>,
    power: Arc<Power>,
}

/// Counts operations on the disk, and makes them fail.
#[derive(Debug, Default)]
struct Power {
    /// Steps left before it fails; `None` is never.
    left: Mutex<Option<u64>>,
    steps: AtomicU64,
}

impl Power {
    /// One step on the disk.
    fn step(&self) -> io::Result<()> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if let Some(left) = self.left.lock().expect("no panic").as_mut() {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct DiskState {
    files: BTreeMap<String, Arc<MemoryFile>>,
    /// Names as they are on disk.
    synced: BTreeMap<String, Arc<MemoryFile>>,
}

#[derive(Debug, Default)]
struct MemoryFile {
    content: Mutex<Content>,
    /// How many syncs succeed before they begin to fail.
    syncs_left: Mutex<Option<u64>>,
    power: Arc<Power>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

impl Memory {
    /// A disk with these files, all durable.
    pub(crate) fn with(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Arc<Self> {
        let memory = Self::default();
        {
            let mut state = memory.state.lock().expect("no panic");
            for (name, bytes) in files {
                let content = Content { now: bytes.clone(), synced: bytes };
                state.files.insert(name, Arc::new(memory.file(content)));
            }
            state.synced = state.files.clone();
        }
        Arc::new(memory)
    }

    fn file(&self, content: Content) -> MemoryFile {
        MemoryFile { content: Mutex::new(content), syncs_left: Mutex::default(), power: self.power.clone() }
    }

    /// Makes every step fail after this many successful ones.
    pub(crate) fn fail_after(&self, steps: u64) {
        *self.power.left.lock().expect("no panic") = Some(steps);
    }

    /// Steps that were attempted.
    pub(crate) fn steps(&self) -> u64 {
        self.power.steps.load(Ordering::Relaxed)
    }

    /// All files as they are.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.state.lock().expect("no panic");
        let bytes = |file: &MemoryFile| file.content.lock().expect("no panic").now.clone();
        state.files.iter().map(|(name, file)| (name.clone(), bytes(file))).collect()
    }

    /// What a power cut leaves: `coin` decides whether unsynced names survive, and which unsynced sectors.
    pub(crate) fn cut(&self, coin: &mut dyn FnMut() -> bool) -> Vec<(String, Vec<u8>)> {
        let state = self.state.lock().expect("no panic");
        let names = if coin() { &state.files } else { &state.synced };
        let mut left = Vec::new();
        for (name, file) in names {
            let content = file.content.lock().expect("no panic");
            let mut bytes = content.synced.clone();
            bytes.resize(content.now.len(), 0);
            for (old, new) in bytes.chunks_mut(SECTOR_BYTES).zip(content.now.chunks(SECTOR_BYTES)) {
                if old != new && coin() {
                    old.copy_from_slice(new);
                }
            }
            left.push((name.clone(), bytes));
        }
        left
    }

    /// Makes the sync of every file fail after this many successful ones.
    pub(crate) fn fail_syncs_after(&self, count: u64) {
        let state = self.state.lock().expect("no panic");
        state.files.values().for_each(|file| *file.syncs_left.lock().expect("no panic") = Some(count));
    }
}

impl Storage for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().expect("no panic").files.keys().cloned().collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
        self.power.step()?;
        let content = Content { now: vec![0; bytes as usize], synced: Vec::new() };
        let file = Arc::new(self.file(content));
        self.state.lock().expect("no panic").files.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let state = self.state.lock().expect("no panic");
        let file = state.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.clone())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.power.step()?;
        let mut state = self.state.lock().expect("no panic");
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.power.step()?;
        let mut state = self.state.lock().expect("no panic");
        state.files.remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.power.step()?;
        let mut state = self.state.lock().expect("no panic");
        state.synced = state.files.clone();
        Ok(())
    }

    fn disk_bytes(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content.lock().expect("no panic");
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(content.now.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.power.step()?;
        let mut content = self.content.lock().expect("no panic");
        let end = offset as usize + bytes.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.power.step()?;
        if let Some(left) = self.syncs_left.lock().expect("no panic").as_mut() {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the disk is gone"))?;
        }
        let mut content = self.content.lock().expect("no panic");
        content.synced = content.now.clone();
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.content.lock().expect("no panic").now.len() as u64)
    }
}
