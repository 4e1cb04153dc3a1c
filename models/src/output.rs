//! A job's answer, as the HTTP API returns it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A model's answer to one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Output {
    /// Classes of the whole image, best first.
    Classification {
        /// At most `top_k`.
        predictions: Vec<Prediction>,
    },
    /// Objects, best first.
    Detection {
        /// Those above the threshold, after non-maximum suppression.
        detections: Vec<Detected>,
    },
    /// A vector that represents the image.
    Embedding {
        /// As many numbers as the model has dimensions.
        vector: Vec<f32>,
    },
}

/// One class of a classification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Prediction {
    /// Name of the class.
    pub label: String,
    /// Number of the class in the data set.
    pub class_id: u32,
    /// Probability, 0..1.
    pub score: f32,
}

/// One object of a detection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Detected {
    /// Name of the class.
    pub label: String,
    /// Number of the class in the data set.
    pub class_id: u32,
    /// Confidence, 0..1.
    pub score: f32,
    /// Where it is.
    #[serde(rename = "box")]
    pub bounds: Bounds,
}

/// A rectangle in pixels of the upright image, inside it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = BoundingBox)]
pub struct Bounds {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Horizontal extent.
    pub width: f32,
    /// Vertical extent.
    pub height: f32,
}

impl Bounds {
    /// Intersection over union with `other`: 0 if they are apart, 1 if they are equal.
    pub fn overlap(&self, other: &Self) -> f32 {
        let span = |a: f32, a_len: f32, b: f32, b_len: f32| ((a + a_len).min(b + b_len) - a.max(b)).max(0.0);
        let shared = span(self.x, self.width, other.x, other.width) * span(self.y, self.height, other.y, other.height);
        let union = self.width * self.height + other.width * other.height - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }
}
