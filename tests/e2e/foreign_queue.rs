//! A queue that another operator set up: the start reports its risks, and what it cannot take
//! is refused with the name of the setting.

use std::net::TcpListener;

use super::harness::{Broker, Stack, photo, send};

#[tokio::test]
async fn a_server_with_less_care_is_warned_of_and_its_limits_are_named() {
    let monitor = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let broker = Broker::nats_with(&format!("http: \"{monitor}\"\nmax_payload: 1MB")).await;
    let url = format!("http://{monitor}");
    let flags = ["--workers", "1", "--models", "efficientnet-lite0", "--queue-monitor", &url];
    let stack = Stack::start_on(&broker.url(), &flags);
    for warning in ["warning: queue: 1 replica(s)", "max_payload", "sync_interval"] {
        stack.logged(warning).await;
    }
    let log = stack.log();
    assert!(!log.contains(Broker::TOKEN), "the token is no one's business: {log}");
    // A valid picture, and more than a megabyte.
    let mut large = photo("rocket.jpg");
    large.resize(2 << 20, 0);
    let refused = send(stack.upload("model=efficientnet-lite0", large)).await;
    assert_eq!((refused.status, refused.text("code").as_str()), (413, "body_too_large"), "{}", refused.body);
    assert!(refused.text("detail").contains("max_payload"), "{}", refused.body);
    assert_eq!(stack.run("model=efficientnet-lite0", photo("rocket.jpg")).await["state"], "succeeded");
}
