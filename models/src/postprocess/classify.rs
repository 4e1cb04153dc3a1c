//! Activation, then the best `top_k` classes.

use super::{OutputTensor, Wishes, sigmoid, values, wrong_shape};
use crate::manifest::{Activation, Classification};
use crate::output::Prediction;
use crate::{Output, OutputError};

pub(super) fn classify(
    section: &Classification,
    labels: &[String],
    outputs: &[OutputTensor],
    wishes: Wishes,
) -> Result<Output, OutputError> {
    let tensor = values(outputs, &section.scores, 1)?;
    if tensor.data.len() != labels.len() {
        return Err(wrong_shape(tensor, format!("[1, {}], one a label", labels.len())));
    }
    let scores = match section.activation {
        Activation::None => tensor.data.clone(),
        Activation::Sigmoid => tensor.data.iter().map(|v| sigmoid(*v)).collect(),
        Activation::Softmax => softmax(&tensor.data),
    };
    let threshold = wishes.threshold.unwrap_or(0.0);
    let mut ranked: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] >= threshold).collect();
    // Equal scores keep the order of their classes, so that answers are repeatable.
    ranked.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    ranked.truncate(wishes.top_k.unwrap_or(section.top_k) as usize);
    let prediction = |i: usize| Prediction { label: labels[i].clone(), class_id: i as u32, score: scores[i] };
    Ok(Output::Classification { predictions: ranked.into_iter().map(prediction).collect() })
}

/// Probabilities that add up to 1. The largest logit is subtracted first, so that nothing overflows.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|v| (v - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|v| v / sum).collect()
}
