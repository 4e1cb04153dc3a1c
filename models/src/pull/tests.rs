use std::cell::Cell;
use std::io::Write;

use super::*;

fn cache() -> (tempfile::TempDir, Cache) {
    let root = tempfile::tempdir().expect("temporary folder");
    let cache = Cache::new(root.path().join("cache"));
    (root, cache)
}

#[test]
fn a_thing_is_installed_once_and_found_from_then_on() {
    let (_root, cache) = cache();
    let fills = Cell::new(0);
    let fill = |folder: &Path| {
        fills.set(fills.get() + 1);
        std::fs::write(folder.join("file"), "whole").map_err(PullError::io(folder))
    };
    let first = cache.install("a/b", fill).expect("installed");
    let second = cache.install("a/b", fill).expect("found");
    assert_eq!((fills.get(), &first), (1, &second));
    assert_eq!(std::fs::read_to_string(first.join("file")).expect("there"), "whole");
}

#[test]
fn an_install_that_fails_or_is_cut_short_leaves_nothing_under_the_name() {
    let (_root, cache) = cache();
    let failed = cache.install("a", |folder| {
        std::fs::write(folder.join("file"), "half").map_err(PullError::io(folder))?;
        verify(&folder.join("file"), &"0".repeat(64))
    });
    assert!(matches!(failed, Err(PullError::Checksum { .. })));
    assert_eq!(cache.find("a"), None);

    // The next process removes what a killed one left behind.
    let left_over = cache.root().join(".partial-killed");
    std::fs::create_dir_all(left_over.join("sub")).expect("folder");
    cache.install("b", |_| Ok(())).expect("installed");
    assert!(!left_over.exists());
}

#[test]
fn many_at_once_fill_once() {
    let (_root, cache) = cache();
    let fills = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let fill = |_: &Path| {
                    fills.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Ok(())
                };
                cache.install("a", fill).expect("installed");
            });
        }
    });
    assert_eq!(fills.into_inner(), 1);
}

#[test]
fn archives_give_the_named_files_and_nothing_else() {
    let root = tempfile::tempdir().expect("temporary folder");
    let wheel = root.path().join("x.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).expect("file"));
    for name in ["in/side", "../../out/side"] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("entry");
        zip.write_all(name.as_bytes()).expect("bytes");
    }
    zip.finish().expect("zip");
    let target = root.path().join("target");
    archive::unpack_wheel(&wheel, &[("in/side", target.clone())]).expect("unpacks");
    assert_eq!(std::fs::read_to_string(&target).expect("there"), "in/side");
    let missing = archive::unpack_wheel(&wheel, &[("other", target.clone())]);
    assert!(matches!(missing, Err(PullError::NoMember { .. })));

    let tarball = root.path().join("x.tgz");
    let gzip =
        flate2::write::GzEncoder::new(std::fs::File::create(&tarball).expect("file"), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    tar.append_data(&mut header, "package/file", &b"bytes"[..]).expect("entry");
    tar.into_inner().and_then(flate2::write::GzEncoder::finish).expect("tarball");
    archive::unpack_tarball(&tarball, &[("package/file", target.clone())]).expect("unpacks");
    assert_eq!(std::fs::read_to_string(&target).expect("there"), "bytes");
    let missing = archive::unpack_tarball(&tarball, &[("package/other", target)]);
    assert!(matches!(missing, Err(PullError::NoMember { .. })));
}

#[test]
fn a_tool_that_fails_says_what_it_was_and_what_it_said() {
    let error = run(Command::new("sh").args(["-c", "echo first >&2; echo no such package >&2; exit 3"]));
    let text = error.expect_err("must fail").to_string();
    assert!(text.contains("sh -c") && text.contains("no such package"), "{text}");
}
