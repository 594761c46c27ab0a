//! Connecting to a deployment.

use std::time::Duration;

use mongodb::Client;
use mongodb::options::{ClientOptions, ServerAddress};

use super::error::{Error, Side};
use crate::config::Uri;

/// How long a call looks for a suitable server before it fails: long enough for an ordinary election (10-12 s).
const SERVER_SELECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How often servers are looked at; with the connect time-out this bounds how long a silent server goes unnoticed.
const HEARTBEAT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A name that no name server knows, for ever (RFC 6761).
const NOWHERE: &str = "gone.invalid";

/// What the connections of one [`Deployment`] are for.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Shown by the server in `$currentOp`, and used to find what an earlier run left in flight.
    pub app_name: String,
    /// Connections at the most, from 1.
    pub connections: u32,
    /// How long to look for a suitable server; `None` for the default of 15 s.
    pub selection_timeout: Option<Duration>,
}

/// A connected deployment: a driver client and the side it stands on, so that every error names it.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Which one.
    pub side: Side,
    /// The driver's client, cheap to clone.
    pub client: Client,
}

impl Deployment {
    /// Prepares the connections that `uri` asks for. Connects lazily: the first call does.
    ///
    /// # Errors
    /// A URI that the driver refuses, or a host name (SRV) that does not resolve.
    pub async fn connect(side: Side, uri: &Uri, pool: &PoolOptions) -> Result<Self, Error> {
        let options = client_options(side, uri, pool).await?;
        let client = Client::with_options(options);
        let client = client.map_err(|error| Error::new(side, "connect", &error))?;
        Ok(Self { side, client })
    }

    /// Stands for one whose address cannot be looked up any more, and that nobody has to ask: it never answers.
    ///
    /// # Errors
    /// None that is known.
    pub fn gone(side: Side) -> Result<Self, Error> {
        let failed = |error: mongodb::error::Error| Error::new(side, "connect", &error);
        let mut options = ClientOptions::default();
        options.hosts = vec![ServerAddress::parse(NOWHERE).map_err(failed)?];
        options.server_selection_timeout = Some(SERVER_SELECTION_TIMEOUT);
        options.heartbeat_freq = Some(HEARTBEAT);
        Ok(Self { side, client: Client::with_options(options).map_err(failed)? })
    }

    /// An error of this side.
    #[must_use]
    pub fn error(&self, action: &str, error: &mongodb::error::Error) -> Error {
        Error::new(self.side, action, error)
    }
}

/// The options of a connection string, with what snapsync sets itself.
///
/// # Errors
/// As [`Deployment::connect`].
pub(super) async fn client_options(
    side: Side,
    uri: &Uri,
    pool: &PoolOptions,
) -> Result<ClientOptions, Error> {
    let text = without_socket_timeout(uri.expose());
    let parsed = ClientOptions::parse(text).await;
    let mut options = parsed.map_err(|error| Error::new(side, "connect", &error))?;
    options.app_name = Some(pool.app_name.clone());
    options.max_pool_size = Some(pool.connections);
    options.max_connecting = Some(pool.connections.min(4));
    options.server_selection_timeout =
        Some(pool.selection_timeout.unwrap_or(SERVER_SELECTION_TIMEOUT));
    options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
    options.heartbeat_freq.get_or_insert(HEARTBEAT);
    // Retrying is decided by snapsync, which knows what a repeated write would mean.
    options.retry_reads = Some(false);
    options.retry_writes = Some(false);
    Ok(options)
}

/// The driver refuses a URI with `socketTimeoutMS`, which other drivers accept: it is left out.
fn without_socket_timeout(uri: &str) -> String {
    let Some((head, query)) = uri.split_once('?') else { return uri.to_owned() };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|option| !option.to_ascii_lowercase().starts_with("sockettimeoutms="))
        .collect();
    if kept.is_empty() { head.to_owned() } else { format!("{head}?{}", kept.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_the_option_the_driver_refuses() {
        let uri = "mongodb://h/?socketTimeoutMS=5&tls=true";
        assert_eq!(without_socket_timeout(uri), "mongodb://h/?tls=true");
        assert_eq!(without_socket_timeout("mongodb://h/?sockettimeoutms=5"), "mongodb://h/");
        assert_eq!(without_socket_timeout("mongodb://h"), "mongodb://h");
    }
}
