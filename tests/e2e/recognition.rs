//! The six photos give what `expected.json` says, through HTTP.

use serde_json::Value;

use super::harness::photo;
use super::shared;

const SCORE_TOLERANCE: f64 = 0.05;
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
