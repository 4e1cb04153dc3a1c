//! Boxes above the threshold, suppressed class by class, in pixels of the upright image.

use super::{Frame, OutputTensor, Wishes, sigmoid, values, wrong_shape};
use crate::manifest::{Activation, BoxFormat, BoxUnits, Detection, Input};
use crate::output::{Bounds, Detected};
use crate::{Output, OutputError};

/// Most candidates of all classes, and of one class, that enter suppression, which is quadratic; the best are kept.
const CANDIDATES_MAX: usize = 30_000;
const CANDIDATES_OF_CLASS_MAX: usize = 1_000;

pub(super) fn detect(
    section: &Detection,
    input: &Input,
    labels: &[String],
    outputs: &[OutputTensor],
    frame: &Frame,
    wishes: Wishes,
) -> Result<Output, OutputError> {
    let scores = values(outputs, &section.scores, 2)?;
    let boxes = values(outputs, &section.boxes, 2)?;
    let (count, classes) = (scores.shape[1], scores.shape[2]);
    if classes != labels.len() {
        return Err(wrong_shape(scores, format!("[1, boxes, {}], one class a label", labels.len())));
    }
    if boxes.shape[1..] != [count, 4] {
        return Err(wrong_shape(boxes, format!("[1, {count}, 4], one box a row of scores")));
    }
    let threshold = wishes.threshold.unwrap_or(section.threshold);
    let score = |row: usize, class: usize| match section.activation {
        Activation::Sigmoid => sigmoid(scores.data[row * classes + class]),
        Activation::None | Activation::Softmax => scores.data[row * classes + class],
    };
    let to_pixels = ToPixels::new(section, input, frame);
    let used = (0..classes).filter(|class| labels[*class] != "?");
    let scored = used.flat_map(|class| (0..count).map(move |row| (class, row)));
    let mut candidates: Vec<_> =
        scored.map(|(class, row)| (score(row, class), class, row)).filter(|(score, ..)| *score >= threshold).collect();
    // With a threshold of 0, every box of every class is a candidate.
    if candidates.len() > CANDIDATES_MAX {
        candidates.select_nth_unstable_by(CANDIDATES_MAX, |a, b| b.0.total_cmp(&a.0));
        candidates.truncate(CANDIDATES_MAX);
    }
    candidates.sort_by(|a, b| a.1.cmp(&b.1).then(b.0.total_cmp(&a.0)).then(a.2.cmp(&b.2)));
    let mut detections = Vec::new();
    for candidates in candidates.chunk_by(|a, b| a.1 == b.1) {
        let class = candidates[0].1;
        let best = candidates.iter().take(CANDIDATES_OF_CLASS_MAX);
        let best = best.map(|(score, _, row)| (*score, to_pixels.bounds(&boxes.data[row * 4..row * 4 + 4]))).collect();
        for (score, bounds) in suppress(best, section.iou_threshold) {
            let bounds = to_pixels.clip(bounds);
            // Some models detect objects in the padding around an image.
            if bounds.width > 0.0 && bounds.height > 0.0 {
                let class_id = section.first_class_id + class as u32;
                detections.push(Detected { label: labels[class].clone(), class_id, score, bounds });
            }
        }
    }
    detections.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.class_id.cmp(&b.class_id)));
    detections.truncate(wishes.top_k.unwrap_or(section.top_k) as usize);
    Ok(Output::Detection { detections })
}

/// Keeps the best of each group of overlapping boxes. `candidates` are sorted, best first.
fn suppress(candidates: Vec<(f32, Bounds)>, iou_threshold: f32) -> Vec<(f32, Bounds)> {
    let mut kept: Vec<(f32, Bounds)> = Vec::new();
    for candidate in candidates {
        if kept.iter().all(|better| better.1.overlap(&candidate.1) <= iou_threshold) {
            kept.push(candidate);
        }
    }
    kept
}

/// Converts the model's coordinates to pixels of the upright image.
struct ToPixels {
    format: BoxFormat,
    /// Offset and extent of the whole input on the image, pixels, for x and y.
    x: (f32, f32),
    y: (f32, f32),
    width: f32,
    height: f32,
}

impl ToPixels {
    fn new(section: &Detection, input: &Input, frame: &Frame) -> Self {
        let (unit_x, unit_y) = match section.box_units {
            BoxUnits::Fraction => (1.0, 1.0),
            BoxUnits::Pixels => (input.width as f32, input.height as f32),
        };
        let (width, height) = (frame.width as f32, frame.height as f32);
        let at = frame.placement;
        Self {
            format: section.box_format,
            x: (at.x * width, at.width * width / unit_x),
            y: (at.y * height, at.height * height / unit_y),
            width,
            height,
        }
    }

    fn bounds(&self, raw: &[f32]) -> Bounds {
        let [left, top, right, bottom] = match self.format {
            BoxFormat::Xyxy => [raw[0], raw[1], raw[2], raw[3]],
            BoxFormat::Yxyx => [raw[1], raw[0], raw[3], raw[2]],
            BoxFormat::Cxcywh => {
                let (half_width, half_height) = (raw[2] / 2.0, raw[3] / 2.0);
                [raw[0] - half_width, raw[1] - half_height, raw[0] + half_width, raw[1] + half_height]
            }
        };
        let x = self.x.0 + left * self.x.1;
        let y = self.y.0 + top * self.y.1;
        Bounds { x, y, width: (right - left) * self.x.1, height: (bottom - top) * self.y.1 }
    }

    /// Clips a box to the image, since models draw boxes over the edge and clients crop with them. Done after
    /// suppression, since clipping makes different boxes alike.
    fn clip(&self, bounds: Bounds) -> Bounds {
        let x = bounds.x.clamp(0.0, self.width);
        let y = bounds.y.clamp(0.0, self.height);
        let right = (bounds.x + bounds.width).clamp(x, self.width);
        let bottom = (bounds.y + bounds.height).clamp(y, self.height);
        Bounds { x, y, width: right - x, height: bottom - y }
    }
}
