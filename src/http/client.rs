//! Asks the running daemon over its unix socket, for the commands.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Longer than the server gives itself, so that its own answer arrives first.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(40);

/// Bytes of an answer; a status with a hundred thousand collections is well below.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why there is no answer from the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no daemon answers on {}; is it running? (systemctl status snapsync)", socket.display())]
    NoDaemon {
        /// The path of the socket.
        socket: PathBuf,
    },
    /// The socket may not be opened.
    #[error(
        "not allowed to open {}; run this as root or as a member of the group snapsync",
        socket.display()
    )]
    NotAllowed {
        /// The path of the socket.
        socket: PathBuf,
    },
    /// The daemon was reached, but did not answer as it should.
    #[error("the daemon on {} gave no proper answer: {detail}", socket.display())]
    NoAnswer {
        /// The path of the socket.
        socket: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// The daemon answered, and said no.
    #[error("{message}")]
    Refused {
        /// The status it answered with, 400 to 599.
        status: u16,
        /// The sentence it gave.
        message: String,
    },
}

/// Gets `path`, such as `/status`.
///
/// # Errors
/// When no daemon answers, or it answers with an error.
pub async fn get(socket: &Path, path: &str) -> Result<Bytes, ClientError> {
    ask(socket, Method::GET, path, Bytes::new()).await
}

/// Posts `body` to `path`, such as `/pause`; `None` is an empty body.
///
/// # Errors
/// When no daemon answers, or it answers with an error.
pub async fn post(socket: &Path, path: &str, body: Option<&Value>) -> Result<Bytes, ClientError> {
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    ask(socket, Method::POST, path, body).await
}

async fn ask(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
    let no_answer = |detail: String| ClientError::NoAnswer { socket: socket.to_owned(), detail };
    let exchange = async {
        let stream =
            UnixStream::connect(socket).await.map_err(|error| not_connected(socket, &error))?;
        exchange(stream, method, path, body).await.map_err(|error| no_answer(error.to_string()))
    };
    let (status, answer) = tokio::time::timeout(ANSWER_TIME_MAX, exchange)
        .await
        .map_err(|_| no_answer(format!("nothing within {} s", ANSWER_TIME_MAX.as_secs())))??;
    if status.is_success() {
        return Ok(answer);
    }
    let message = serde_json::from_slice::<Value>(&answer)
        .ok()
        .and_then(|answer| answer.get("error")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("the daemon answered {status}"));
    Err(ClientError::Refused { status: status.as_u16(), message })
}

fn not_connected(socket: &Path, error: &io::Error) -> ClientError {
    let socket = socket.to_owned();
    match error.kind() {
        ErrorKind::PermissionDenied => ClientError::NotAllowed { socket },
        _ => ClientError::NoDaemon { socket },
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// One request and its answer.
async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), AnyError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let answer = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let bytes = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok((head.status, bytes))
        // The sender is dropped here, which ends the connection below.
    };
    // What the connection has to say reaches the answer as its error.
    let (answer, _connection) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_daemon_it_says_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("control.sock");
        let stale = dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        for socket in [absent, stale] {
            let error = get(&socket, "/status").await.unwrap_err();
            let expected = format!(
                "no daemon answers on {}; is it running? (systemctl status snapsync)",
                socket.display()
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn something_else_on_the_socket_is_no_proper_answer() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let hang_up = async { drop(listener.accept().await.unwrap()) };
        let (answer, ()) = tokio::join!(get(&socket, "/status"), hang_up);
        assert!(matches!(answer, Err(ClientError::NoAnswer { .. })), "{answer:?}");
    }
}
