//! The data folder: who has it, and how the other commands find what runs on it.
//!
//! `up` leaves three small files for them: the broker's token, and the addresses of broker and
//! API, which are not the usual ones when those ports were taken.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use queue::client::Address;

use crate::config::{DataArgs, QueueArgs};

const WEBHOOK_SECRET: &str = "webhook.secret";
const TOKEN: &str = "broker.token";
const BROKER_URL: &str = "broker.url";
const API_URL: &str = "api.url";
const DEFAULT_BROKER: &str = "nats://127.0.0.1:4222";
const DEFAULT_API: &str = "http://127.0.0.1:8080";

/// The data folder, held by this process.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if it is missing, and takes it.
    pub(crate) fn open(args: &DataArgs) -> anyhow::Result<Self> {
        let path = std::path::absolute(&args.data).context("find the data folder")?;
        let shown = path.display();
        let cannot = || format!("data folder {shown} cannot be written; choose another one with --data");
        // A folder that was there keeps its mode; what is secret in it has its own.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(cannot)?;
        let lock = private().create(true).truncate(false).write(true).open(path.join("lock")).with_context(cannot)?;
        if lock.try_lock().is_err() {
            bail!("data folder {shown} is in use by another sightline; stop that one, or choose another with --data");
        }
        Ok(Self { path, _lock: lock })
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The broker's token; made up at the first start.
    pub(crate) fn token(&self) -> anyhow::Result<String> {
        if let Some(token) = read_line(&self.path.join(TOKEN)) {
            return Ok(token);
        }
        let token: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
        self.write(TOKEN, &token)?;
        Ok(token)
    }

    /// Leaves the addresses for other commands.
    pub(crate) fn announce(&self, broker: &Address, api: &str) -> anyhow::Result<()> {
        self.announce_broker(broker)?;
        self.write(API_URL, api)
    }

    /// Leaves the broker's address for other commands.
    pub(crate) fn announce_broker(&self, broker: &Address) -> anyhow::Result<()> {
        self.write(BROKER_URL, &broker.to_string())
    }

    /// Writes a small file that only this user reads, whole or not at all.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let (path, partial) = (self.path.join(name), self.path.join(format!("{name}.partial")));
        let written = private().create(true).truncate(true).write(true).open(&partial).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.path)?.sync_all()
        });
        written.with_context(|| format!("write {}", path.display()))
    }
}

/// Where the queue is: as said, else where `up` left its address, else the usual place.
pub(crate) fn queue_address(args: &QueueArgs) -> anyhow::Result<Address> {
    let left = || read_line(&args.data.data.join(BROKER_URL));
    let text = args.queue.clone().or_else(left).unwrap_or_else(|| DEFAULT_BROKER.into());
    let address = Address::parse(&text)?;
    // The token is for the queue on this machine; another one must not learn it.
    let token = if address.is_loopback() { read_line(&args.data.data.join(TOKEN)) } else { None };
    Ok(address.with_default_token(token))
}

/// Where the API is: as said, else where `up` left its address, else the usual place.
pub(crate) fn api_address(said: Option<&str>, data: &DataArgs) -> String {
    let left = || read_line(&data.data.join(API_URL));
    said.map(str::to_owned).or_else(left).unwrap_or_else(|| DEFAULT_API.into())
}

/// What webhooks are signed with; made up at the first start. Several API processes are given the
/// same file.
pub(crate) fn webhook_secret(data: &Path) -> anyhow::Result<String> {
    use base64::Engine;
    let path = data.join(WEBHOOK_SECRET);
    if let Some(secret) = read_line(&path) {
        return Ok(secret);
    }
    fs::create_dir_all(data).with_context(|| format!("create {}", data.display()))?;
    let secret = format!("whsec_{}", base64::prelude::BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
    let written =
        private().create_new(true).write(true).open(&path).and_then(|mut file| file.write_all(secret.as_bytes()));
    match written {
        // Another process was first.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            read_line(&path).with_context(|| format!("{} is empty", path.display()))
        }
        written => written.map(|()| secret).with_context(|| format!("write {}", path.display())),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn read_line(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}
