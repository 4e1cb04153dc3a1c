//! Archives as people's tools write them: what goes in is an item, a failed item, or a counted skip.

use std::path::Path;
use std::process::Command;

use super::batches::finished;
use super::harness::{Stack, photo, send};

/// Writes a zip to a pipe, as streaming writers do, and to a file; `argv`: the folder, the method, the target.
const PYTHON_ZIP: &str = r"
import os, sys, zipfile
folder, method, target = sys.argv[1:]
class Pipe:
    def __init__(self, file): self.file = file
    def write(self, data): return self.file.write(data)
    def flush(self): self.file.flush()
method, _, streamed = method.partition('-')
with open(target, 'wb') as file:
    with zipfile.ZipFile(Pipe(file) if streamed else file, 'w', getattr(zipfile, method)) as out:
        for root, folders, files in os.walk(folder):
            for name in folders + files:
                path = os.path.join(root, name)
                out.write(path, os.path.relpath(path, folder))
";
const PYTHON_TAR: &str = r"
import sys, tarfile
folder, form, target = sys.argv[1:]
with tarfile.open(target, 'w', format=getattr(tarfile, form)) as out:
    out.add(folder, arcname='.')
";

/// A folder as they lie on people's disks: five images, two of which link to others, what is not an image, and litter.
fn folder(root: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).expect("written");
    std::fs::create_dir(root.join("sub")).expect("created");
    write("a.jpg", &photo("rocket.jpg"));
    write("b.png", &photo("chelsea.png"));
    write("sub/ü and more.jpg", &photo("china.jpg"));
    write("notes.txt", b"no image");
    write(".DS_Store", b"\0");
    std::fs::hard_link(root.join("a.jpg"), root.join("hard.jpg")).expect("linked");
    std::os::unix::fs::symlink("a.jpg", root.join("soft.jpg")).expect("linked");
}

/// One way to pack the folder.
struct Way {
    name: &'static str,
    command: Vec<String>,
    /// Links come as what they lead to.
    follows: bool,
    /// Everything in it is a failed item.
    fails: bool,
}

fn ways(folder: &str, target: &str) -> Vec<Way> {
    let way = |name, command: &[&str], follows| Way {
        name,
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        follows,
        fails: false,
    };
    let python = |name, script, kind, follows| way(name, &["python3", "-c", script, folder, kind, target], follows);
    let zip = |options: &str| format!("cd {folder} && rm -f {target} && zip -qr {options}");
    let piped = |options: &str| format!("cd {folder} && zip -qr {options} - . > {target}");
    vec![
        way("tar", &["tar", "cf", target, "-C", folder, "."], false),
        way("tar -h", &["tar", "chf", target, "--hard-dereference", "-C", folder, "."], true),
        python("tarfile, pax", PYTHON_TAR, "PAX_FORMAT", false),
        python("tarfile, gnu", PYTHON_TAR, "GNU_FORMAT", false),
        python("zipfile", PYTHON_ZIP, "ZIP_DEFLATED", true),
        python("zipfile, stored", PYTHON_ZIP, "ZIP_STORED", true),
        python("zipfile, streamed", PYTHON_ZIP, "ZIP_DEFLATED-streamed", true),
        python("zipfile, stored and streamed", PYTHON_ZIP, "ZIP_STORED-streamed", true),
        Way { fails: true, ..python("zipfile, bzip2", PYTHON_ZIP, "ZIP_BZIP2", true) },
        way("bsdtar", &["bsdtar", "cf", target, "-C", folder, "."], false),
        way("bsdtar, zip", &["bsdtar", "cf", target, "--format", "zip", "-C", folder, "."], false),
        way("zip", &["sh", "-c", &zip(&format!("{target} ."))], true),
        way("zip, streamed", &["sh", "-c", &piped("")], true),
        way("zip, stored and streamed", &["sh", "-c", &piped("-0")], true),
        Way { fails: true, ..way("zip, encrypted", &["sh", "-c", &zip(&format!("-P word {target} ."))], true) },
        Way { fails: true, ..way("zip, encrypted and streamed", &["sh", "-c", &piped("-P word")], true) },
    ]
}

#[tokio::test]
async fn what_goes_into_an_archive_adds_up_whichever_tool_packs_it() {
    let stack = Stack::start_indexed(&["--workers", "1", "--models", "efficientnet-lite0"]);
    let place = tempfile::tempdir().expect("a folder");
    let root = place.path().join("photos");
    std::fs::create_dir(&root).expect("created");
    folder(&root);
    let target = place.path().join("packed.zip");
    let (root, target) = (root.to_str().expect("UTF-8"), target.to_str().expect("UTF-8"));
    for (number, way) in ways(root, target).iter().enumerate() {
        // `.ci/run` installs them.
        let tool = if way.name.starts_with("zip,") || way.name == "zip" { "zip" } else { &way.command[0] };
        if ["zip", "bsdtar"].contains(&tool) && Command::new(tool).arg("--version").output().is_err() {
            eprintln!("SKIPPED: {}, since {tool} is missing", way.name);
            continue;
        }
        let packed = Command::new(&way.command[0]).args(&way.command[1..]).output().expect("runs");
        assert!(packed.status.success(), "{}: {}", way.name, String::from_utf8_lossy(&packed.stderr));
        let body = std::fs::read(target).expect("packed");
        let kind = if way.name.contains("tar") && !way.name.contains("zip") { "x-tar" } else { "zip" };
        let url = format!("/v1/batches/way-{number}?model=efficientnet-lite0");
        let put = stack.request(reqwest::Method::PUT, &url).header("content-type", format!("application/{kind}"));
        let taken = send(put.body(body)).await;
        assert_eq!(taken.status, 202, "{}: {}", way.name, taken.body);
        let counts = finished(&stack, &format!("way-{number}")).await["counts"].clone();
        // Three images, the hard link, the soft link, and the notes; a tar tells a hard link from its file, most zips
        // do not.
        let good = match (way.fails, way.follows) {
            (true, _) => 0,
            (false, true) => 5,
            (false, false) if kind == "zip" => 4,
            (false, false) => 3,
        };
        let have =
            [&counts["total"], &counts["succeeded"], &counts["failed"]].map(|count| count.as_u64().expect("a number"));
        assert_eq!(have, [6, good, 6 - good], "{}: {}", way.name, taken.body);
        let skipped = taken.json["skipped"]["names"].as_array().expect("a list");
        let skips = |wanted: &str| skipped.iter().any(|name| name.as_str().is_some_and(|name| name.contains(wanted)));
        assert!(skips(".DS_Store") && skips("sub/"), "{}: {}", way.name, taken.body);
    }
}
