//! Listens on TCP and on the unix socket, and serves the routes there until a stop is requested.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::control::Control;
use super::guard::Door;
use super::routes::router;
use crate::status::StatusBoard;
use crate::stop::Stop;

/// Connections open at once, per listener; further ones wait. Keeps a client that forgets to close from eating the file
/// descriptors of the sync.
const CONNECTIONS_MAX: usize = 64;

/// How long a client may take to send the head of a request, and a kept-alive connection may be idle.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);

/// How long requests that are under way at a stop may still take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Pause after a failure to accept, which is as a rule a lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Bytes of a token file; more is not a token.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Why the API cannot be served. All of these are found at start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Another program listens there.
    #[error(
        "control.listen: {listen} is in use by another program; free it or choose another address"
    )]
    ListenInUse {
        /// The configured address.
        listen: String,
    },
    /// The address cannot be listened on.
    #[error(
        "control.listen: cannot listen on {listen}; write it as 127.0.0.1:2727, or \"\" for off"
    )]
    Listen {
        /// The configured address.
        listen: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A running daemon answers on the socket.
    #[error("control.socket: another daemon answers on {}", path.display())]
    SocketInUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way; it is not removed.
    #[error("control.socket: {} is there and is not a socket; move it away", path.display())]
    SocketBlocked {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("control.socket: cannot listen on {} (its directory has to be writable, the path short)", path.display())]
    Socket {
        /// The path of the socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The token file cannot be read.
    #[error("control.token_file: cannot read {}", path.display())]
    TokenFile {
        /// The path of the token file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The token file holds no token.
    #[error(
        "control.token_file: {} does not hold a token: one line of printable characters without spaces",
        path.display()
    )]
    TokenInvalid {
        /// The path of the token file.
        path: PathBuf,
    },
}

/// Reads the token that TCP requests must carry. White space around it is not part of it.
///
/// # Errors
/// When the file cannot be read, or does not hold one word of ASCII.
pub fn read_token(path: &Path) -> Result<SecretString, HttpError> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        .map_err(|source| HttpError::TokenFile { path: path.to_owned(), source })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(HttpError::TokenInvalid { path: path.to_owned() });
    }
    Ok(SecretString::from(token))
}

/// The API, bound and not yet served: binding is apart so that what is wrong is known before READY.
#[derive(Debug)]
pub struct Server {
    tcp: Option<(TcpListener, Door)>,
    unix: Option<(UnixListener, SocketFile)>,
}

impl Server {
    /// A server that listens nowhere yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { tcp: None, unix: None }
    }

    /// Listens on `listen` (`host:port`); an empty text is off. With a token, every request but `/health/*` wants it.
    ///
    /// # Errors
    /// When the address is in use or cannot be listened on.
    pub async fn with_tcp(
        mut self,
        listen: &str,
        token: Option<SecretString>,
    ) -> Result<Self, HttpError> {
        if listen.is_empty() {
            return Ok(self);
        }
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => HttpError::ListenInUse { listen: listen.to_owned() },
            _ => HttpError::Listen { listen: listen.to_owned(), source },
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        self.tcp = Some((listener, Door::Tcp { listen: listen.to_owned(), address, token }));
        Ok(self)
    }

    /// Listens on a unix socket that its owner and group may use. A socket that nobody answers on is replaced.
    ///
    /// # Errors
    /// When a daemon answers there, something else is in the way, or the socket cannot be made.
    pub fn with_socket(mut self, path: &Path) -> Result<Self, HttpError> {
        check_free(path)?;
        let made = make_socket(path)
            .map_err(|source| HttpError::Socket { path: path.to_owned(), source })?;
        self.unix = Some(made);
        Ok(self)
    }

    /// The TCP address that is really listened on; it differs from the configured one when that has port 0.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves until a stop is requested, then gives requests under way a moment to end, and removes the socket.
    pub async fn serve(self, board: StatusBoard, control: Control, stop: Stop) {
        let tcp = async {
            if let Some((listener, door)) = self.tcp {
                let routes = router(board.clone(), control.clone(), door);
                serve_connections(&listener, routes, &stop).await;
            }
        };
        let unix = async {
            if let Some((listener, _file)) = self.unix {
                let routes = router(board.clone(), control.clone(), Door::Socket);
                serve_connections(&listener, routes, &stop).await;
            }
        };
        tokio::join!(tcp, unix);
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

/// The file of a socket that is listened on; removed when dropped, unless somebody else has put another in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
    }
}

/// Refuses a path where a daemon answers or where something that is not a socket lies.
fn check_free(path: &Path) -> Result<(), HttpError> {
    let path = path.to_owned();
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(HttpError::Socket { path, source }),
        Ok(meta) if !meta.file_type().is_socket() => Err(HttpError::SocketBlocked { path }),
        Ok(_) => match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => Err(HttpError::SocketInUse { path }),
            Err(_) => Ok(()),
        },
    }
}

/// Makes the socket under another name and moves it into place when its permissions are right: nobody ever sees it with
/// wrong ones, and a stale socket is replaced in one step.
fn make_socket(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o660))?;
    #[expect(clippy::disallowed_methods, reason = "a socket is made anew at every start")]
    fs::rename(&new, path)?;
    let inode = fs::symlink_metadata(path)?.ino();
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// What connections come from.
trait Accept: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Accepts connections and serves the routes on them until a stop is requested.
async fn serve_connections<A: Accept>(listener: &A, routes: Router, stop: &Stop) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.requested() => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                // The semaphore is never closed; were it, connections would only be unlimited.
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                listener.next().await.map(|stream| (stream, slot))
            } => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let connection = serve_connection(stream, routes.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                if stop.sleep(ACCEPT_RETRY_DELAY).await.is_err() {
                    break;
                }
            }
        }
    }
    let drain = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME_MAX, drain).await.is_err() {
        tracing::debug!("connections to the API were cut at the stop");
    }
}

async fn serve_connection<S>(stream: S, routes: Router, stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A client that goes away or sends what is not HTTP is its own affair.
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the API ended");
    }
}

#[cfg(test)]
mod tests;
