//! Guards every request's body: it must keep a pace, it ends when this process stops, and the rest of it is read if
//! its answer is ready early.
//!
//! A server that answers early and closes makes the client's system drop the answer: bytes that arrive at a closed
//! socket reset the connection. So the rest of a refused body is read and discarded for a while before the answer
//! is sent. A client that asked first (`Expect: 100-continue`) and got no go-ahead is not sending, and is answered
//! at once.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::connections::client_address;
use crate::error::ApiError;
use crate::pace::Pace;
use crate::state;

/// Most bytes discarded before one answer.
const BYTES_MAX: u64 = 64 << 20;
/// How long that may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// The same once this process is stopping.
const LAST_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a body may pause; longer for a batch, which may be packed while it is sent.
const PAUSE_MAX: Duration = Duration::from_secs(10);
const BATCH_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long an arriving body may continue once this process is stopping.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// Lets the handler read the body, then reads the rest.
pub(crate) async fn guard(State(state): State<state::Shared>, request: Request, next: Next) -> Response {
    let asks_first = request.headers().contains_key(header::EXPECT);
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let is_batch = route.starts_with("/v1/batches");
    let pause_max = if is_batch { BATCH_PAUSE_MAX } else { PAUSE_MAX };
    let client = client_address(&state.config, &request);
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(head, body)).await;
    }
    let stop = state.stop.clone();
    let incoming = Incoming(Arc::new(Mutex::new(Inner {
        body,
        touched: false,
        pace: Pace::new(pause_max),
        stop: Box::pin(stop.clone().cancelled_owned()),
        last: None,
        ended: None,
        is_batch,
        client,
        state,
    })));
    let response = next.run(Request::from_parts(head, Body::new(incoming.clone()))).await;
    let ended = incoming.lock().ended;
    // Nothing more is read of a body that was ended here. The answer gives the reason known here: a library in
    // between words it differently.
    if let Some(ended) = ended {
        return if response.status().is_success() { response } else { ended.error().into_response() };
    }
    if incoming.is_coming(asks_first) {
        let reading = tokio::time::timeout(TIME_MAX, incoming.read_on());
        let stopping = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_TIME_MAX).await;
        };
        tokio::select! {
            _ = reading => {}
            () = stopping => {}
        }
    }
    response
}

/// The error behind a failed read of a body.
pub(crate) fn error_of(error: axum::Error) -> ApiError {
    let mut inner = error.into_inner();
    loop {
        inner = match inner.downcast::<ApiError>() {
            Ok(ours) => return *ours,
            Err(other) => match other.downcast::<axum::Error>() {
                Ok(wrapped) => wrapped.into_inner(),
                Err(other) => return ApiError::BodyBroken(other.to_string()),
            },
        };
    }
}

/// Why a body was ended here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Slow,
    /// Too slow for the little memory that is left.
    Busy,
    Stopping,
}

impl Ended {
    fn error(self) -> ApiError {
        match self {
            Self::Slow => {
                ApiError::BodyTimeout("send at least 16 KiB per second and do not pause for 10 s (30 s in a batch)")
            }
            Self::Busy => ApiError::UploadsBusy,
            Self::Stopping => ApiError::Stopping,
        }
    }
}

/// A body that can still be read after its reader has dropped it.
#[derive(Clone)]
struct Incoming(Arc<Mutex<Inner>>);

struct Inner {
    body: Body,
    /// A reader has begun, so the client got its go-ahead.
    touched: bool,
    pace: Pace,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The last deadline; set once this process is stopping.
    last: Option<Pin<Box<tokio::time::Sleep>>>,
    ended: Option<Ended>,
    is_batch: bool,
    client: Option<IpAddr>,
    state: state::Shared,
}

impl Incoming {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_coming(&self, asks_first: bool) -> bool {
        let inner = self.lock();
        !inner.body.is_end_stream() && (inner.touched || !asks_first)
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

impl Inner {
    /// Whether the body must be ended now.
    fn poll_end(&mut self, is_short: bool, context: &mut Context<'_>) -> Poll<Ended> {
        if self.last.is_none() && self.stop.as_mut().poll(context).is_ready() {
            self.last = Some(Box::pin(tokio::time::sleep(LAST_BYTES)));
        }
        if self.last.as_mut().is_some_and(|last| last.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Ended::Stopping);
        }
        self.pace.poll_waiting(is_short, context).map(|()| if is_short { Ended::Busy } else { Ended::Slow })
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut inner = self.lock();
        inner.touched = true;
        if let Some(ended) = inner.ended {
            return Poll::Ready(Some(Err(axum::Error::new(ended.error()))));
        }
        let is_short = inner.state.is_short_of_memory(inner.is_batch, inner.client);
        match Pin::new(&mut inner.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref().map(Bytes::len));
                inner.pace.moved(bytes.unwrap_or(0), is_short);
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let Poll::Ready(ended) = inner.poll_end(is_short, context) else { return Poll::Pending };
                inner.ended = Some(ended);
                Poll::Ready(Some(Err(axum::Error::new(ended.error()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
