//! Real HTTP over real sockets.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::http::client::{self, ClientError};
use crate::http::control::Wish;
use crate::http::control::{Command, Refusal};
use crate::status::State;

const TOKEN: &str = "s3cret";

struct Running {
    address: Option<SocketAddr>,
    socket: PathBuf,
    board: StatusBoard,
    stop: Stop,
    commands: Option<mpsc::Receiver<Command>>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

async fn start(token: Option<&str>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/control.sock");
    let server = Server::new()
        .with_tcp("127.0.0.1:0", token.map(SecretString::from))
        .await
        .unwrap()
        .with_socket(&socket)
        .unwrap();
    let address = server.address();
    let board = StatusBoard::new("0.1.0");
    let stop = Stop::new();
    let (control, commands) = Control::channel();
    let task = tokio::spawn(server.serve(board.clone(), control, stop.clone()));
    Running { address, socket, board, stop, commands: Some(commands), task, _dir: dir }
}

impl Running {
    /// Answers every wish with `answer`, and notes what was wished.
    fn answering(&mut self, answer: Result<(), Refusal>) -> mpsc::Receiver<Wish> {
        let mut commands = self.commands.take().unwrap();
        let (sender, wishes) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                sender.send(command.wish).await.unwrap();
                command.reply.send(answer.clone()).unwrap();
            }
        });
        wishes
    }

    /// Sends a request over TCP as it stands, and returns status, head and body.
    async fn tcp(&self, request: &str) -> (u16, String, Value) {
        let address = self.address.unwrap();
        let request = request.replace("HOST", &format!("Host: {address}"));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let request = format!("GET {path} HTTP/1.1\nHOST\nConnection: close\n\n");
        let (status, _, body) = self.tcp(&request).await;
        (status, body)
    }
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\n{headers}Connection: close\nContent-Length: {length}\n\n{body}")
}

#[tokio::test]
async fn status_is_the_same_on_both_doors() {
    let running = start(None).await;
    let (status, over_tcp) = running.get("/status").await;
    let over_socket = client::get(&running.socket, "/status").await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(over_tcp, serde_json::to_value(running.board.read()).unwrap());
    assert_eq!(over_tcp, serde_json::from_slice::<Value>(&over_socket).unwrap());
}

#[tokio::test]
async fn health_follows_the_state() {
    let running = start(Some(TOKEN)).await;
    assert_eq!(running.get("/health/live").await.0, 200);
    assert_eq!(running.get("/health/ready").await, (503, json!({"error": "starting"})));
    running.board.enter(State::Halted, Some("the lease is gone".into()));
    let halted = json!({"error": "halted: the lease is gone"});
    assert_eq!(running.get("/health/ready").await, (503, halted));
    assert_eq!(running.get("/health/live").await.0, 200);
    running.board.enter(State::Live, None);
    assert_eq!(running.get("/health/ready").await.0, 200);
}

#[tokio::test]
async fn wrong_paths_and_methods_are_errors_in_json() {
    let running = start(None).await;
    let nothing = json!({"error": "there is nothing at /nowhere"});
    assert_eq!(running.get("/nowhere").await, (404, nothing));
    let (status, head, body) =
        running.tcp("GET /pause HTTP/1.1\nHOST\nConnection: close\n\n").await;
    assert_eq!((status, body), (405, json!({"error": "/pause does not take GET"})));
    assert!(head.contains("allow: post"), "{head}");
}

#[tokio::test]
async fn a_token_is_wanted_over_tcp_and_not_on_the_socket() {
    let mut running = start(Some(TOKEN)).await;
    let mut wishes = running.answering(Ok(()));
    let (status, head, body) =
        running.tcp("GET /status HTTP/1.1\nHOST\nConnection: close\n\n").await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer") && head.contains("cache-control: no-store"));
    assert!(!body.to_string().contains(TOKEN));
    let with =
        format!("GET /status HTTP/1.1\nHOST\nAuthorization: Bearer {TOKEN}\nConnection: close\n\n");
    assert_eq!(running.tcp(&with).await.0, 200);

    client::post(&running.socket, "/pause", None).await.unwrap();
    assert_eq!(wishes.recv().await, Some(Wish::Pause));
    client::post(&running.socket, "/resume", Some(&json!({}))).await.unwrap();
    assert_eq!(wishes.recv().await, Some(Wish::Resume));
}

#[tokio::test]
async fn a_post_over_tcp_is_guarded() {
    let mut running = start(Some(TOKEN)).await;
    let mut wishes = running.answering(Ok(()));
    let token = format!("Authorization: Bearer {TOKEN}\n");
    let json = "Content-Type: application/json\n";
    let send = |headers: String, body| {
        let request = post("/pause", &headers, body);
        let running = &running;
        async move { running.tcp(&request).await.0 }
    };
    assert_eq!(send(format!("HOST\n{json}"), "{}").await, 401);
    assert_eq!(send(format!("HOST\n{token}"), "{}").await, 415);
    assert_eq!(send(format!("Host: evil.example\n{token}{json}"), "{}").await, 403);
    assert_eq!(send(format!("HOST\nOrigin: http://evil.example\n{token}{json}"), "{}").await, 403);
    assert_eq!(send(format!("HOST\n{token}{json}"), "{\"a\": 1}").await, 400);
    assert_eq!(send(format!("HOST\n{token}{json}"), "no json").await, 400);
    let large = " ".repeat(2 * 1024 * 1024);
    assert_eq!(send(format!("HOST\n{token}{json}"), &large).await, 413);
    assert!(wishes.try_recv().is_err(), "none of these may reach the daemon");
    assert_eq!(send(format!("HOST\n{token}{json}"), "{}").await, 200);
    assert_eq!(send(format!("HOST\n{token}"), "").await, 200);
    assert_eq!(wishes.recv().await, Some(Wish::Pause));
}

#[tokio::test]
async fn a_post_over_tcp_without_a_configured_token_is_forbidden() {
    let mut running = start(None).await;
    let mut wishes = running.answering(Ok(()));
    assert_eq!(running.tcp(&post("/resume", "HOST\n", "")).await.0, 403);
    assert!(wishes.try_recv().is_err());
}

#[tokio::test]
async fn a_refusal_reaches_the_operator() {
    let mut running = start(None).await;
    let _wishes = running.answering(Err(Refusal::wrong_state("it is not paused")));
    let error = client::post(&running.socket, "/resume", None).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 409, .. }), "{error:?}");
    assert_eq!(error.to_string(), "it is not paused");
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_removes_the_socket() {
    let running = start(None).await;
    let mut idle = TcpStream::connect(running.address.unwrap()).await.unwrap();
    client::get(&running.socket, "/health/live").await.unwrap();
    running.stop.request();
    running.task.await.unwrap();
    assert!(!running.socket.exists());
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "closed");
}

#[tokio::test]
async fn more_clients_than_slots_do_not_shut_others_out_for_ever() {
    let running = start(None).await;
    let address = running.address.unwrap();
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 1 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let waiting = tokio::time::timeout(Duration::from_millis(200), running.get("/health/live"));
    assert!(waiting.await.is_err(), "all slots are taken");
    client::get(&running.socket, "/health/live").await.unwrap();
    drop(idle);
    assert_eq!(running.get("/health/live").await.0, 200);
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_replaces_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::new().with_socket(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

    let taken = Server::new().with_socket(&path).unwrap_err();
    assert!(matches!(taken, HttpError::SocketInUse { .. }), "{taken:?}");
    assert!(path.exists());
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_in_the_way_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    fs::write(&path, "precious").unwrap();
    let error = Server::new().with_socket(&path).unwrap_err();
    assert!(matches!(error, HttpError::SocketBlocked { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn an_address_in_use_and_a_wrong_one_are_told_apart() {
    let first = Server::new().with_tcp("127.0.0.1:0", None).await.unwrap();
    let taken = first.address().unwrap().to_string();
    let error = Server::new().with_tcp(&taken, None).await.unwrap_err();
    assert!(matches!(error, HttpError::ListenInUse { .. }), "{error:?}");
    let error = Server::new().with_tcp("nonsense", None).await.unwrap_err();
    assert!(matches!(error, HttpError::Listen { .. }), "{error:?}");
    assert_eq!(Server::new().with_tcp("", None).await.unwrap().address(), None);
}

#[test]
fn a_token_is_one_word() {
    use secrecy::ExposeSecret;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "s3cret\n").unwrap();
    assert_eq!(read_token(&path).unwrap().expose_secret(), "s3cret");
    for wrong in ["", " \n", "two words", "t\u{e9}l\u{e9}"] {
        fs::write(&path, wrong).unwrap();
        assert!(matches!(read_token(&path), Err(HttpError::TokenInvalid { .. })), "{wrong:?}");
    }
    assert!(matches!(read_token(dir.path()), Err(HttpError::TokenFile { .. })));
}
