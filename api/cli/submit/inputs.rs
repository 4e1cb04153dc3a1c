//! Which files to send.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use anyhow::{Context, bail};
use models::ImageError;
use models::decode::Format;

/// A file in a folder or tar counts if its name or its first bytes are those of an image; a file that is named itself
/// always counts. A file that counts but is not an image is refused, in a line of its own.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
const JUDGED_BYTES: u64 = 512;

/// The files that were skipped, by reason.
#[derive(Debug, Default)]
pub(crate) struct Skipped {
    counts: BTreeMap<String, usize>,
    /// Whether some of them look as if they were meant.
    pub(crate) are_meant: bool,
}

impl Skipped {
    /// Whether any file was skipped.
    pub(crate) fn is_any(&self) -> bool {
        !self.counts.is_empty()
    }

    fn note(&mut self, reason: &str, is_meant: bool) {
        *self.counts.entry(reason.to_owned()).or_default() += 1;
        self.are_meant |= is_meant;
    }

    /// Whether the file counts; if not, notes why.
    fn judge(&mut self, name: &str, file: io::Result<impl Read>) -> bool {
        let ending = name.rsplit(['/', '.']).next().unwrap_or_default().to_ascii_lowercase();
        if ENDINGS.contains(&ending.as_str()) {
            return true;
        }
        let begin = |file: &mut dyn Read| {
            let mut bytes = Vec::new();
            file.take(JUDGED_BYTES).read_to_end(&mut bytes).map(|_| bytes)
        };
        match file.and_then(|mut file| begin(&mut file)).map(|bytes| Format::judge(&bytes)) {
            Ok(Ok(_)) => return true,
            Ok(Err(ImageError::Foreign { name })) => {
                let name = name.trim_start_matches("an ").trim_start_matches("a ");
                self.note(name, FOREIGN_IMAGES.contains(&name));
            }
            Ok(Err(ImageError::Empty)) => self.note("empty", false),
            Ok(Err(_)) => self.note("not images", false),
            Err(_) => self.note("not readable", true),
        }
        false
    }
}

/// Unsupported kinds of image, counted so that a user sees what was left out.
const FOREIGN_IMAGES: [&str; 6] = [
    "HEIC image",
    "AVIF image",
    "TIFF image or a camera's raw file",
    "JPEG XL image",
    "JPEG 2000 image",
    "Photoshop document",
];

impl std::fmt::Display for Skipped {
    /// `6 files skipped: 3 HEIC image, 3 not images`; nothing if there are none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total: usize = self.counts.values().sum();
        if total == 0 {
            return Ok(());
        }
        let kinds: Vec<String> = self.counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        write!(f, "{total} files skipped: {}", kinds.join(", "))
    }
}

/// An image: a file, or an entry of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    /// Its name in the output.
    pub(super) name: String,
    place: ImageSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ImageSource {
    File,
    Entry { tar: PathBuf, offset: u64, size: u64 },
}

impl Input {
    /// When it was last changed; for an entry of a tar, when the tar was.
    pub(super) fn modified(&self) -> io::Result<SystemTime> {
        let path = match &self.place {
            ImageSource::File => Path::new(&self.name),
            ImageSource::Entry { tar, .. } => tar,
        };
        std::fs::metadata(path)?.modified()
    }

    /// Its bytes.
    pub(super) async fn read(&self) -> io::Result<Bytes> {
        let input = self.clone();
        tokio::task::spawn_blocking(move || match &input.place {
            ImageSource::File => std::fs::read(&input.name).map(Bytes::from),
            ImageSource::Entry { tar, offset, size } => {
                let mut file = File::open(tar)?;
                file.seek(SeekFrom::Start(*offset))?;
                let mut bytes = Vec::new();
                file.take(*size).read_to_end(&mut bytes)?;
                Ok(bytes.into())
            }
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// All images: files, and the entries of tars that are named. An image in a tar is named by the tar's name, a
/// colon, and its own.
pub(super) fn images(paths: &[String]) -> anyhow::Result<(Vec<Input>, Skipped)> {
    let mut images = BTreeMap::new();
    let (files, mut skipped) = collect(paths)?;
    for path in files {
        if path.ends_with(".tar") {
            entries(&path, &mut images, &mut skipped).with_context(|| format!("read {path} as a tar"))?;
        } else if [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"].iter().any(|ending| path.ends_with(ending)) {
            bail!("{path} is compressed; uncompress it first");
        } else {
            images.insert(path.clone(), Input { name: path, place: ImageSource::File });
        }
    }
    Ok((images.into_values().collect(), skipped))
}

fn entries(path: &str, images: &mut BTreeMap<String, Input>, skipped: &mut Skipped) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(File::open(path)?);
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_hard_link() || kind.is_symlink() {
            skipped.note("link in a tar", true);
            continue;
        }
        if !kind.is_file() {
            continue;
        }
        let Ok(inside) = String::from_utf8(entry.path_bytes().into_owned()) else {
            skipped.note("with a name that is not UTF-8", true);
            continue;
        };
        let (offset, size) = (entry.raw_file_position(), entry.size());
        if skipped.judge(&inside, Ok(&mut entry)) {
            let name = format!("{path}:{inside}");
            // As with tar itself, the last entry of a name counts.
            images.insert(name.clone(), Input { name, place: ImageSource::Entry { tar: path.into(), offset, size } });
        }
    }
    Ok(())
}

/// All files, each once, sorted by name. The output uses these names.
pub(crate) fn collect(paths: &[String]) -> anyhow::Result<(Vec<String>, Skipped)> {
    let (mut files, mut skipped) = (BTreeSet::new(), Skipped::default());
    for path in paths {
        if path == "-" {
            for line in std::io::stdin().lock().lines() {
                let line = line.context("read the list on standard input")?;
                if !line.trim().is_empty() {
                    add(line.trim(), &mut files, &mut skipped)?;
                }
            }
        } else {
            add(path, &mut files, &mut skipped)?;
        }
    }
    Ok((files.into_iter().collect(), skipped))
}

fn add(path: &str, files: &mut BTreeSet<String>, skipped: &mut Skipped) -> anyhow::Result<()> {
    let as_path = Path::new(path);
    if as_path.is_file() {
        files.insert(path.to_owned());
    } else if as_path.is_dir() {
        for entry in walkdir::WalkDir::new(as_path) {
            let entry = entry.with_context(|| format!("search {path}"))?;
            if entry.file_type().is_dir() {
                continue;
            }
            // A link to an image is an image; a link to a folder may lead back here.
            if !entry.path().is_file() {
                let is_link = entry.path().is_dir();
                skipped.note(if is_link { "link to a folder" } else { "not files" }, is_link);
                continue;
            }
            match entry.path().to_str() {
                Some(name) if skipped.judge(name, File::open(name)) => drop(files.insert(name.to_owned())),
                Some(_) => {}
                None => skipped.note("with a name that is not UTF-8", true),
            }
        }
    } else {
        let matches = glob::glob(path).with_context(|| format!("`{path}` is not a file, a folder or a pattern"))?;
        let mut matched = false;
        for found in matches {
            let found = found.with_context(|| format!("search {path}"))?;
            if found.is_file() {
                matched = true;
                files.insert(text(&found)?);
            }
        }
        if !matched {
            bail!("no file, folder or match for `{path}`");
        }
    }
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("the name of {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_globs_and_files_are_found_once() {
        let photos = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/photos");
        let paths = [photos.into(), format!("{photos}/*.png"), format!("{photos}/china.jpg")];
        let (all, skipped) = collect(&paths).expect("found");
        assert_eq!(all.len(), 6, "{all:?}");
        assert_eq!((skipped.to_string(), skipped.are_meant), ("2 files skipped: 2 not images".into(), false));
        let (named, skipped) = collect(&[format!("{photos}/expected.json")]).expect("a file that is named counts");
        assert_eq!((named.len(), skipped.to_string()), (1, String::new()));
        assert!(collect(&[format!("{photos}/*.tiff")]).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_is_judged_by_names_and_by_what_is_in_it() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &OsStr, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
        let jpeg = b"\xFF\xD8\xFF\xE0";
        for name in ["IMG_1.jfif", "no ending", "wrong.txt"] {
            write(OsStr::new(name), jpeg);
        }
        write(OsStr::new("IMG_2.HEIC"), b"\0\0\0\x18ftypheic");
        write(OsStr::new("IMG_3.jpg"), b"\0\0\0\x18ftypheic");
        write(OsStr::new("notes.jpg"), b"no image");
        write(OsStr::new("nothing"), b"");
        write(OsStr::new("notes.txt"), b"no image");
        write(OsStr::from_bytes(b"caf\xE9.jpg"), jpeg);
        std::os::unix::fs::symlink("IMG_1.jfif", folder.path().join("link.jpg")).expect("linked");
        std::os::unix::fs::symlink("..", folder.path().join("up")).expect("linked");
        let (found, skipped) = collect(&[folder.path().display().to_string()]).expect("found");
        let names: Vec<_> = found.iter().map(|path| path.rsplit('/').next().expect("a name")).collect();
        assert_eq!(names, ["IMG_1.jfif", "IMG_3.jpg", "link.jpg", "no ending", "notes.jpg", "wrong.txt"]);
        assert!(skipped.are_meant);
        let words =
            "5 files skipped: 1 HEIC image, 1 empty, 1 link to a folder, 1 not images, 1 with a name that is not UTF-8";
        assert_eq!(skipped.to_string(), words);
    }

    #[tokio::test]
    async fn images_in_a_tar_are_read_where_they_lie() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut builder = tar::Builder::new(File::create(path("night.tar")).expect("created"));
        let (one, again, two) = ("GIF89a one", "GIF89a again", "BM two");
        let files = [("a/1.jpg", one), ("a/notes.txt", "no image"), ("2.png", two), ("a/1.jpg", again)];
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name, content.as_bytes()).expect("written");
        }
        builder.finish().expect("finished");
        let (found, skipped) = images(&[path("night.tar")]).expect("found");
        assert_eq!(skipped.to_string(), "1 files skipped: 1 not images");
        let mut read = Vec::new();
        for image in &found {
            read.push((image.name.clone(), image.read().await.expect("read")));
        }
        let named = |name: &str| format!("{}:{name}", path("night.tar"));
        assert_eq!(read, [(named("2.png"), two.into()), (named("a/1.jpg"), again.into())]);
        std::fs::write(path("torn.tar"), "no tar").expect("written");
        assert!(format!("{:#}", images(&[path("torn.tar")]).expect_err("refused")).contains("as a tar"));
        std::fs::write(path("x.tar.gz"), "").expect("written");
        assert!(images(&[path("x.tar.gz")]).expect_err("refused").to_string().contains("uncompress it first"));
    }
}
