//! Commands under a session of somebody else's choosing.
//!
//! To fence off a daemon, a higher transaction number is used up *in that daemon's sessions*, whose ids stand in its
//! lease. The driver gives every command a session of its own making and has no way to name another; a second `lsid`
//! in the command is refused by the server (40413). So for these few commands a connection of the driver's goes through
//! a relay inside this process, which puts the other session's id in place of the driver's. Both are 16 bytes, so
//! nothing else changes. Authentication and everything else pass through as they are.
//!
//! The relay listens on a unix socket in the state directory, which only snapsync's user can enter, and speaks TLS with
//! the server itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Bson, Document, Uuid, doc};
use mongodb::Client;
use mongodb::options::{ClientOptions, ServerAddress, Tls};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use super::client::{Deployment, PoolOptions, client_options};
use super::command::run;
use super::error::{Error, Side, unwanted_reply};
use super::tls;
use crate::config::Uri;

/// The largest message from the driver: these commands are small.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a message's header; its length, with the header, stands in the first four.
const HEADER_BYTES: usize = 16;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 27017;

/// Session ids to replace, and by what.
type Replacements = Arc<Mutex<HashMap<[u8; 16], [u8; 16]>>>;

/// Runs commands on the primary under sessions with chosen ids.
#[derive(Debug)]
pub struct ForeignSessions {
    side: Side,
    client: Client,
    replacements: Replacements,
    socket: PathBuf,
    listening: JoinHandle<()>,
}

impl ForeignSessions {
    /// Prepares it, with its socket in `directory`. For a short time only: it stays with the server that is primary
    /// now.
    ///
    /// # Errors
    /// The server was not reached, or the socket could not be made.
    pub async fn open(deployment: &Deployment, uri: &Uri, directory: &Path) -> Result<Self, Error> {
        let side = deployment.side;
        let action = "reach the sessions of an earlier holder";
        let failed = |error: &mongodb::error::Error| Error::new(side, action, error);
        let local = |error: String| Error::other(side, action, error);
        let pool = PoolOptions {
            app_name: "snapsync fence".to_owned(),
            connections: 1,
            selection_timeout: Some(CONNECT_WITHIN),
        };
        let mut options = client_options(side, uri, &pool).await?;
        let upstream = Arc::new(Upstream::find(deployment, &options, action).await?);
        let socket = directory.join("fence.sock");
        crate::durable::remove_if_there(&socket).map_err(|error| local(error.to_string()))?;
        let listener = UnixListener::bind(&socket).map_err(|error| local(error.to_string()))?;
        let replacements = Replacements::default();
        let listening = tokio::spawn(listen(listener, upstream, replacements.clone()));
        options.hosts = vec![ServerAddress::Unix { path: socket.clone() }];
        options.direct_connection = Some(true);
        options.repl_set_name = None;
        options.tls = Some(Tls::Disabled);
        // Compressed messages could not be looked into.
        options.compressors = None;
        let client = Client::with_options(options).map_err(|error| failed(&error))?;
        Ok(Self { side, client, replacements, socket, listening })
    }

    /// Runs a command as if the session with this id were ours.
    ///
    /// # Errors
    /// The call failed, or a write in it did.
    pub async fn run(
        &self,
        id: Uuid,
        database: &str,
        action: &str,
        command: Document,
    ) -> Result<(), Error> {
        let failed = |error: &mongodb::error::Error| Error::new(self.side, action, error);
        let session = self.client.start_session().causal_consistency(false).await;
        let mut session = session.map_err(|error| failed(&error))?;
        let own = session_id(session.id())
            .ok_or_else(|| Error::other(self.side, action, "the driver's session has no id"))?;
        self.replacements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(own.bytes(), id.bytes());
        let database = self.client.database(database);
        let reply = database.run_command(command).session(&mut session).await;
        let reply = reply.map_err(|error| failed(&error))?;
        let errors = reply.get_array("writeErrors").ok().and_then(|errors| errors.first());
        let refused =
            errors.and_then(Bson::as_document).or(reply.get_document("writeConcernError").ok());
        match refused {
            None => Ok(()),
            Some(refused) => {
                let code = refused.get_i32("code").unwrap_or(0);
                Err(Error::from_code(self.side, action, code, ""))
            }
        }
    }
}

impl Drop for ForeignSessions {
    fn drop(&mut self) {
        self.listening.abort();
        if let Err(error) = crate::durable::remove_if_there(&self.socket) {
            tracing::debug!("{error}");
        }
    }
}

/// The id inside an `lsid` as the driver makes it.
pub fn session_id(lsid: &Document) -> Option<Uuid> {
    match lsid.get("id") {
        Some(Bson::Binary(id)) if id.subtype == BinarySubtype::Uuid => id.to_uuid().ok(),
        _ => None,
    }
}

/// Where the relay connects to.
struct Upstream {
    host: String,
    port: u16,
    tls: Option<tokio_rustls::TlsConnector>,
}

impl Upstream {
    async fn find(
        deployment: &Deployment,
        options: &ClientOptions,
        action: &str,
    ) -> Result<Self, Error> {
        let (host, port) = match (options.direct_connection, options.hosts.first()) {
            // Told to speak with this one only: under the names of the others it may not be reached.
            (Some(true), Some(ServerAddress::Tcp { host, port })) => (host.clone(), *port),
            _ => {
                let hello = run(deployment, "admin", action, doc! { "isMaster": 1 }).await?;
                let primary = hello.get_str("primary").ok().map(ServerAddress::parse);
                match primary {
                    Some(Ok(ServerAddress::Tcp { host, port })) => (host, port),
                    _ => return Err(unwanted_reply(deployment.side, action, "primary")),
                }
            }
        };
        let tls = match &options.tls {
            Some(Tls::Enabled(options)) => {
                let connector = tls::connector(options);
                Some(connector.map_err(|text| Error::other(deployment.side, action, text))?)
            }
            _ => None,
        };
        Ok(Self { host, port: port.unwrap_or(DEFAULT_PORT), tls })
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((self.host.trim_matches(['[', ']']), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(connector) => {
                let name = tls::server_name(&self.host).map_err(std::io::Error::other)?;
                Ok(Box::new(connector.connect(name, stream).await?))
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Serves the driver's connections until aborted.
async fn listen(listener: UnixListener, upstream: Arc<Upstream>, replacements: Replacements) {
    let mut connections = JoinSet::new();
    while let Ok((driver, _)) = listener.accept().await {
        let (upstream, replacements) = (upstream.clone(), replacements.clone());
        connections.spawn(async move {
            // The driver sees the connection end, and reports it.
            if let Err(error) = pass(driver, &upstream, &replacements).await {
                tracing::debug!("relay: {error}");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes messages on, until either side ends.
async fn pass(
    driver: UnixStream,
    upstream: &Upstream,
    replacements: &Replacements,
) -> std::io::Result<()> {
    let server = tokio::time::timeout(CONNECT_WITHIN, upstream.connect()).await??;
    let (mut from_driver, mut to_driver) = driver.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let upwards = async {
        loop {
            let message = read_message(&mut from_driver).await?;
            let message = replaced(message, replacements);
            to_server.write_all(&message).await?;
            to_server.flush().await?;
        }
    };
    tokio::select! {
        ended = upwards => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_driver) => ended.map(drop),
    }
}

async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    from.read_exact(&mut message).await?;
    let length = i32::from_le_bytes([message[0], message[1], message[2], message[3]]);
    let length = usize::try_from(length).unwrap_or(0);
    if !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(std::io::Error::other("a message of an impossible length"));
    }
    message.resize(length, 0);
    from.read_exact(&mut message[4..]).await?;
    Ok(message)
}

/// Session ids are random: what looks like one is one.
fn replaced(mut message: Vec<u8>, replacements: &Replacements) -> Vec<u8> {
    let replacements = replacements.lock().unwrap_or_else(PoisonError::into_inner);
    for (own, other) in replacements.iter() {
        let found = message.windows(own.len()).position(|window| window == own);
        if let Some(at) = found {
            message[at..at + other.len()].copy_from_slice(other);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replaces_the_id_in_a_whole_message() {
        let (own, other) = (Uuid::new(), Uuid::new());
        let replacements = Replacements::default();
        replacements.lock().unwrap().insert(own.bytes(), other.bytes());
        let message = |id: Uuid| {
            let body = bson::rawdoc! { "update": "x", "lsid": { "id": bson::Binary::from(id) } };
            let length = i32::try_from(HEADER_BYTES + body.as_bytes().len()).unwrap();
            [&length.to_le_bytes()[..], &[0; 12], body.as_bytes()].concat()
        };
        let bytes = [message(own), message(own)].concat();
        let mut stream = &bytes[..];
        for _ in 0..2 {
            let read = read_message(&mut stream).await.unwrap();
            assert_eq!(replaced(read, &replacements), message(other));
        }
        assert!(read_message(&mut stream).await.is_err(), "the end");
        for length in [0, 15, MESSAGE_BYTES_MAX + 1] {
            let header = i32::try_from(length).unwrap().to_le_bytes();
            assert!(read_message(&mut &header[..]).await.is_err(), "{length}");
        }
    }
}
