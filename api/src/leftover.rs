//! What a client is still sending when its answer is ready.
//!
//! A server that answers early and closes makes the client's system drop the answer: bytes that
//! arrive at a closed socket reset the connection. So what is left of a refused body is read for a
//! while and thrown away, and the answer is sent after that. A client that asked first
//! (`Expect: 100-continue`) and got no go-ahead is not sending, and is answered at once.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// How much is thrown away for the sake of one answer.
const BYTES_MAX: u64 = 64 << 20;
/// How long that may take.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Lets the handler read the body, then reads the rest.
pub(crate) async fn discard(request: Request, next: Next) -> Response {
    let asks_first = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(head, body)).await;
    }
    let shared = Shared(Arc::new(Mutex::new(State { body, touched: false })));
    let response = next.run(Request::from_parts(head, Body::new(shared.clone()))).await;
    // Of a body that stalled nothing more is to be expected.
    if response.status() != StatusCode::REQUEST_TIMEOUT && shared.is_coming(asks_first) {
        let reading = shared.read_on();
        if tokio::time::timeout(TIME_MAX, reading).await.is_err() {
            tracing::debug!("a refused body did not end in time");
        }
    }
    response
}

/// A body that can be read on after its reader has dropped it.
#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

struct State {
    body: Body,
    /// Somebody has begun to read, so the client was told to go ahead.
    touched: bool,
}

impl Shared {
    fn is_coming(&self, asks_first: bool) -> bool {
        let state = self.0.lock().expect("no panic holds this lock");
        !state.body.is_end_stream() && (state.touched || !asks_first)
    }

    async fn read_on(mut self) {
        let mut read = 0;
        while let Some(Ok(frame)) = self.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > BYTES_MAX {
                return;
            }
        }
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = self.0.lock().expect("no panic holds this lock");
        state.touched = true;
        Pin::new(&mut state.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().expect("no panic holds this lock").body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().expect("no panic holds this lock").body.size_hint()
    }
}
