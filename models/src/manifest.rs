//! A model's description: what goes in, what comes out, where its weights come from.
//!
//! The file is `model.toml` in the model's folder. It is read in two steps: serde turns text into the types below and
//! names any key that it rejects; [`Manifest::parse`] then checks what types cannot express. After that a `Manifest` is
//! valid by construction and is not checked again. A new classifier or detector needs such a file and no code.

use serde::{Deserialize, Serialize};

use crate::ManifestError;

/// The largest side of a model's input, pixels. A larger one is a mistake in the file.
const INPUT_SIDE_MAX: u32 = 4096;

/// A checked model description. Field names are the keys of `model.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's name, equal to its folder's: `^[a-z0-9][a-z0-9-]{0,62}$`.
    pub name: String,
    /// One sentence for people.
    pub description: String,
    /// SPDX expression of the weights' licence.
    pub license: String,
    /// What the model does; the section of the same name has the details.
    pub task: Task,
    /// The version that runs when a job names none: a numeric folder beside this file.
    pub version: u32,
    /// Runs on grey noise before a new session counts as ready.
    #[serde(default = "one")]
    pub warm_up_runs: u32,
    /// The input tensor.
    pub input: Input,
    /// Present when `task = "classification"`.
    pub classification: Option<Classification>,
    /// Present when `task = "detection"`.
    pub detection: Option<Detection>,
    /// Present when `task = "embedding"`.
    pub embedding: Option<Embedding>,
    /// Packages that hold the weights; none if the graph holds them itself.
    #[serde(default)]
    pub weights: Vec<Weights>,
}

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One score per class for the whole image.
    Classification,
    /// Boxes with a class and a score each.
    Detection,
    /// A vector that represents the image.
    Embedding,
}

impl Task {
    /// The name in manifests and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Detection => "detection",
            Self::Embedding => "embedding",
        }
    }
}

/// The input tensor: f32, one image, three channels.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The tensor's name in the graph.
    pub name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Position of the channel axis.
    pub layout: Layout,
    /// Order of the channels.
    pub color: Color,
    /// How the image is fitted to `width` × `height`.
    pub geometry: Geometry,
    /// The resampling filter.
    pub filter: Filter,
    /// Subtracted from values of 0..255, one per channel, in the order of `color`.
    #[serde(default)]
    pub mean: [f32; 3],
    /// Divisor after `mean` is subtracted. Exactly one of `std` and `scale` is given.
    pub std: Option<[f32; 3]>,
    /// Factor after `mean` is subtracted.
    pub scale: Option<f32>,
}

impl Input {
    /// What each channel is multiplied by after its mean is subtracted.
    pub fn factors(&self) -> [f32; 3] {
        match (self.std, self.scale) {
            (Some(std), _) => std.map(|value| 1.0 / value),
            (None, Some(scale)) => [scale; 3],
            (None, None) => [1.0; 3],
        }
    }
}

/// Position of the channel axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[1, 3, height, width]`
    Nchw,
    /// `[1, height, width, 3]`
    Nhwc,
}

/// Order of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// How an image of any shape becomes one of the input's shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Geometry {
    /// Scale the short side to `short_side`, keep the proportions, cut out the middle.
    Crop {
        /// Pixels, at least the larger side of the input.
        short_side: u32,
    },
    /// Scale both sides independently; proportions change.
    Stretch,
    /// Scale to fit, keep the proportions, fill the rest.
    Letterbox {
        /// Red, green and blue of the fill colour, 0..255.
        #[serde(default = "grey")]
        fill: [u8; 3],
    },
}

/// The resampling filter; when it shrinks an image, every filter but `Nearest` averages over the covered area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Triangle.
    Bilinear,
    /// Cubic with a = -0.5, as in Pillow.
    Bicubic,
    /// Lanczos, 3 lobes.
    Lanczos,
}

/// Outputs of a classifier.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classification {
    /// Name of the `[1, classes]` output.
    pub scores: String,
    /// What turns the output into probabilities.
    pub activation: Activation,
    /// File beside the manifest, one label per line.
    #[serde(skip_serializing)]
    pub labels: String,
    /// Most predictions to return, unless a job sets its own limit.
    #[serde(default = "five")]
    pub top_k: u32,
}

/// What turns a raw output into probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The graph already applies it.
    None,
    /// Over all classes.
    Softmax,
    /// Each class by itself.
    Sigmoid,
}

/// Outputs of a detector.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detection {
    /// Name of the `[1, boxes, 4]` output.
    pub boxes: String,
    /// What the four numbers of a box are.
    pub box_format: BoxFormat,
    /// What they are measured in.
    pub box_units: BoxUnits,
    /// Name of the `[1, boxes, classes]` output, background removed.
    pub scores: String,
    /// `none` or `sigmoid`.
    pub activation: Activation,
    /// File beside the manifest, one label per line; `?` marks an unused class.
    #[serde(skip_serializing)]
    pub labels: String,
    /// `class_id` of the first label.
    #[serde(default)]
    pub first_class_id: u32,
    /// Boxes below this score are dropped, unless a job sets its own threshold.
    pub threshold: f32,
    /// If two boxes of a class overlap by more than this (intersection over union), the one with the lower
    /// score is dropped.
    pub iou_threshold: f32,
    /// Most boxes to return, unless a job sets its own limit.
    #[serde(default = "hundred")]
    pub top_k: u32,
}

/// What the four numbers of a box are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxFormat {
    /// Left, top, right, bottom.
    Xyxy,
    /// Top, left, bottom, right.
    Yxyx,
    /// Centre x, centre y, width, height.
    Cxcywh,
}

/// What a box is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxUnits {
    /// Fractions of the model's input, 0..1.
    Fraction,
    /// Pixels of the model's input.
    Pixels,
}

/// Output of an embedding model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Name of the `[1, dimensions]` output.
    pub vector: String,
    /// Scale the vector to length 1.
    #[serde(default)]
    pub normalize: bool,
}

/// A package that holds weight files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Where the package is published.
    pub registry: Registry,
    /// The package's name there.
    pub package: String,
    /// The exact version.
    pub version: String,
    /// Checksum of the package file, 64 hexadecimal digits.
    pub sha256: String,
    /// The files to extract; they are stored beside the graph under their own names.
    pub files: Vec<WeightFile>,
}

/// A package registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    /// Python wheels.
    Pip,
    /// npm tarballs.
    Npm,
}

/// One file inside a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFile {
    /// Path inside the package.
    pub path: String,
    /// Checksum of the file, 64 hexadecimal digits.
    pub sha256: String,
}

impl WeightFile {
    /// The name under which the graph refers to it.
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

fn one() -> u32 {
    1
}
fn five() -> u32 {
    5
}
fn hundred() -> u32 {
    100
}
fn grey() -> [u8; 3] {
    [114; 3]
}

/// Whether `name` may be the name of a model (and of a topic): `^[a-z0-9][a-z0-9-]{0,62}$`.
pub fn is_valid_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

impl Manifest {
    /// Reads a manifest from `text`; `file` is its name in errors.
    ///
    /// # Errors
    /// [`ManifestError::Key`] with the first key that is missing, unknown or wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, ManifestError> {
        let refuse = |line: Option<usize>, key: &str, problem: String| {
            let place = line.map_or_else(|| file.to_owned(), |line| format!("{file}, line {line}"));
            ManifestError::Key { place, key: key.into(), problem }
        };
        let line = |error: &toml::de::Error| error.span().map(|span| line_at(text, span.start));
        let document = toml::Deserializer::parse(text)
            .map_err(|error| refuse(line(&error), ".", format!("not TOML: {}", one_line(&error))))?;
        let manifest: Self = serde_path_to_error::deserialize(document)
            .map_err(|error| refuse(line(error.inner()), &error.path().to_string(), one_line(error.inner())))?;
        manifest.check().map_err(|(key, problem)| refuse(None, key, problem))?;
        Ok(manifest)
    }

    /// The parts of the manifest that decide the answers, in a fixed form: not the name, the description, the licence
    /// or the default version.
    pub(crate) fn answers(&self) -> Vec<u8> {
        let sections = (&self.classification, &self.detection, &self.embedding);
        serde_json::to_vec(&(self.task, &self.input, sections, &self.weights)).expect("numbers and strings")
    }

    /// The labels file that the task's section names, if the task has labels.
    pub fn labels_file(&self) -> Option<&str> {
        match self.task {
            Task::Classification => self.classification.as_ref().map(|section| section.labels.as_str()),
            Task::Detection => self.detection.as_ref().map(|section| section.labels.as_str()),
            Task::Embedding => None,
        }
    }

    /// Checks what types cannot express, and returns the first problem.
    fn check(&self) -> Result<(), (&'static str, String)> {
        require(is_valid_name(&self.name), "name", || {
            format!("`{}` must match ^[a-z0-9][a-z0-9-]{{0,62}}$", self.name)
        })?;
        require(self.version > 0, "version", || "versions count from 1".into())?;
        self.input.check()?;
        self.check_sections()?;
        if let Some(labels) = self.labels_file() {
            require(!labels.is_empty() && !labels.contains(['/', '\\']), "labels", || {
                "must be a file name in the model's folder".into()
            })?;
        }
        if let Some(section) = &self.classification {
            require(section.top_k > 0, "classification.top_k", || "must be at least 1".into())?;
        }
        if let Some(section) = &self.detection {
            section.check()?;
        }
        self.weights.iter().try_for_each(Weights::check)
    }

    fn check_sections(&self) -> Result<(), (&'static str, String)> {
        let sections = [
            (Task::Classification, self.classification.is_some()),
            (Task::Detection, self.detection.is_some()),
            (Task::Embedding, self.embedding.is_some()),
        ];
        for (task, present) in sections {
            let wanted = task == self.task;
            require(present || !wanted, task.as_str(), || {
                format!("this section is missing, and task = \"{}\" needs it", task.as_str())
            })?;
            require(!present || wanted, task.as_str(), || {
                format!("this section does not belong to task = \"{}\"", self.task.as_str())
            })?;
        }
        Ok(())
    }
}

impl Input {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let fits = |side: u32| (1..=INPUT_SIDE_MAX).contains(&side);
        require(fits(self.width), "input.width", || format!("must be 1..{INPUT_SIDE_MAX}"))?;
        require(fits(self.height), "input.height", || format!("must be 1..{INPUT_SIDE_MAX}"))?;
        if let Geometry::Crop { short_side } = self.geometry {
            let least = self.width.max(self.height);
            require((least..=2 * INPUT_SIDE_MAX).contains(&short_side), "input.geometry.short_side", || {
                format!("must be at least the input's larger side, {least}")
            })?;
        }
        require(self.mean.iter().all(|v| v.is_finite()), "input.mean", || "must be finite".into())?;
        require(self.std.is_some() != self.scale.is_some(), "input.std", || {
            "exactly one of `input.std` and `input.scale` must be given".into()
        })?;
        let usable = |factor: f32| factor.is_finite() && factor != 0.0;
        require(self.factors().into_iter().all(usable), "input.std", || "must be finite and not 0".into())
    }
}

impl Detection {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let fraction = |value: f32| (0.0..=1.0).contains(&value);
        require(self.activation != Activation::Softmax, "detection.activation", || "must be none or sigmoid".into())?;
        require(fraction(self.threshold), "detection.threshold", || "must be 0..1".into())?;
        require(fraction(self.iou_threshold), "detection.iou_threshold", || "must be 0..1".into())?;
        require(self.top_k > 0, "detection.top_k", || "must be at least 1".into())
    }
}

impl Weights {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_sha256 = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        // A leading dash would reach pip or npm as an option.
        let plain = |text: &str| !text.is_empty() && !text.starts_with('-') && !text.contains(char::is_whitespace);
        require(plain(&self.package), "weights.package", || "must be a package name".into())?;
        require(plain(&self.version), "weights.version", || "must be an exact version".into())?;
        require(is_sha256(&self.sha256), "weights.sha256", || "must be 64 hexadecimal digits".into())?;
        require(!self.files.is_empty(), "weights.files", || "must name at least one file".into())?;
        for file in &self.files {
            require(is_sha256(&file.sha256), "weights.files.sha256", || "must be 64 hexadecimal digits".into())?;
            let name = file.file_name();
            require(!name.is_empty() && name != ".." && name != "model.onnx", "weights.files.path", || {
                format!("`{}` must end in a file name other than model.onnx", file.path)
            })?;
        }
        Ok(())
    }
}

fn require(holds: bool, key: &'static str, problem: impl FnOnce() -> String) -> Result<(), (&'static str, String)> {
    if holds { Ok(()) } else { Err((key, problem())) }
}

/// The line that holds byte `at` of a text, counted from 1.
fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

/// The parser's message without its excerpt of the source.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../repository/efficientnet-lite0/model.toml");

    #[track_caller]
    fn refused(change: impl Fn(&str) -> String, key: &str, problem: &str) {
        let text = change(GOOD);
        assert_ne!(text, GOOD, "the change did nothing");
        let error = Manifest::parse("x/model.toml", &text).expect_err("must be refused").to_string();
        let start = error.starts_with("x/model.toml: key") || error.starts_with("x/model.toml, line ");
        assert!(start && error.contains(&format!(": key `{key}`: ")) && error.contains(problem), "{error}");
    }

    #[test]
    fn the_built_in_manifests_are_accepted() {
        let manifest = Manifest::parse("model.toml", GOOD).expect("good");
        assert_eq!((manifest.input.width, manifest.task), (224, Task::Classification));
    }

    #[test]
    fn every_error_names_the_file_and_the_key() {
        let swap = |from: &'static str, to: &'static str| move |text: &str| text.replacen(from, to, 1);
        refused(swap("width = 224", ""), "input", "missing field `width`");
        refused(swap("width = 224", "width = \"wide\""), "input.width", "invalid type");
        refused(swap("width = 224", "width = 0"), "input.width", "1..4096");
        refused(swap("width = 224", "widht = 224"), "input.widht", "unknown field");
        refused(swap("short_side = 256", "short_side = 100"), "input.geometry.short_side", "at least");
        refused(swap("layout = \"nchw\"", "layout = \"chwn\""), "input.layout", "unknown variant");
        refused(swap("std = [128", "scale = 1.0\nstd = [128"), "input.std", "exactly one");
        refused(swap("std = [128", "std = [0"), "input.std", "not 0");
        refused(swap("name = \"eff", "name = \"../eff"), "name", "must match");
        refused(swap("task = \"classification\"", "task = \"detection\""), "classification", "does not belong");
        refused(swap("[classification]", "[classifications]"), "classifications", "unknown field");
        refused(swap("sha256 = \"f2", "sha256 = \"x2"), "weights.sha256", "hexadecimal");
        refused(|_| "task = ".into(), ".", "not TOML");
    }

    #[test]
    fn an_error_in_the_text_names_its_line() {
        let line_of = |wrong: &str| {
            let text = GOOD.replacen("width = 224", wrong, 1);
            let line = 1 + text[..text.find(wrong).expect("there")].matches('\n').count();
            let error = Manifest::parse("x/model.toml", &text).expect_err("must be refused").to_string();
            assert!(error.starts_with(&format!("x/model.toml, line {line}: ")), "{error}");
        };
        line_of("width = \"wide\"");
        line_of("widht = 224");
        line_of("width = = 224");
    }

    #[test]
    fn only_what_decides_answers_counts_as_answers() {
        let answers = |from: &str, to: &str| {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "the change did nothing");
            Manifest::parse("model.toml", &text).expect("good").answers()
        };
        let as_it_is = Manifest::parse("model.toml", GOOD).expect("good").answers();
        assert_eq!(answers("description = \"", "description = \"Edited. "), as_it_is);
        assert_eq!(answers("version = 1", "version = 2"), as_it_is);
        assert_ne!(answers("width = 224", "width = 225"), as_it_is);
        assert_ne!(answers("top_k = 5", "top_k = 3"), as_it_is);
    }
}
