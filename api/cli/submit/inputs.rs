//! Which files are meant.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, bail};

/// What counts as an image inside a folder. A file that is named itself always counts.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

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
}
