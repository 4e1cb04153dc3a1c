//! A vector, scaled to length 1 if the manifest asks for it.

use super::{OutputTensor, values};
use crate::manifest::Embedding;
use crate::{Output, OutputError};

pub(super) fn embed(section: &Embedding, outputs: &[OutputTensor]) -> Result<Output, OutputError> {
    let mut vector = values(outputs, &section.vector, 1)?.data.clone();
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    // A vector of zeros has no direction; it stays as it is.
    if section.normalize && length > 0.0 {
        vector.iter_mut().for_each(|v| *v /= length);
    }
    Ok(Output::Embedding { vector })
}
