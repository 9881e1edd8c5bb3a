//! A small web server on loopback that answers as a test wants it, also wrongly.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// How the body comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// At once, and with its length.
    Whole,
    /// Without a length.
    Chunked,
    /// A byte at a time, without end.
    Drip,
    /// Half of it, and then the connection ends.
    Half,
    /// Not even a head.
    Silent,
    /// Nothing until [`Web::open`], and then all.
    Held,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub shape: Shape,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), shape: Shape::Whole }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }
}

type Handler = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// The server; it ends with its runtime.
#[derive(Clone)]
pub struct Web {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    gate: watch::Sender<bool>,
}

impl Web {
    pub async fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            gate: watch::Sender::default(),
        };
        let gate = web.gate.clone();
        let (asked, handler): (_, Handler) = (web.asked.clone(), Arc::new(handler));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, handler, gate) = (asked.clone(), handler.clone(), gate.subscribe());
                // Who hangs up in the midst is no failure of the server's.
                tokio::spawn(async move { drop(serve(stream, &asked, &handler, gate).await) });
            }
        });
        web
    }

    /// `127.0.0.1:PORT`, as an entry of `allow_hosts`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Lets go what is held.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path == path).count()
    }
}

async fn serve(
    mut stream: TcpStream,
    asked: &Mutex<Vec<Asked>>,
    handler: &Handler,
    mut gate: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let request = Asked { method, path, headers, body: bytes[head..].to_vec() };
    asked.lock().unwrap().push(request.clone());
    let answer = handler(&request);
    if answer.shape == Shape::Held {
        // The server lives as long as the test.
        drop(gate.wait_for(|open| *open).await);
    }
    let mut out = format!("HTTP/1.1 {} Whatever\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    match answer.shape {
        Shape::Chunked => out.push_str("transfer-encoding: chunked\r\n\r\n"),
        Shape::Drip => out.push_str("\r\n"),
        Shape::Whole | Shape::Held | Shape::Half | Shape::Silent => {
            out.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
        }
    }
    match answer.shape {
        Shape::Whole | Shape::Held => {
            stream.write_all(out.as_bytes()).await?;
            stream.write_all(&answer.body).await?;
        }
        Shape::Half => {
            stream.write_all(out.as_bytes()).await?;
            stream.write_all(&answer.body[..answer.body.len() / 2]).await?;
        }
        Shape::Chunked => {
            stream.write_all(out.as_bytes()).await?;
            for chunk in answer.body.chunks(1000) {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                stream.write_all(chunk).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Shape::Drip => {
            stream.write_all(out.as_bytes()).await?;
            let mut drops = tokio::time::interval(Duration::from_millis(20));
            loop {
                drops.tick().await;
                stream.write_all(b"x").await?;
            }
        }
        Shape::Silent => loop {
            // Until the other side gives up.
            if stream.read(&mut [0; 64]).await? == 0 {
                break;
            }
        },
    }
    stream.shutdown().await
}
