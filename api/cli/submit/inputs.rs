//! Which files are meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use anyhow::{Context, bail};

/// What counts as an image inside a folder. A file that is named itself always counts.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// An image: a file, or a part of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    /// What it is called in the output.
    pub(super) name: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File,
    Entry { tar: PathBuf, offset: u64, size: u64 },
}

impl Input {
    /// Its bytes.
    pub(super) async fn read(&self) -> io::Result<Bytes> {
        let input = self.clone();
        tokio::task::spawn_blocking(move || match &input.place {
            Place::File => std::fs::read(&input.name).map(Bytes::from),
            Place::Entry { tar, offset, size } => {
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

/// All images: files, and what lies in tars that are named. An image in a tar is called by the tar's
/// name, a colon, and its own.
pub(super) fn images(paths: &[String]) -> anyhow::Result<Vec<Input>> {
    let mut images = BTreeMap::new();
    for path in collect(paths)? {
        if path.ends_with(".tar") {
            entries(&path, &mut images).with_context(|| format!("read {path} as a tar"))?;
        } else if [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"].iter().any(|ending| path.ends_with(ending)) {
            bail!("{path} is compressed, which gains nothing for images: unpack it first");
        } else {
            images.insert(path.clone(), Input { name: path, place: Place::File });
        }
    }
    Ok(images.into_values().collect())
}

fn entries(path: &str, images: &mut BTreeMap<String, Input>) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(File::open(path)?);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let inside = entry.path()?;
        if entry.header().entry_type().is_file() && is_image(&inside) {
            let name = format!("{path}:{}", text(&inside)?);
            let (offset, size) = (entry.raw_file_position(), entry.size());
            // As with tar itself, the last one of a name counts.
            images.insert(name.clone(), Input { name, place: Place::Entry { tar: path.into(), offset, size } });
        }
    }
    Ok(())
}

/// All files, each once, in the order of their names. A file's name as it stands here is what it
/// is called in the output.
pub(crate) fn collect(paths: &[String]) -> anyhow::Result<Vec<String>> {
    let mut files = BTreeSet::new();
    for path in paths {
        if path == "-" {
            for line in std::io::stdin().lock().lines() {
                let line = line.context("read the list on standard input")?;
                if !line.trim().is_empty() {
                    add(line.trim(), &mut files)?;
                }
            }
        } else {
            add(path, &mut files)?;
        }
    }
    Ok(files.into_iter().collect())
}

fn add(path: &str, files: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let as_path = Path::new(path);
    if as_path.is_file() {
        files.insert(path.to_owned());
    } else if as_path.is_dir() {
        for entry in walkdir::WalkDir::new(as_path) {
            let entry = entry.with_context(|| format!("search {path}"))?;
            if entry.file_type().is_file() && is_image(entry.path()) {
                files.insert(text(entry.path())?);
            }
        }
    } else {
        let matches = glob::glob(path).with_context(|| format!("`{path}` is no file, no folder and no pattern"))?;
        let mut matched = false;
        for found in matches {
            let found = found.with_context(|| format!("search {path}"))?;
            if found.is_file() {
                matched = true;
                files.insert(text(&found)?);
            }
        }
        if !matched {
            bail!("there is no file, folder or match for `{path}`");
        }
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
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
        let all = collect(&[photos.into(), format!("{photos}/*.png"), format!("{photos}/china.jpg")]).expect("found");
        assert_eq!(all.len(), 6, "{all:?}");
        let named = collect(&[format!("{photos}/expected.json")]).expect("a file that is named counts");
        assert_eq!(named.len(), 1);
        assert!(collect(&[format!("{photos}/*.tiff")]).is_err());
    }

    #[tokio::test]
    async fn images_in_a_tar_are_read_where_they_lie() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut builder = tar::Builder::new(File::create(path("night.tar")).expect("created"));
        let files = [("a/1.jpg", "one"), ("a/notes.txt", "no image"), ("2.png", "two"), ("a/1.jpg", "again")];
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name, content.as_bytes()).expect("written");
        }
        builder.finish().expect("finished");
        let found = images(&[path("night.tar")]).expect("found");
        let mut read = Vec::new();
        for image in &found {
            read.push((image.name.clone(), image.read().await.expect("read")));
        }
        let named = |name: &str| format!("{}:{name}", path("night.tar"));
        assert_eq!(read, [(named("2.png"), "two".into()), (named("a/1.jpg"), "again".into())]);
        std::fs::write(path("torn.tar"), "no tar").expect("written");
        assert!(format!("{:#}", images(&[path("torn.tar")]).expect_err("refused")).contains("as a tar"));
        std::fs::write(path("x.tar.gz"), "").expect("written");
        assert!(images(&[path("x.tar.gz")]).expect_err("refused").to_string().contains("unpack it first"));
    }
}
