//! A network that fails: a TCP proxy before one server.
//!
//! It knows of MongoDB's protocol only what a message looks like from outside: a length, a number, the number of the
//! message that it answers, and for a request the name of the command. That is enough to let one particular request
//! through and lose its answer.
//!
//! Drivers find the members of a replica set by the names in its configuration and would go round the proxy, so
//! [`Proxy::uri`] asks for a direct connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::wait::wait_for;

/// Length, request number, number answered, kind of message.
const HEADER_BYTES: usize = 16;
const OP_MSG: i32 = 2013;
const MESSAGE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// What the network does to those who use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Weather {
    /// Nothing passes; connections stay open.
    stalled: bool,
    /// Nobody gets a connection.
    refusing: bool,
    /// Connections older than this are cut.
    generation: u64,
}

/// A proxy on a port of 127.0.0.1. Cut and gone when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    weather: watch::Sender<Weather>,
    losses: Arc<Losses>,
    task: JoinHandle<()>,
}

/// Which answers are lost, and how many were.
#[derive(Debug, Default)]
struct Losses {
    /// How many more answers to each command are lost.
    pending: Mutex<HashMap<String, u32>>,
    /// How many answers to each command were lost.
    done: Mutex<HashMap<String, u32>>,
}

impl Losses {
    fn lock(map: &Mutex<HashMap<String, u32>>) -> MutexGuard<'_, HashMap<String, u32>> {
        map.lock().expect("no test panics while it holds the lock")
    }

    /// Whether the answer to this request is to be lost; counts it off.
    fn takes(&self, command: &str) -> bool {
        match Self::lock(&self.pending).get_mut(command) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}

impl Proxy {
    /// A proxy before the server at `upstream`, such as `127.0.0.1:27017`.
    pub async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let address = listener.local_addr().expect("the port bound").to_string();
        let (weather, seen) = watch::channel(Weather::default());
        let losses: Arc<Losses> = Arc::default();
        let task = tokio::spawn(accept(listener, upstream.to_owned(), seen, Arc::clone(&losses)));
        Self { address, weather, losses, task }
    }

    /// A connection string that goes through here and nowhere else.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.address)
    }

    /// Cuts every connection that there is; new ones are let through.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }

    /// Cuts every connection and lets no new one through until [`Proxy::restore`].
    pub fn unplug(&self) {
        self.weather.send_modify(|weather| {
            weather.generation += 1;
            weather.refusing = true;
        });
    }

    /// Lets nothing through in either direction until [`Proxy::restore`]; the connections stay.
    pub fn stall(&self) {
        self.weather.send_modify(|weather| weather.stalled = true);
    }

    /// Good weather again.
    pub fn restore(&self) {
        self.weather.send_modify(|weather| {
            weather.stalled = false;
            weather.refusing = false;
        });
    }

    /// The next `times` requests of this command (`insert`, say) reach the server and are carried out; their answers
    /// are dropped, and their connections cut.
    pub fn lose_answers(&self, command: &str, times: u32) {
        *Losses::lock(&self.losses.pending).entry(command.to_owned()).or_default() += times;
    }

    /// How many answers to this command have been lost.
    pub fn lost(&self, command: &str) -> u32 {
        Losses::lock(&self.losses.done).get(command).copied().unwrap_or(0)
    }

    /// Waits until so many answers to this command have been lost.
    pub async fn wait_lost(&self, command: &str, times: u32) {
        let description = format!("{times} lost answers to {command}");
        wait_for(&description, Duration::from_secs(60), || async {
            let lost = self.lost(command);
            if lost >= times { Ok(()) } else { Err(format!("only {lost} were lost")) }
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.unplug();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    weather: watch::Receiver<Weather>,
    losses: Arc<Losses>,
) {
    while let Ok((client, _)) = listener.accept().await {
        if weather.borrow().refusing {
            continue;
        }
        let (weather, losses) = (weather.clone(), Arc::clone(&losses));
        let upstream = upstream.clone();
        tokio::spawn(async move {
            if let Ok(server) = TcpStream::connect(upstream).await {
                carry(client, server, weather, losses).await;
            }
        });
    }
}

/// Carries messages both ways until one side ends, or the connection is cut.
async fn carry(
    client: TcpStream,
    server: TcpStream,
    mut weather: watch::Receiver<Weather>,
    losses: Arc<Losses>,
) {
    // Without this small answers wait for each other.
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let generation = weather.borrow().generation;
    let lost: Arc<Mutex<HashMap<i32, String>>> = Arc::default();
    let up = requests(from_client, to_server, weather.clone(), &losses, &lost);
    let down = answers(from_server, to_client, weather.clone(), &losses, &lost);
    let cut = weather.wait_for(|weather| weather.generation != generation);
    tokio::select! {
        _ = up => {}
        _ = down => {}
        _ = cut => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    losses: &Losses,
    lost: &Mutex<HashMap<i32, String>>,
) -> Option<()> {
    loop {
        let message = read_message(&mut from).await?;
        if let Some(command) = command_name(&message)
            && losses.takes(command)
        {
            lost.lock().ok()?.insert(number_at(&message, 4)?, command.to_owned());
        }
        weather.wait_for(|weather| !weather.stalled).await.ok()?;
        to.write_all(&message).await.ok()?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    losses: &Losses,
    lost: &Mutex<HashMap<i32, String>>,
) -> Option<()> {
    loop {
        let message = read_message(&mut from).await?;
        let command = lost.lock().ok()?.remove(&number_at(&message, 8)?);
        if let Some(command) = command {
            *Losses::lock(&losses.done).entry(command).or_default() += 1;
            return None;
        }
        weather.wait_for(|weather| !weather.stalled).await.ok()?;
        to.write_all(&message).await.ok()?;
    }
}

async fn read_message(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut message = vec![0; HEADER_BYTES];
    from.read_exact(&mut message).await.ok()?;
    let length = usize::try_from(number_at(&message, 0)?).ok()?;
    if !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&length) {
        return None;
    }
    message.resize(length, 0);
    from.read_exact(&mut message[HEADER_BYTES..]).await.ok()?;
    Some(message)
}

fn number_at(message: &[u8], at: usize) -> Option<i32> {
    let bytes = message.get(at..at + 4)?;
    Some(i32::from_le_bytes(bytes.try_into().ok()?))
}

/// The name of the first field of the command in a request: header, flags, section kind 0, document length, type, name.
fn command_name(message: &[u8]) -> Option<&str> {
    if number_at(message, 12)? != OP_MSG || *message.get(20)? != 0 {
        return None;
    }
    let name = message.get(26..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&name[..end]).ok()
}
