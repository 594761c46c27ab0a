//! A server that answers as a mongos does, or as one of MongoDB 4.0, as far as a driver and snapsync ask before they
//! turn away.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use bson::{Document, doc};

const OP_REPLY: i32 = 1;
const OP_QUERY: i32 = 2004;
const OP_MSG: i32 = 2013;
const HEADER_BYTES: usize = 16;

/// Listens on a free port for as long as the test binary runs.
#[derive(Debug)]
pub struct FakeMongos {
    port: u16,
}

impl FakeMongos {
    /// Starts it.
    pub fn start() -> Self {
        Self::with(doc! {"msg": "isdbgrid", "maxWireVersion": 17})
    }

    /// One that is no mongos but a standalone server of MongoDB 4.0.
    pub fn of_4_0() -> Self {
        Self::with(doc! {"maxWireVersion": 7})
    }

    /// With this in its answer to `hello`.
    fn with(hello: Document) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is no news.
                let hello = hello.clone();
                std::thread::spawn(move || drop(serve(stream, &hello)));
            }
        });
        Self { port }
    }

    /// A connection string to it.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/", self.port)
    }
}

fn serve(mut stream: TcpStream, hello: &Document) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let field = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let length = usize::try_from(field(0)).unwrap() - HEADER_BYTES;
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let (op, begin) = match field(12) {
            // Flags and the kind of the first section stand before the command.
            OP_MSG => (OP_MSG, vec![0; 5]),
            // Flags, cursor, first, number of documents.
            OP_QUERY => (OP_REPLY, [&[0; 16][..], &1_i32.to_le_bytes()].concat()),
            other => panic!("a message of kind {other}"),
        };
        let at = if op == OP_MSG { 5 } else { query_at(&body) };
        let command: Document =
            bson::deserialize_from_slice(&body[at..document_end(&body, at)]).expect("a command");
        let reply = bson::serialize_to_vec(&answer(&command, hello)).expect("BSON");
        let length = i32::try_from(HEADER_BYTES + begin.len() + reply.len()).unwrap();
        let mut message = Vec::new();
        for number in [length, 0, field(4), op] {
            message.extend(number.to_le_bytes());
        }
        message.extend(begin);
        // An OP_REPLY ends its head with the number of documents, which is 1.
        message.extend(reply);
        stream.write_all(&message)?;
    }
}

/// Where the document of an OP_QUERY begins: after flags, a name that ends with a zero, and two numbers.
fn query_at(body: &[u8]) -> usize {
    4 + body[4..].iter().position(|byte| *byte == 0).expect("a name") + 1 + 8
}

fn document_end(body: &[u8], at: usize) -> usize {
    let length = i32::from_le_bytes(body[at..at + 4].try_into().unwrap());
    at + usize::try_from(length).unwrap()
}

fn answer(command: &Document, hello: &Document) -> Document {
    let name = command.keys().next().expect("a command has a name");
    match name.to_ascii_lowercase().as_str() {
        "hello" | "ismaster" => {
            let mut reply = doc! {
                "ismaster": true, "isWritablePrimary": true, "helloOk": true, "maxBsonObjectSize": 16_777_216,
                "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
                "localTime": bson::DateTime::now(), "logicalSessionTimeoutMinutes": 30, "connectionId": 1,
                "minWireVersion": 0, "ok": 1.0,
            };
            reply.extend(hello.clone());
            reply
        }
        "buildinfo" => doc! { "version": "6.0.5", "versionArray": [6, 0, 5, 0], "ok": 1.0 },
        "ping" | "endsessions" => doc! { "ok": 1.0 },
        _ => doc! {
            "ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": format!("no such command: '{name}'"),
        },
    }
}
