//! Spoils the stream of a watch after some of its events.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::{Stream, faults::Fault, reset};

/// A fault that waits for events that do not come begins after this time.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Pause between bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(1);

enum State {
    /// Events pass; so many until the fault.
    Passing(u32),
    /// The fault has begun.
    Spoilt,
    Ended,
}

struct Watch {
    body: Stream,
    buffer: BytesMut,
    fault: Option<Fault>,
    state: State,
    version: String,
}

/// The stream of a watch that began at `version`, with `fault` after so many events.
pub fn spoil(body: Stream, fault: Option<Fault>, after: u32, version: String) -> Stream {
    let Some(fault) = fault else { return body };
    let watch =
        Watch { body, buffer: BytesMut::new(), fault: Some(fault), state: State::Passing(after), version };
    let frames = futures::stream::unfold(watch, |mut watch| async move {
        let frame = watch.next().await?;
        Some((frame.map(Frame::data), watch))
    });
    StreamBody::new(frames.boxed()).boxed_unsync()
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Bytes, tower::BoxError>> {
        match self.state {
            State::Ended => None,
            State::Passing(0) => {
                self.state = State::Spoilt;
                self.spoilt().await
            }
            State::Passing(left) => match tokio::time::timeout(PATIENCE, self.line()).await {
                Ok(Some(Ok(line))) => {
                    self.state = State::Passing(left - 1);
                    Some(Ok(line))
                }
                Ok(other) => {
                    self.state = State::Ended;
                    other
                }
                Err(_) => {
                    self.state = State::Spoilt;
                    self.spoilt().await
                }
            },
            State::Spoilt => self.spoilt().await,
        }
    }

    async fn spoilt(&mut self) -> Option<Result<Bytes, tower::BoxError>> {
        match self.fault {
            Some(Fault::WatchGone) => {
                self.state = State::Ended;
                let event = json!({"type": "ERROR", "object": {
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "too old resource version", "reason": "Expired", "code": 410,
                }});
                Some(Ok(format!("{event}\n").into()))
            }
            Some(Fault::WatchCut) => {
                self.state = State::Ended;
                Some(Err(reset("in the middle of a watch")))
            }
            Some(Fault::WatchStall) => std::future::pending().await,
            Some(Fault::WatchBookmarks) => {
                // What really happens is held back until the server ends the watch, as it does at its time-out.
                tokio::select! {
                    () = tokio::time::sleep(BOOKMARKS) => {
                        let event = json!({"type": "BOOKMARK", "object": {
                            "kind": "Any", "apiVersion": "v1",
                            "metadata": {"resourceVersion": self.version, "creationTimestamp": null},
                        }});
                        Some(Ok(format!("{event}\n").into()))
                    }
                    () = drain(&mut self.body) => {
                        self.state = State::Ended;
                        None
                    }
                }
            }
            _ => self.line().await,
        }
    }

    /// The next event, whole.
    async fn line(&mut self) -> Option<Result<Bytes, tower::BoxError>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                self.note(&line);
                return Some(Ok(line));
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn note(&mut self, line: &Bytes) {
        let event: Value = serde_json::from_slice(line).unwrap_or_default();
        if let Some(version) = event.pointer("/object/metadata/resourceVersion").and_then(Value::as_str) {
            self.version = version.to_owned();
        }
    }
}

async fn drain(body: &mut Stream) {
    while let Some(Ok(_)) = body.frame().await {}
}
