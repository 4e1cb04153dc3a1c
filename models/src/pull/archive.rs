//! Extracts named files from wheels (zip) and npm packages (gzipped tar).
//!
//! The caller gives each member its target path, so a path inside an archive never becomes a path
//! on disk.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::PullError;

/// A file in the archive and its target path.
type Member<'a> = (&'a str, PathBuf);

pub(super) fn unpack_wheel(archive: &Path, members: &[Member]) -> Result<(), PullError> {
    let file = File::open(archive).map_err(PullError::io(archive))?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| unreadable(archive, &error))?;
    for (name, target) in members {
        let mut member = zip.by_name(name).map_err(|_| no_member(archive, name))?;
        write(&mut member, target)?;
    }
    Ok(())
}

pub(super) fn unpack_tarball(archive: &Path, members: &[Member]) -> Result<(), PullError> {
    let file = File::open(archive).map_err(PullError::io(archive))?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(BufReader::new(file)));
    let mut missing: Vec<&Member> = members.iter().collect();
    for entry in tar.entries().map_err(|error| unreadable(archive, &error))? {
        let mut entry = entry.map_err(|error| unreadable(archive, &error))?;
        let path = entry.path_bytes().into_owned();
        if let Some(found) = missing.iter().position(|(name, _)| name.as_bytes() == path) {
            write(&mut entry, &missing.swap_remove(found).1)?;
        }
    }
    missing.first().map_or(Ok(()), |(name, _)| Err(no_member(archive, name)))
}

fn write(member: &mut impl Read, target: &Path) -> Result<(), PullError> {
    let mut file = File::create(target).map_err(PullError::io(target))?;
    std::io::copy(member, &mut file).map(drop).map_err(PullError::io(target))
}

fn no_member(archive: &Path, name: &str) -> PullError {
    PullError::NoMember { package: file_name(archive), member: name.to_owned() }
}

fn unreadable(archive: &Path, problem: &dyn std::fmt::Display) -> PullError {
    PullError::Archive { file: file_name(archive), problem: problem.to_string() }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
