//! A receiver of webhooks, which also gives out transcripts.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// What every conversation is.
pub const TRANSCRIPT: &str =
    "[02.11.2026 08:12:05] User: When do I work?\n[02.11.2026 08:12:09] Assistant: On Monday.\n";

/// Takes what webhooks are told, and keeps of which requests it was; whoever asks for anything gets a transcript.
pub struct Hearer {
    pub host: String,
    pub told: Arc<Mutex<BTreeSet<String>>>,
}

impl Hearer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (host, told) = (listener.local_addr().unwrap().to_string(), Arc::<Mutex<BTreeSet<_>>>::default());
        let heard = told.clone();
        // It ends with the process of the tests; a sender that dies in the midst is what is tested.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = Self::hear(stream, &heard);
            }
        });
        Self { host, told }
    }

    fn hear(stream: std::net::TcpStream, told: &Mutex<BTreeSet<String>>) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut reader = BufReader::new(&stream);
        let (mut line, mut length) = (String::new(), 0);
        reader.read_line(&mut line)?;
        let asks = line.starts_with("GET ");
        let gone = line.starts_with("GET /gone");
        line.clear();
        while reader.read_line(&mut line)? > 2 {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        if gone {
            return (&stream)
                .write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        }
        if asks {
            let head = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                TRANSCRIPT.len()
            );
            return (&stream).write_all((head + TRANSCRIPT).as_bytes());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let requests = said["data"]["requests"].as_array().cloned().unwrap_or_default();
        told.lock().unwrap().extend(requests.iter().map(|one| one["clientId"].as_str().unwrap().to_owned()));
        (&stream).write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
    }
}
