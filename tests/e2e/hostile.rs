//! Everything that is not an image, and images that are too much: a clear answer each, no worker
//! dies, memory stays flat.

use std::process::Command;

use reqwest::Method;

use super::harness::{Stack, descendants, photo, send};
use super::shared;

const MIB: usize = 1 << 20;

/// A PNG that announces 32,000 × 32,000 pixels: a gigapixel in 57 bytes.
fn gigapixel() -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1A\n\0\0\0\x0DIHDR\0\0\x7D\0\0\0\x7D\0\x08\x02\0\0\0\0\0\0\0".to_vec();
    bytes.extend(b"\0\0\0\0IDAT\0\0\0\0\0\0\0\0IEND\xAE\x42\x60\x82");
    bytes
}

#[tokio::test]
async fn what_is_wrong_from_the_outside_is_refused_at_once() {
    let svg = br#"<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>"#.to_vec();
    let gif = b"GIF89a\xFF\xFF\xFF\xFF\0\0\0,\0\0\0\0\xFF\xFF\xFF\xFF\0\x02\x02D\0;".to_vec();
    let cut = |name: &str, percent: usize| {
        let photo = photo(name);
        photo[..photo.len() * percent / 100].to_vec()
    };
    for (image, status, code) in [
        (Vec::new(), 400, "image_empty"),
        (b"a dog".to_vec(), 415, "image_unsupported"),
        (svg, 415, "image_unsupported"),
        (vec![0; 1000], 415, "image_unsupported"),
        (cut("china.jpg", 60), 422, "image_truncated"),
        (cut("coffee.png", 99), 422, "image_truncated"),
        (cut("china.jpg", 2), 422, "image_truncated"),
        (gigapixel(), 422, "image_too_large"),
        (gif, 422, "image_too_large"),
        (vec![0xFF; 25 * MIB], 413, "body_too_large"),
    ] {
        let size = image.len();
        let answer = send(shared().upload("model=efficientnet-lite0", image)).await;
        assert_eq!(
            (answer.status, answer.json["code"].as_str()),
            (status, Some(code)),
            "{size} bytes: {}",
            answer.body
        );
        assert!(answer.text("detail").len() > 20, "a clear sentence: {}", answer.body);
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_bounded_too() {
    let chunks = (0..25).map(|_| Ok::<_, std::io::Error>(vec![0xFF; MIB]));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let answer = send(shared().upload("model=efficientnet-lite0", body)).await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (413, Some("body_too_large")));
    assert!(answer.text("detail").contains("--upload-limit"), "{}", answer.body);
}

#[tokio::test]
async fn settings_are_bounded_and_must_be_an_object() {
    for (method, path) in [(Method::POST, "/v1/topics"), (Method::PATCH, "/v1/topics/x"), (Method::POST, "/v1/keys")] {
        for (body, status, code) in
            [(" ".repeat(64 * 1024 + 1), 413, "body_too_large"), ("[]".to_owned(), 400, "json_invalid")]
        {
            let answer = send(shared().request(method.clone(), path).body(body)).await;
            assert_eq!((answer.status, answer.text("code").as_str()), (status, code), "{path}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_name_or_type_that_lies_does_no_harm() {
    let part = reqwest::multipart::Part::bytes(photo("coffee.png")).file_name("coffee.jpg").mime_str("image/jpeg");
    let form = reqwest::multipart::Form::new().part("image", part.expect("a type"));
    let answer = send(shared().upload("model=efficientnet-lite0", "").multipart(form)).await;
    let job = shared().finish(&answer.text("id")).await;
    assert_eq!((job["state"].as_str(), job["image"]["format"].as_str()), (Some("succeeded"), Some("png")));
}

/// Resident memory of a process, KiB.
fn resident(pid: u32) -> usize {
    let output = Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().expect("ps runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0)
}

#[tokio::test]
async fn damage_that_only_the_decoder_sees_fails_the_job_and_nothing_else() {
    let stack = Stack::start(&["--workers", "1"]);
    let mut pids: Vec<u32> = descendants(stack.pid()).into_iter().map(|(pid, _)| pid).collect();
    pids.push(stack.pid());
    assert_eq!(stack.run("model=efficientnet-lite0", photo("china.jpg")).await["state"], "succeeded");
    let memory = || pids.iter().map(|pid| resident(*pid)).sum::<usize>();
    let before = memory();

    // The structure is whole, the compressed data is not.
    let damaged = super::damaged_jpeg();
    let mut stained = photo("coffee.png");
    let middle = stained.len() / 2;
    stained[middle..middle + 100].fill(0x55);
    for _ in 0..20 {
        for image in [&damaged, &stained] {
            let job = stack.run("model=efficientnet-lite0", image.clone()).await;
            assert_eq!(
                (job["state"].as_str(), job["error"]["code"].as_str()),
                (Some("failed"), Some("image_corrupt")),
                "{job}"
            );
            assert_eq!(job["attempt"], 1, "bad input is not tried again");
        }
        for refused in [gigapixel(), vec![0xFF; 25 * MIB]] {
            assert!(matches!(send(stack.upload("model=efficientnet-lite0", refused)).await.status, 413 | 422));
        }
    }
    assert_eq!(stack.run("model=efficientnet-lite0", photo("china.jpg")).await["attempt"], 1);
    assert!(pids.iter().all(|pid| super::harness::is_alive(*pid)), "a process died: {}", stack.log());
    let grown = memory().saturating_sub(before) / 1024;
    assert!(grown < 150, "memory grew by {grown} MiB");
}
