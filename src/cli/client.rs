//! The commands' way to the running server.

use std::time::Duration;

use serde_json::Value;

use super::CliError;
use crate::app::TOKEN_FILE;
use crate::config::Settings;
use crate::http::TOTAL_ROWS;

/// A body that rests so long has broken off.
const STALLED: Duration = Duration::from_secs(300);

/// A client with the admin's token.
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    /// For the server of these settings, or another one.
    pub fn new(settings: &Settings, server: Option<&str>) -> Result<Self, CliError> {
        let base = match server {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", settings.server.bind),
        };
        let builder = crate::tls::client_builder().connect_timeout(Duration::from_secs(5)).no_proxy();
        // Plain http needs no certificates, and the machine may have none.
        let builder = if base.starts_with("http:") { builder.tls_certs_only([]) } else { builder };
        let http = builder
            .build()
            .map_err(|err| CliError::Failed(format!("no HTTP client could be made: {err}")))?;
        Ok(Self { http, base, token: token(settings)? })
    }

    /// Reads a view.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, CliError> {
        let url = url_with(&format!("{}{path}", self.base), query);
        self.answer(self.http.get(url).timeout(Duration::from_secs(30))).await
    }

    /// Reads a view that takes its time to be made.
    pub async fn get_slowly(&self, path: &str) -> Result<Value, CliError> {
        let request = self.http.get(format!("{}{path}", self.base));
        self.answer(request.timeout(Duration::from_secs(3600))).await
    }

    /// Changes something.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let request = self.http.post(format!("{}{path}", self.base)).json(body);
        self.answer(request.timeout(Duration::from_secs(60))).await
    }

    /// Removes something.
    pub async fn delete(&self, path: &str) -> Result<Value, CliError> {
        let request = self.http.delete(format!("{}{path}", self.base));
        self.answer(request.timeout(Duration::from_secs(60))).await
    }

    /// Sends lines of JSON as one body.
    pub async fn post_lines(&self, path: &str, lines: Vec<u8>) -> Result<Value, CliError> {
        let request = self.http.post(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/x-ndjson").body(lines);
        self.answer(request.timeout(Duration::from_secs(120))).await
    }

    /// Reads a body of any length, piece by piece; it came whole if this ends well. `begun` is told how many rows there are
    /// to come, where the server knows.
    pub async fn download(
        &self,
        path: &str,
        query: &[(&str, String)],
        begun: impl FnOnce(Option<u64>),
        mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let broken = |why: &dyn std::fmt::Display| {
            CliError::Failed(format!("the export broke off, what came is not all of it: {why}"))
        };
        let request = self.http.get(url_with(&format!("{}{path}", self.base), query));
        let mut answer = self.send(request).await?;
        if !answer.status().is_success() {
            return read(answer).await.map(drop);
        }
        let total = answer.headers().get(TOTAL_ROWS).and_then(|total| total.to_str().ok());
        begun(total.and_then(|total| total.parse().ok()));
        loop {
            let piece = tokio::time::timeout(STALLED, answer.chunk()).await;
            let piece = piece.map_err(|_| broken(&"the server sends nothing more"))?;
            match piece.map_err(|err| broken(&chain(&err)))? {
                Some(piece) => take(&piece)?,
                None => return Ok(()),
            }
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, CliError> {
        read(self.send(request).await?).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, CliError> {
        request.bearer_auth(&self.token).send().await.map_err(|err| {
            if err.is_connect() {
                CliError::Failed(format!("no server answers at {}; start one with `nightshift`", self.base))
            } else {
                CliError::Failed(format!("the server at {} did not answer: {err}", self.base))
            }
        })
    }
}

/// An error with what it came of.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn read(answer: reqwest::Response) -> Result<Value, CliError> {
    let status = answer.status();
    let body =
        answer.bytes().await.map_err(|err| CliError::Failed(format!("the answer broke off: {err}")))?;
    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok(value);
    }
    let detail = value.get("detail").and_then(Value::as_str).unwrap_or("no reason given");
    let code = value.get("code").and_then(Value::as_str).unwrap_or("");
    Err(CliError::Failed(format!("the server refused ({} {code}): {detail}", status.as_u16())))
}

fn token(settings: &Settings) -> Result<String, CliError> {
    if let Some(token) = &settings.server.admin_token {
        return Ok(token.expose().to_owned());
    }
    let path = settings.data.path.join(TOKEN_FILE);
    match std::fs::read_to_string(&path) {
        Ok(token) => Ok(token.trim().to_owned()),
        Err(err) => Err(CliError::Failed(format!(
            "no token: {} cannot be read ({err}). Start the server once, or set NIGHTSHIFT_ADMIN_TOKEN",
            path.display()
        ))),
    }
}

/// One part of a path, whatever is in it.
pub fn part(text: &str) -> String {
    let mut part = String::new();
    escape(&mut part, text);
    part
}

fn escape(url: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn url_with(url: &str, query: &[(&str, String)]) -> String {
    let mut url = url.to_owned();
    for (number, (key, value)) in query.iter().enumerate() {
        url.push(if number == 0 { '?' } else { '&' });
        url.push_str(key);
        url.push('=');
        escape(&mut url, value);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped() {
        let query = [("status", "a b&c".to_owned()), ("cursor", "x+/=".to_owned())];
        assert_eq!(url_with("http://h/p", &query), "http://h/p?status=a%20b%26c&cursor=x%2B%2F%3D");
    }
}
