use super::*;
use crate::Repository;
use crate::output::{Bounds, Detected};

fn tensor(name: &str, shape: &[usize], data: Vec<f32>) -> OutputTensor {
    OutputTensor { name: name.into(), shape: shape.to_vec(), data }
}

fn manifest(name: &str) -> Manifest {
    Repository::builtin().get(name).expect("built in").manifest().clone()
}

const WHOLE: Frame =
    Frame { width: 200, height: 100, placement: Placement { x: 0.0, y: 0.0, width: 1.0, height: 1.0 } };

fn labels(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn classified(logits: Vec<f32>, wishes: Wishes) -> Vec<(String, u32, f32)> {
    let manifest = manifest("efficientnet-lite0");
    let names = labels(&["ant", "bee", "cat", "dog"]);
    let outputs = [tensor("logits", &[1, 4], logits)];
    match postprocess(&manifest, &names, &outputs, &WHOLE, wishes) {
        Ok(Output::Classification { predictions }) => {
            predictions.into_iter().map(|p| (p.label, p.class_id, p.score)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn classes_are_ranked_after_softmax() {
    let ranked = classified(vec![0.0, 1000.0, 999.0, -50.0], Wishes::default());
    assert_eq!(ranked.iter().map(|p| p.1).collect::<Vec<_>>(), [1, 2, 0, 3]);
    assert!((ranked[0].2 - 0.731).abs() < 0.001 && (ranked[1].2 - 0.269).abs() < 0.001, "{ranked:?}");
}

#[test]
fn a_job_may_ask_for_fewer_classes() {
    let wishes = Wishes { top_k: Some(3), threshold: Some(0.2) };
    let ranked = classified(vec![1.0, 3.0, 3.0, 0.0], wishes);
    assert_eq!(ranked.iter().map(|p| p.0.as_str()).collect::<Vec<_>>(), ["bee", "cat"], "ties in class order");
}

/// Three classes, the second unused; rows of (box, scores).
fn detected(rows: &[([f32; 4], [f32; 3])], frame: &Frame, wishes: Wishes) -> Vec<Detected> {
    let outputs = [
        tensor("boxes", &[1, rows.len(), 4], rows.iter().flat_map(|row| row.0).collect()),
        tensor("scores", &[1, rows.len(), 3], rows.iter().flat_map(|row| row.1).collect()),
    ];
    match postprocess(&manifest("ssdlite-mobilenetv2"), &labels(&["cat", "?", "cup"]), &outputs, frame, wishes) {
        Ok(Output::Detection { detections }) => detections,
        other => panic!("{other:?}"),
    }
}

#[test]
fn doubles_are_suppressed_within_a_class_only() {
    let found = detected(
        &[
            ([0.1, 0.1, 0.5, 0.5], [0.8, 0.9, 0.0]),
            ([0.1, 0.1, 0.52, 0.5], [0.9, 0.0, 0.7]),
            ([0.6, 0.6, 0.9, 0.9], [0.5, 0.0, 0.0]),
            ([0.6, 0.0, 0.9, 0.3], [0.3, 0.0, 0.0]),
        ],
        &WHOLE,
        Wishes::default(),
    );
    let short: Vec<_> = found.iter().map(|d| (d.label.as_str(), d.class_id, d.score)).collect();
    assert_eq!(short, [("cat", 1, 0.9), ("cup", 3, 0.7), ("cat", 1, 0.5)]);
    let bounds = found[0].bounds;
    let near = |a: f32, b: f32| (a - b).abs() < 0.01;
    assert!(near(bounds.x, 20.0) && near(bounds.y, 10.0) && near(bounds.width, 84.0) && near(bounds.height, 40.0));
    assert_eq!(
        detected(&[([0.0, 0.0, 0.1, 0.1], [0.3, 0.0, 0.0])], &WHOLE, Wishes { top_k: None, threshold: Some(0.2) })
            .len(),
        1
    );
}

#[test]
fn boxes_are_put_back_where_the_input_lay_and_kept_inside() {
    let cropped = Frame { placement: Placement { x: 0.25, y: 0.0, width: 0.5, height: 1.0 }, ..WHOLE };
    let found = detected(&[([-0.2, 0.0, 0.5, 2.0], [0.9, 0.0, 0.0])], &cropped, Wishes::default());
    let Bounds { x, y, width, height } = found[0].bounds;
    assert!((x - 30.0).abs() < 0.01 && y == 0.0 && (width - 70.0).abs() < 0.01 && height == 100.0, "{found:?}");
}

#[test]
fn what_is_seen_in_the_padding_is_left_out() {
    // A letterboxed image of 200 x 100: the input reaches 50 pixels above and below it.
    let frame = Frame { placement: Placement { x: 0.0, y: -0.5, width: 1.0, height: 2.0 }, ..WHOLE };
    let rows = [([0.0, 0.1, 0.2, 0.2], [0.9, 0.0, 0.0]), ([0.3, 0.1, 0.6, 0.4], [0.9, 0.0, 0.0])];
    let found = detected(&rows, &frame, Wishes::default());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].bounds.height > 0.0 && found[0].bounds.width > 0.0);
}

#[test]
fn of_too_many_candidates_the_best_remain() {
    // Every box is a candidate of both classes; the best one of all comes last.
    let row = |n: usize| {
        let (x, y) = ((n % 200) as f32 / 200.0, (n / 200) as f32 / 200.0);
        ([y, x, y + 0.001, x + 0.001], [0.5, 0.0, n as f32 / 20_000.0])
    };
    let rows: Vec<_> = (0..20_000).map(row).collect();
    let found = detected(&rows, &WHOLE, Wishes { top_k: Some(100), threshold: Some(0.0) });
    assert_eq!(found.len(), 100);
    assert!(found.iter().all(|found| found.label == "cup"), "{found:?}");
    assert!(found[0].score > 0.999 && found[99].score > 0.99);
}

#[test]
fn an_embedding_has_length_one() {
    let text = include_str!("../../repository/efficientnet-lite0/model.toml");
    let (head, _) = text.split_once("[classification]").expect("there");
    let head = head.replace("\"classification\"", "\"embedding\"");
    let manifest =
        Manifest::parse("x", &format!("{head}[embedding]\nvector = \"embedding\"\nnormalize = true\n")).expect("good");
    let outputs = [tensor("logits", &[1, 1], vec![1.0]), tensor("embedding", &[1, 2], vec![3.0, 4.0])];
    let output = postprocess(&manifest, &[], &outputs, &WHOLE, Wishes::default());
    assert_eq!(output, Ok(Output::Embedding { vector: vec![0.6, 0.8] }));
}

#[test]
fn outputs_that_do_not_fit_the_manifest_are_refused() {
    let refused = |outputs: &[OutputTensor]| {
        let names = labels(&["a", "b"]);
        postprocess(&manifest("efficientnet-lite0"), &names, outputs, &WHOLE, Wishes::default()).expect_err("refused")
    };
    assert_eq!(refused(&[]), OutputError::Missing("logits".into()));
    assert!(matches!(refused(&[tensor("logits", &[1, 3], vec![0.0; 3])]), OutputError::Shape { .. }));
    assert!(matches!(refused(&[tensor("logits", &[2, 2], vec![0.0; 4])]), OutputError::Shape { .. }));
    let nan = refused(&[tensor("logits", &[1, 2], vec![0.0, f32::NAN])]);
    assert_eq!(nan, OutputError::NotFinite("logits".into()));
}
