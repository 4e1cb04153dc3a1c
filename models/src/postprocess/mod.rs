//! Turns a model's output tensors into an [`Output`].

mod classify;
mod detect;
mod embed;

use crate::manifest::Task;
use crate::{Manifest, Output, OutputError, Placement};

/// One output tensor of a run.
#[derive(Debug, Clone)]
pub struct OutputTensor {
    /// Its name in the graph.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

/// What a job may ask for; the manifest's values apply where it sets none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wishes {
    /// Most predictions or detections to return.
    pub top_k: Option<u32>,
    /// Lowest score to return, 0..1.
    pub threshold: Option<f32>,
}

/// The image that the outputs belong to, for converting boxes to its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// Width of the upright image, pixels.
    pub width: u32,
    /// Height of the upright image, pixels.
    pub height: u32,
    /// The area of the image that the model's input covers.
    pub placement: Placement,
}

/// Turns the outputs of one run into an answer.
///
/// # Errors
/// [`OutputError`] if the outputs do not match the manifest.
pub fn postprocess(
    manifest: &Manifest,
    labels: &[String],
    outputs: &[OutputTensor],
    frame: &Frame,
    wishes: Wishes,
) -> Result<Output, OutputError> {
    let section_checked = "the manifest was checked to have its task's section";
    match manifest.task {
        Task::Classification => {
            let section = manifest.classification.as_ref().expect(section_checked);
            classify::classify(section, labels, outputs, wishes)
        }
        Task::Detection => {
            let section = manifest.detection.as_ref().expect(section_checked);
            detect::detect(section, &manifest.input, labels, outputs, frame, wishes)
        }
        Task::Embedding => embed::embed(manifest.embedding.as_ref().expect(section_checked), outputs),
    }
}

/// The finite values of output `name`, shaped `[1, …]` with `axes` further axes.
fn values<'a>(outputs: &'a [OutputTensor], name: &str, axes: usize) -> Result<&'a OutputTensor, OutputError> {
    let tensor = outputs.iter().find(|t| t.name == name).ok_or_else(|| OutputError::Missing(name.into()))?;
    if tensor.shape.len() != axes + 1 || tensor.shape[0] != 1 {
        return Err(wrong_shape(tensor, format!("a batch of 1 and {axes} further axes")));
    }
    if !tensor.data.iter().all(|value| value.is_finite()) {
        return Err(OutputError::NotFinite(name.into()));
    }
    Ok(tensor)
}

fn wrong_shape(tensor: &OutputTensor, need: String) -> OutputError {
    OutputError::Shape { name: tensor.name.clone(), have: tensor.shape.clone(), need }
}

fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

#[cfg(test)]
mod tests;
