//! The data folder: which process holds it, and how other commands find what runs on it.
//!
//! `up` leaves three small files for them: the broker's token, and the addresses of broker and API, which are not the
//! defaults if those ports were taken.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use queue::client::Address;

use crate::config::{DataArgs, QueueArgs};

const WEBHOOK_SECRET: &str = "webhook.secret";
const TOKEN: &str = "broker.token";
const BROKER_URL: &str = "broker.url";
const API_URL: &str = "api.url";
const DEFAULT_BROKER: &str = "nats://127.0.0.1:4222";
/// Locked while a secret is created.
const SECRETS_LOCK: &str = "secrets.lock";
/// A shorter token was truncated, or is too weak.
const TOKEN_CHARS_MIN: usize = 8;
/// The shortest key that Standard Webhooks allows.
const WEBHOOK_KEY_BYTES_MIN: usize = 24;
/// What any of our versions leaves in a data folder.
const OURS: [&str; 10] = [
    WEBHOOK_SECRET,
    TOKEN,
    BROKER_URL,
    API_URL,
    "lock",
    "nats-server.conf",
    "journal",
    "nats",
    "index.db",
    "index.db-wal",
];
const DEFAULT_API: &str = "http://127.0.0.1:8080";

/// The data folder, held by this process.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the folder if it is missing, and locks it.
    pub(crate) fn open(args: &DataArgs) -> anyhow::Result<Self> {
        let taken = Self::try_open(args)?;
        taken.with_context(|| {
            let shown = args.data.display();
            format!("data folder {shown} is in use by another sightline; stop it, or choose another folder with --data")
        })
    }

    /// The same; `None` if another process holds it.
    pub(crate) fn try_open(args: &DataArgs) -> anyhow::Result<Option<Self>> {
        let path = std::path::absolute(&args.data).context("find the data folder")?;
        let shown = path.display();
        let cannot = || format!("data folder {shown} is not writable; choose another one with --data");
        private_folder(&path).with_context(cannot)?;
        let lock = private().create(true).truncate(false).write(true).open(path.join("lock")).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock data folder {shown}")),
        }
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The broker's token; created at the first start.
    pub(crate) fn token(&self) -> anyhow::Result<String> {
        let make = || rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
        secret(&self.path, TOKEN, |token| token.len() >= TOKEN_CHARS_MIN, make)
    }

    /// Writes the addresses for other commands.
    pub(crate) fn announce(&self, broker: &Address, api: &str) -> anyhow::Result<()> {
        self.announce_broker(broker)?;
        self.write(API_URL, api)
    }

    /// Writes the broker's address for other commands.
    pub(crate) fn announce_broker(&self, broker: &Address) -> anyhow::Result<()> {
        self.write(BROKER_URL, &broker.to_string())
    }

    /// Writes a small file that only this user can read, whole or not at all.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        write_whole(&self.path, name, text)
    }
}

/// Creates a data folder that only this user can read. In an existing one, makes our files private: earlier versions
/// left uploads readable.
pub(crate) fn private_folder(path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // Durability: the folder itself must survive a power cut, or its contents do not.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        return Ok(());
    }
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    static WARNED: std::sync::Once = std::sync::Once::new();
    if mode & 0o077 != 0 {
        // Each role of a process calls this.
        WARNED.call_once(|| warn_of(path, mode));
    }
    for name in OURS {
        let ours = path.join(name);
        let Ok(about) = fs::symlink_metadata(&ours) else { continue };
        let mode = about.permissions().mode();
        if !about.is_symlink() && mode & 0o077 != 0 {
            fs::set_permissions(&ours, fs::Permissions::from_mode(mode & 0o700))?;
        }
    }
    Ok(())
}

fn warn_of(path: &Path, mode: u32) {
    tracing::warn!(
        "the data folder {} is open to other users (mode {mode:o}); `chmod 700` closes it. Its files are private",
        path.display()
    );
}

/// Writes a small file that only this user can read.
///
/// Durability: the text is on disk under another name before it takes its place, and the name is on disk
/// when this returns. So a power cut leaves the old file or the new one, never an empty one.
pub(crate) fn write_whole(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let write = || {
        let mut file = tempfile::Builder::new().prefix(name).suffix(".partial").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// A secret in a file of its own. If the file is missing or empty, a secret is created; one that is too weak to be what
/// we wrote is refused, since the file may have been truncated.
fn secret(
    folder: &Path,
    name: &str,
    is_strong: impl Fn(&str) -> bool,
    make: impl Fn() -> String,
) -> anyhow::Result<String> {
    let path = folder.join(name);
    // Several processes may share the folder: one creates the secret, the others read it.
    let lock = folder.join(SECRETS_LOCK);
    let lock = private()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .with_context(|| format!("open {}", lock.display()))?;
    lock.lock().with_context(|| format!("lock {}", folder.display()))?;
    if let Some(secret) = read_line(&path)? {
        if !is_strong(&secret) {
            bail!(
                "{} is damaged; restore it from a backup, or remove it, and the next start creates a new one",
                path.display()
            );
        }
        return Ok(secret);
    }
    let secret = make();
    write_whole(folder, name, &secret)?;
    Ok(secret)
}

/// The queue's address: from the flag, else as `up` left it, else the default.
pub(crate) fn queue_address(args: &QueueArgs) -> anyhow::Result<Address> {
    let text = match &args.queue {
        Some(said) => said.clone(),
        None => read_line(&args.data.data.join(BROKER_URL))?.unwrap_or_else(|| DEFAULT_BROKER.into()),
    };
    let address = Address::parse(&text)?;
    // The token is for the queue on this machine; another queue must not learn it.
    let token = if address.is_loopback() { read_line(&args.data.data.join(TOKEN))? } else { None };
    Ok(address.with_default_token(token))
}

/// The API's address: from the flag, else as `up` left it, else the default.
pub(crate) fn api_address(said: Option<&str>, data: &DataArgs) -> anyhow::Result<String> {
    match said {
        Some(said) => Ok(said.to_owned()),
        None => Ok(read_line(&data.data.join(API_URL))?.unwrap_or_else(|| DEFAULT_API.into())),
    }
}

/// The secret that signs webhooks; created at the first start. Several API processes may share the file.
pub(crate) fn webhook_secret(data: &Path) -> anyhow::Result<String> {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    private_folder(data).with_context(|| format!("create {}", data.display()))?;
    let is_strong = |secret: &str| {
        let key = secret.strip_prefix("whsec_").and_then(|key| BASE64_STANDARD.decode(key).ok());
        key.is_some_and(|key| key.len() >= WEBHOOK_KEY_BYTES_MIN)
    };
    let make = || format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
    secret(data, WEBHOOK_SECRET, is_strong, make)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// The text of a small file; `None` if it is missing or empty.
fn read_line(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}
