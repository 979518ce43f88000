//! Call the router at a Unix socket once, and hang up: a unary gRPC call (gRPC over HTTP2) on the h2 crate.
//!
//! ```text
//! message → 5 bytes of length before it → one POST on one stream
//!   → headers, one whole message, trailers with grpc-status → message, or a RouterError in the words of `shim/lean`
//! ```

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::Builder;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

use crate::errors::{RouterError, Status, strerror};
use crate::text;

const SERVICE: &str = "http://localhost/podwire.v1.Router";
/// sizeof(sun_path) - 1, linux/un.h
const MOST_PATH_BYTES: usize = 107;
/// As the router's own limit: a larger answer is none of the contract's.
const MOST_BYTES: usize = 64 << 20;
const MOST_HEADER_BYTES: u32 = 64 << 10;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// A message that the router is sent.
pub trait Asked: Message {
    /// Return the texts in it that may be no Unicode, which protobuf cannot carry.
    fn texts(&self) -> Vec<&str>;
}

/// Call a method ("Attach") with its request and return its answer.
///
/// What the router refused, or UNAVAILABLE when nobody listens, or DEADLINE_EXCEEDED; INVALID_ARGUMENT for what is no Unicode.
pub fn call<Q: Asked, A: Message + Default>(
    socket_path: &str,
    method: &str,
    request: &Q,
    timeout: Duration,
) -> Result<A, RouterError> {
    if let Some(odd) = request.texts().into_iter().find(|each| !text::is_unicode(each)) {
        let why = format!("{} is no Unicode text: write it in UTF-8", text::repr(odd));
        return Err(RouterError::new(Status::INVALID_ARGUMENT, why));
    }
    if socket_path.len() > MOST_PATH_BYTES {
        let why = format!("{socket_path} is longer than the {MOST_PATH_BYTES} bytes of a socket's path");
        return Err(RouterError::new(Status::UNAVAILABLE, why));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|error| unreachable(socket_path, &strerror(&error)))?;
    let exchanged = runtime.block_on(async {
        // The connection is a task of its own, and ends with the runtime.
        tokio::time::timeout(timeout, exchange(socket_path, method, framed(request), timeout)).await
    });
    let answer = exchanged.unwrap_or_else(|_| {
        let seconds = timeout.as_secs_f64();
        let why = format!("did not answer within {seconds} s; see its log, and try again");
        Err(RouterError::new(Status::DEADLINE_EXCEEDED, format!("the router at unix:{socket_path} {why}")))
    })?;
    A::decode(answer).map_err(|error| {
        let why = format!("the router's answer to {method} makes no sense: {error}");
        RouterError::new(Status::INTERNAL, why)
    })
}

/// Return a message as gRPC sends it: not compressed, its length before it.
fn framed(request: &impl Message) -> Bytes {
    let size = request.encoded_len();
    let mut out = BytesMut::with_capacity(5 + size);
    out.put_u8(0);
    out.put_u32(u32::try_from(size).unwrap_or(u32::MAX)); // the configuration is limited to far less
    request.encode_raw(&mut out);
    out.freeze()
}

async fn exchange(socket_path: &str, method: &str, body: Bytes, timeout: Duration) -> Result<Bytes, RouterError> {
    let failed = |error: h2::Error| told(socket_path, &error);
    let stream = UnixStream::connect(socket_path).await;
    let stream = stream.map_err(|error| unreachable(socket_path, &strerror(&error)))?;
    // All the window there is: nothing has to be acknowledged piece by piece.
    let mut builder = Builder::new();
    builder.enable_push(false).max_header_list_size(MOST_HEADER_BYTES);
    builder.initial_window_size(LARGEST_WINDOW).initial_connection_window_size(LARGEST_WINDOW);
    let (mut client, connection) = builder.handshake::<_, Bytes>(stream).await.map_err(failed)?;
    tokio::spawn(connection); // what ends it ends our stream, which says so
    let request = Request::post(format!("{SERVICE}/{method}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("user-agent", "podwire-cni")
        .header("grpc-timeout", format!("{}m", timeout.as_millis().max(1)))
        .body(())
        .map_err(|error| RouterError::new(Status::INTERNAL, error.to_string()))?;
    let (answered, mut sending) = client.send_request(request, false).map_err(failed)?;
    sending.send_data(body, true).map_err(failed)?;
    let (head, mut body) = answered.await.map_err(failed)?.into_parts();
    let mut content = BytesMut::new();
    while let Some(piece) = body.data().await {
        content.extend_from_slice(&piece.map_err(failed)?);
        if content.len() > MOST_BYTES {
            return Err(broken(&format!("an answer of more than {MOST_BYTES} bytes")));
        }
    }
    // An answer that is only refused has its status in the one block of headers it sends.
    let trailers = body.trailers().await.map_err(failed)?.unwrap_or_default();
    let trailers = if trailers.contains_key("grpc-status") { trailers } else { head.headers };
    accepted(head.status.as_u16(), &trailers)?;
    let content = content.freeze();
    match content.split_first_chunk::<5>() {
        Some(([0, size @ ..], message)) if u32::from_be_bytes(*size) as usize == message.len() => {
            Ok(content.slice(5..))
        }
        _ => Err(broken("an answer that is not one whole message")),
    }
}

/// Return an error unless the call's status is OK.
fn accepted(http_status: u16, trailers: &HeaderMap) -> Result<(), RouterError> {
    let Some(said) = trailers.get("grpc-status") else {
        return Err(broken(&format!("HTTP status {http_status} and no gRPC status; is it a gRPC server?")));
    };
    let number = said.to_str().ok().filter(|text| text.len() < 3).and_then(|text| text.parse::<u32>().ok());
    let status = number.map_or(Status::UNKNOWN, Status);
    if status == Status(0) {
        return Ok(());
    }
    let words = trailers.get("grpc-message").map(|text| percent_decoded(text.as_bytes())).unwrap_or_default();
    let words = if words.is_empty() { status.name().to_owned() } else { words };
    Err(RouterError::new(status, words))
}

/// Say in our words how a call ended early.
fn told(socket_path: &str, error: &h2::Error) -> RouterError {
    if error.is_io() {
        // The kind is all that h2 keeps: of a peer that hung up, BrokenPipe.
        return match error.get_io() {
            Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => unreachable(socket_path, &strerror(error)),
            _ => RouterError::new(Status::UNAVAILABLE, "the router hung up before it had answered"),
        };
    }
    if error.is_remote() && error.is_go_away() {
        return RouterError::new(Status::UNAVAILABLE, "the router is stopping; try again when it has started");
    }
    match error.reason() {
        Some(reason) if error.is_remote() => {
            let why = format!("the router reset the call (HTTP/2 error {})", u32::from(reason));
            RouterError::new(Status::UNAVAILABLE, why)
        }
        _ => broken(&format!("what HTTP/2 does not have: {error}")),
    }
}

fn unreachable(socket_path: &str, why: &str) -> RouterError {
    let message = format!("cannot reach the router at unix:{socket_path}: {why}; is `podwire router run` running?");
    RouterError::new(Status::UNAVAILABLE, message)
}

fn broken(what: &str) -> RouterError {
    let message = format!("what answers there is no router, or a broken one: it sent {what}");
    RouterError::new(Status::INTERNAL, message)
}

/// Decode grpc-message (gRPC over HTTP2, "Status-Message"); what is no code stays as it is.
fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| byte == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &after[2..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded() {
        for (coded, wanted) in
            [("plain", "plain"), ("gr%C3%B6%C3%9Fer 100 %25", "größer 100 %"), ("5 % %zz %", "5 % %zz %")]
        {
            assert_eq!(percent_decoded(coded.as_bytes()), wanted);
        }
    }

    #[test]
    fn statuses_are_told_apart() {
        let said = |status: &'static str, message: &'static str| {
            let pairs = [("grpc-status", status), ("grpc-message", message)];
            let headers = pairs.map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
            accepted(200, &headers.into_iter().collect())
        };
        assert!(said("0", "").is_ok());
        let error = said("5", "none").unwrap_err();
        assert_eq!((error.status, error.message.as_str()), (Status::NOT_FOUND, "none"));
        for odd in ["99", "x", "", "0000"] {
            let error = said(odd, "").unwrap_err();
            assert_eq!((error.status.name(), error.message.as_str()), ("UNKNOWN", "UNKNOWN"));
        }
        assert_eq!(accepted(404, &HeaderMap::new()).unwrap_err().status, Status::INTERNAL);
    }
}
