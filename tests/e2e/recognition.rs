//! The six photos give what `expected.json` says, through HTTP.

use serde_json::Value;

use super::harness::photo;
use super::shared;

const SCORE_TOLERANCE: f64 = 0.05;
/// Between two formats of the same pixels.
const FORMAT_TOLERANCE: f64 = 0.02;
const OVERLAP_MIN: f64 = 0.9;

fn expected() -> serde_json::Map<String, Value> {
    let text = String::from_utf8(photo("expected.json")).expect("UTF-8");
    serde_json::from_str(&text).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[tokio::test]
async fn the_classifier_sees_what_is_on_the_photos() {
    for (name, wanted) in expected() {
        let job = shared().run("model=efficientnet-lite0", photo(&name)).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        let (found, wanted) = (&job["result"]["predictions"], &wanted["efficientnet-lite0"]);
        assert_eq!(found.as_array().map(Vec::len), Some(5), "{name}: {found}");
        assert_eq!(found[0]["label"], wanted[0]["label"], "{name}: {found}");
        // Neighbours in rank may swap within the tolerance; so each is looked up by its class.
        for want in wanted.as_array().expect("a list") {
            let have = found.as_array().expect("a list").iter().find(|have| have["class_id"] == want["class_id"]);
            let score = have.map_or(0.0, |have| number(&have["score"]));
            let difference = (score - number(&want["score"])).abs();
            assert!(difference <= SCORE_TOLERANCE, "{name}: {want} against {found}");
            assert!(have.is_none_or(|have| have["label"] == want["label"]), "{name}: {want} against {found}");
        }
    }
}

#[tokio::test]
async fn the_detector_finds_the_objects_where_they_are() {
    for (name, wanted) in expected() {
        let job = shared().run("model=ssdlite-mobilenetv2", photo(&name)).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        let (found, wanted) = (&job["result"]["detections"], &wanted["ssdlite-mobilenetv2"]);
        let (found, wanted) = (found.as_array().expect("a list"), wanted.as_array().expect("a list"));
        assert_eq!(found.len(), wanted.len(), "{name}: {found:?}");
        for want in wanted {
            let best = found.iter().find(|have| have["class_id"] == want["class_id"]);
            let best = best.unwrap_or_else(|| panic!("{name}: no {want} in {found:?}"));
            assert_eq!(best["label"], want["label"]);
            assert!(
                (number(&best["score"]) - number(&want["score"])).abs() <= SCORE_TOLERANCE,
                "{name}: {want} {best}"
            );
            let overlap = overlap(&best["box"], &want["box"]);
            assert!(overlap >= OVERLAP_MIN, "{name}: overlap {overlap} of {want} and {best}");
        }
    }
}

/// A photo at a side of some 2,400 pixels as a JPEG, which is decoded at reduced scale, and the pixels of that JPEG
/// as a PNG, which is not.
fn both_ways(name: &str) -> (Vec<u8>, Vec<u8>) {
    let small = image::load_from_memory(&photo(name)).expect("a PNG").into_rgb8();
    let side = |side: u32| side * 2_400 / small.width();
    let (width, height) = (side(small.width()), side(small.height()));
    let large = image::imageops::resize(&small, width, height, image::imageops::CatmullRom);
    let (rgb, sampling) = (libjpeg_turbo_rs::PixelFormat::Rgb, libjpeg_turbo_rs::Subsampling::S420);
    let jpeg = libjpeg_turbo_rs::compress(&large, width as usize, height as usize, rgb, 92, sampling).expect("encodes");
    let pixels = libjpeg_turbo_rs::decompress_to(&jpeg, rgb).expect("decodes").data;
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_raw(width, height, pixels).expect("whole");
    image.write_to(&mut png, image::ImageFormat::Png).expect("encodes");
    (jpeg, png.into_inner())
}

#[tokio::test]
async fn the_same_pixels_answer_alike_in_either_format() {
    for name in ["astronaut.png", "chelsea.png", "coffee.png"] {
        let (jpeg, png) = both_ways(name);
        for (model, list) in [("efficientnet-lite0", "predictions"), ("ssdlite-mobilenetv2", "detections")] {
            let of = async |bytes: &[u8]| {
                let job = shared().run(&format!("model={model}"), bytes.to_vec()).await;
                assert_eq!(job["state"], "succeeded", "{job}");
                job["result"][list].as_array().expect("a list").clone()
            };
            let (of_jpeg, of_png) = (of(&jpeg).await, of(&png).await);
            for wanted in &of_png {
                let same = |have: &&Value| {
                    have["class_id"] == wanted["class_id"]
                        && (list == "predictions" || overlap(&have["box"], &wanted["box"]) >= OVERLAP_MIN)
                };
                // What is not among the best five scores less than they do; a box, less than the threshold.
                let least =
                    if list == "predictions" { of_jpeg.last().map_or(0.0, |last| number(&last["score"])) } else { 0.4 };
                let score = of_jpeg.iter().find(same).map_or(least, |have| number(&have["score"]));
                let difference = (score - number(&wanted["score"])).abs();
                assert!(difference <= FORMAT_TOLERANCE, "{name}, {model}: {wanted} against {of_jpeg:?}");
            }
        }
    }
}

/// Intersection over union of two boxes.
fn overlap(a: &Value, b: &Value) -> f64 {
    let side = |origin: &str, extent: &str| {
        let (a0, b0) = (number(&a[origin]), number(&b[origin]));
        let (a1, b1) = (a0 + number(&a[extent]), b0 + number(&b[extent]));
        (a1.min(b1) - a0.max(b0)).max(0.0)
    };
    let area = |x: &Value| number(&x["width"]) * number(&x["height"]);
    let shared = side("x", "width") * side("y", "height");
    shared / (area(a) + area(b) - shared)
}
