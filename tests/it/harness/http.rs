//! One HTTP request to the daemon, over TCP or its unix socket.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What the daemon answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status, such as 200 or 503.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

/// `GET path` over TCP.
pub async fn get(address: &str, path: &str) -> Result<Reply, String> {
    over_tcp(address, "GET", path, &[], String::new()).await
}

/// `method path` with further headers and a JSON body over TCP.
pub async fn over_tcp(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&'static str, &str)],
    body: String,
) -> Result<Reply, String> {
    let mut request = build(address, method, path, body)?;
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().map_err(|_| "a bad header")?);
    }
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        exchange(stream, request).await
    };
    in_time(exchange).await
}

/// `method path` with a JSON body over the unix socket.
pub async fn over_socket(
    socket: &Path,
    method: &str,
    path: &str,
    body: String,
) -> Result<Reply, String> {
    let request = build("localhost", method, path, body)?;
    let exchange = async {
        let stream = UnixStream::connect(socket).await.map_err(|e| e.to_string())?;
        exchange(stream, request).await
    };
    in_time(exchange).await
}

fn build(
    host: &str,
    method: &str,
    path: &str,
    body: String,
) -> Result<Request<Full<Bytes>>, String> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Reply, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    driver.abort();
    Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned() })
}

async fn in_time(exchange: impl Future<Output = Result<Reply, String>>) -> Result<Reply, String> {
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| format!("no answer in {TIMEOUT:?}"))?
}
