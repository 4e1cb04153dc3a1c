//! One error type for each family of operations whose callers act differently.

use std::path::PathBuf;

/// Why a manifest was refused. Every variant names the file, and the key if there is one.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file could not be read.
    #[error("{file}: not readable")]
    Read {
        /// The manifest's path.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A key is missing, unknown, of the wrong type, or has an invalid value.
    #[error("{place}: key `{key}`: {problem}")]
    Key {
        /// The manifest's path, and the line if the parser knows it.
        place: String,
        /// Dotted path of the key, `.` for the document itself.
        key: String,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
}

/// Why the model repository could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A manifest was refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file or folder of a model could not be read.
    #[error("{path}: not readable")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder is not laid out as a model folder.
    #[error("{path}: {problem}")]
    Layout {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

/// Why an image was refused. [`ImageError::code`] is stable, and clients see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// There are no bytes.
    #[error("the image is empty; send the bytes of a JPEG, PNG, WebP, GIF or BMP file")]
    Empty,
    /// The first bytes match none of the known formats.
    #[error("not a JPEG, PNG, WebP, GIF or BMP file (judged by its first bytes, not by its name or type)")]
    Unsupported,
    /// A file of a known kind that we do not support.
    #[error("this is {name}; send a JPEG, PNG, WebP, GIF or BMP file")]
    Foreign {
        /// What it is, with its article.
        name: &'static str,
    },
    /// The format is supported, but not this kind of it.
    #[error("the {format} file is {kind}, which is not decoded; save it anew as an ordinary JPEG or PNG file")]
    UnsupportedKind {
        /// The format's name.
        format: &'static str,
        /// What is unusual about it.
        kind: &'static str,
    },
    /// The file is incomplete.
    #[error("the {format} file is cut off: it ends before its own end marker")]
    Truncated {
        /// The format's name.
        format: &'static str,
    },
    /// The header announces a larger image than we accept.
    #[error("the image is {width}x{height}; at most {side_max} a side and {pixels_max} pixels are accepted")]
    TooLarge {
        /// Announced width, pixels.
        width: u32,
        /// Announced height, pixels.
        height: u32,
        /// The limit for one side, pixels.
        side_max: u32,
        /// The limit for width × height.
        pixels_max: u64,
    },
    /// The file violates its format.
    #[error("the {format} file is damaged: {problem}")]
    Corrupt {
        /// The format's name.
        format: &'static str,
        /// The decoder's message.
        problem: String,
    },
}

impl ImageError {
    /// The stable code that clients see. A code is never reused for another meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "image_empty",
            Self::Unsupported | Self::Foreign { .. } | Self::UnsupportedKind { .. } => "image_unsupported",
            Self::Truncated { .. } => "image_truncated",
            Self::TooLarge { .. } => "image_too_large",
            Self::Corrupt { .. } => "image_corrupt",
        }
    }
}

/// A model's outputs do not match its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// The model has no output of that name.
    #[error("the model has no output `{0}`")]
    Missing(String),
    /// The output's shape does not fit.
    #[error("output `{name}` has shape {have:?}, needed {need}")]
    Shape {
        /// The output's name.
        name: String,
        /// The shape that the model returned.
        have: Vec<usize>,
        /// The expected shape, in words.
        need: String,
    },
    /// The output holds NaN or infinity.
    #[error("output `{0}` holds values that are not finite numbers")]
    NotFinite(String),
}

/// Why something could not be fetched into the cache.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The tool is not installed.
    #[error("{tool} is needed to fetch {package} and was not found; {advice}")]
    NoTool {
        /// `pip` or `npm`.
        tool: &'static str,
        /// The package to fetch.
        package: String,
        /// What the user can do.
        advice: &'static str,
    },
    /// The tool ran and failed.
    #[error("`{command}` failed: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// A downloaded file does not match its pinned checksum.
    #[error("{file} has sha256 {have}, pinned is {need}; nothing was installed")]
    Checksum {
        /// The file's name.
        file: String,
        /// The pinned checksum.
        need: String,
        /// The checksum of the downloaded file.
        have: String,
    },
    /// The package lacks a file.
    #[error("{package} holds no file `{member}`")]
    NoMember {
        /// The package.
        package: String,
        /// The file's path inside the package.
        member: String,
    },
    /// No build is pinned for this platform.
    #[error("{package} is pinned for Linux x86-64, Linux aarch64 and macOS arm64 only; {advice}")]
    Platform {
        /// The package.
        package: String,
        /// What the user can do.
        advice: &'static str,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: cannot be written or read")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The package is not a readable archive.
    #[error("{file} is not a readable archive: {problem}")]
    Archive {
        /// The file's name.
        file: String,
        /// The reader's message.
        problem: String,
    },
}

impl PullError {
    /// Turns an I/O error at `path` into a `PullError`, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
