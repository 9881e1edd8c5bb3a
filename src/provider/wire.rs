//! The provider's JSON, read tolerantly.

mod member;

use serde_json::{Map, Value};

use crate::domain::id::{FileId, ProviderBatchId, Timestamp};
pub(super) use member::cut;
use member::{count, id, scalar, text, time};

/// Longer words of the provider are cut.
pub const MESSAGE_CHARS_MAX: usize = 500;

/// An answer that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not JSON at all.
    #[error("not JSON")]
    NotJson,
    /// JSON of another shape.
    #[error("not {0}")]
    Not(&'static str),
    /// No id, or one that cannot be one.
    #[error("{0} without a usable id")]
    NoId(&'static str),
}

/// A file at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileObject {
    /// Its id.
    pub id: FileId,
    /// Its length, where the provider says.
    pub bytes: Option<u64>,
    /// When the provider made it, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// Its name.
    pub filename: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
}

/// Where a batch stands at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderStatus {
    /// The input is being checked.
    Validating,
    /// Lines are being run.
    InProgress,
    /// Results are being put together.
    Finalizing,
    /// Ended: every line has been tried.
    Completed,
    /// Ended: not admitted.
    Failed,
    /// Ended: the window closed first.
    Expired,
    /// Being cancelled.
    Cancelling,
    /// Ended: cancelled.
    Cancelled,
    /// A word that we do not know: still running, as far as we can tell.
    Unknown(String),
}

/// One entry of a batch's `errors.data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchError {
    /// For instance `token_limit_exceeded`.
    pub code: Option<String>,
    /// The provider's words, cut to 500 characters.
    pub message: Option<String>,
    /// For instance `body.model`.
    pub param: Option<String>,
    /// The line of the input file, from 1.
    pub line: Option<u64>,
}

/// The provider's own counts; not an accounting identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProviderCounts {
    /// Lines in all; 0 while validating.
    pub total: u64,
    /// Lines that went well.
    pub completed: u64,
    /// Lines that did not.
    pub failed: u64,
}

/// A batch at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchObject {
    /// Its id.
    pub id: ProviderBatchId,
    /// Where it stands.
    pub status: ProviderStatus,
    /// The endpoint of its lines.
    pub endpoint: Option<String>,
    /// The model snapshot that it runs on.
    pub model: Option<String>,
    /// The input.
    pub input_file_id: Option<FileId>,
    /// The good lines; an empty id counts as none.
    pub output_file_id: Option<FileId>,
    /// The other lines; an empty id counts as none.
    pub error_file_id: Option<FileId>,
    /// Why it failed, when it did.
    pub errors: Vec<BatchError>,
    /// When it was made, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// When its window closes.
    pub expires_at: Option<Timestamp>,
    /// When it ended: the stamp that fits the status.
    pub ended_at: Option<Timestamp>,
    /// The provider's counts.
    pub counts: Option<ProviderCounts>,
    /// Pairs of ours, and perhaps others; values that are not text are left out.
    pub metadata: Vec<(String, String)>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, newest first.
    pub data: Vec<T>,
    /// Whether there may be a next page. An empty page that says so is the end for whoever only reads on, and no proof
    /// that nothing follows.
    pub has_more: bool,
}

impl ProviderStatus {
    /// Reads the provider's word, whatever its case; none or a strange one is [`ProviderStatus::Unknown`].
    pub fn parse(word: &str) -> Self {
        let plain: String =
            word.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect();
        match plain.as_str() {
            "validating" => Self::Validating,
            "inprogress" => Self::InProgress,
            "finalizing" => Self::Finalizing,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "expired" => Self::Expired,
            "cancelling" | "canceling" => Self::Cancelling,
            "cancelled" | "canceled" => Self::Cancelled,
            _ => Self::Unknown(cut(word, 100)),
        }
    }

    /// The status as OpenAI writes it.
    pub fn label(&self) -> &str {
        match self {
            Self::Validating => "validating",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Unknown(word) => word,
        }
    }

    /// Whether the provider has ended the batch. Nothing that we do not know is an end.
    pub const fn is_terminal(&self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling | Self::Unknown(_) => {
                false
            }
        }
    }
}

/// What can stand in a list.
pub trait Entry: Sized {
    /// Reads one entry.
    fn from_value(value: &Value) -> Result<Self, WireError>;
    /// Its id.
    fn id(&self) -> &str;
}

impl Entry for FileObject {
    fn from_value(value: &Value) -> Result<Self, WireError> {
        let map = value.as_object().ok_or(WireError::Not("a file"))?;
        Ok(Self {
            id: FileId::new(id(map).ok_or(WireError::NoId("a file"))?),
            bytes: map.get("bytes").and_then(count),
            created_at: time(map, "created_at"),
            filename: text(map, "filename"),
            purpose: text(map, "purpose"),
        })
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl FileObject {
    /// Reads a file object.
    pub fn from_json(json: &[u8]) -> Result<Self, WireError> {
        Self::from_value(&parse(json)?)
    }
}

impl Entry for BatchObject {
    fn from_value(value: &Value) -> Result<Self, WireError> {
        let map = value.as_object().ok_or(WireError::Not("a batch"))?;
        let status = ProviderStatus::parse(&text(map, "status").unwrap_or_default());
        let ended_at = match &status {
            ProviderStatus::Completed => time(map, "completed_at"),
            ProviderStatus::Failed => time(map, "failed_at"),
            ProviderStatus::Expired => time(map, "expired_at"),
            ProviderStatus::Cancelled => time(map, "cancelled_at"),
            ProviderStatus::Validating
            | ProviderStatus::InProgress
            | ProviderStatus::Finalizing
            | ProviderStatus::Cancelling
            | ProviderStatus::Unknown(_) => None,
        };
        Ok(Self {
            id: ProviderBatchId::new(id(map).ok_or(WireError::NoId("a batch"))?),
            status,
            endpoint: text(map, "endpoint"),
            model: text(map, "model"),
            input_file_id: text(map, "input_file_id").map(FileId::new),
            output_file_id: text(map, "output_file_id").map(FileId::new),
            error_file_id: text(map, "error_file_id").map(FileId::new),
            errors: map.get("errors").map(batch_errors).unwrap_or_default(),
            created_at: time(map, "created_at"),
            expires_at: time(map, "expires_at"),
            ended_at,
            counts: map.get("request_counts").and_then(Value::as_object).map(counts),
            metadata: map.get("metadata").and_then(Value::as_object).map(pairs).unwrap_or_default(),
        })
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl BatchObject {
    /// Reads a batch object.
    pub fn from_json(json: &[u8]) -> Result<Self, WireError> {
        Self::from_value(&parse(json)?)
    }
}

impl<T: Entry> Page<T> {
    /// Reads a page for which `asked` entries were asked: `data`, `value` or a bare array. An entry that
    /// cannot be read makes the page unreadable, because a list that lacks a batch of ours would be taken
    /// for proof that there is none.
    pub fn from_json(json: &[u8], asked: u32) -> Result<Self, WireError> {
        let value = parse(json)?;
        let map = value.as_object();
        let entries = match map {
            Some(map) => map.get("data").or_else(|| map.get("value")).unwrap_or(&Value::Null),
            None => &value,
        };
        let entries = match entries {
            Value::Array(entries) => entries.as_slice(),
            // `{"object":"list","data":null}` is an empty list.
            Value::Null if map.is_some_and(|map| map.contains_key("data") || map.contains_key("value")) => {
                &[]
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                return Err(WireError::Not("a list"));
            }
        };
        let data = entries.iter().map(T::from_value).collect::<Result<Vec<T>, WireError>>()?;
        let has_more = match map {
            Some(map) => more(map, data.len(), asked),
            // A bare array says nothing. One that is longer than was asked for comes from a server without pages.
            None => u32::try_from(data.len()) == Ok(asked),
        };
        Ok(Self { has_more, data })
    }
}

/// Whether the page says that more follow. Without a word, a full page may have a successor.
fn more(map: &Map<String, Value>, got: usize, asked: u32) -> bool {
    if let Some(has_more) = map.get("has_more").and_then(Value::as_bool) {
        return has_more;
    }
    let paging = map.get("paging").and_then(Value::as_object).unwrap_or(map);
    let cursor =
        text(paging, "next_cursor").or_else(|| text(map, "nextLink")).or_else(|| text(map, "next_link"));
    got > 0 && (cursor.is_some() || u32::try_from(got).is_ok_and(|got| got >= asked))
}

/// The provider's words about a call that it did not do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorBody {
    /// `error.code`, or `error.type`, or empty.
    pub code: String,
    /// `error.type`, or empty.
    pub kind: String,
    /// `error.message`, or what came instead, cut to [`MESSAGE_CHARS_MAX`] characters.
    pub message: String,
    /// `error.param`
    pub param: Option<String>,
}

impl ErrorBody {
    /// Reads whatever came: the envelope with or without siblings, `{"detail": …}`, HTML, plain text, nothing.
    pub fn read(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(map)) => Self::from_map(&map),
            Ok(Value::String(words)) => Self { message: cut(&words, MESSAGE_CHARS_MAX), ..Self::default() },
            Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_)) | Err(_) => {
                // Enough for the cut even if every character takes four bytes.
                let prefix = &body[..body.len().min(MESSAGE_CHARS_MAX * 8)];
                Self { message: cut(&String::from_utf8_lossy(prefix), MESSAGE_CHARS_MAX), ..Self::default() }
            }
        }
    }

    fn from_map(outer: &Map<String, Value>) -> Self {
        let map = outer.get("error").and_then(Value::as_object).unwrap_or(outer);
        let kind = text(map, "type").filter(|kind| kind != "None").unwrap_or_default();
        let code = map.get("code").and_then(scalar).unwrap_or_default();
        // A code that only repeats the HTTP status says less than the type.
        let bare_status = code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit());
        let code = if code.is_empty() || (bare_status && !kind.is_empty()) { kind.clone() } else { code };
        let message = ["message", "error", "detail", "errors", "title"]
            .into_iter()
            .find_map(|name| map.get(name).filter(|value| !value.is_null()))
            .map_or_else(String::new, |words| match words {
                Value::String(words) => words.clone(),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    words.to_string()
                }
            });
        Self {
            code: cut(&code, 100),
            kind: cut(&kind, 100),
            message: cut(&message, MESSAGE_CHARS_MAX),
            param: text(map, "param").map(|param| cut(&param, 200)),
        }
    }
}

fn parse(json: &[u8]) -> Result<Value, WireError> {
    serde_json::from_slice(json.strip_prefix("\u{feff}".as_bytes()).unwrap_or(json))
        .map_err(|_| WireError::NotJson)
}

fn counts(map: &Map<String, Value>) -> ProviderCounts {
    let get = |name: &str| map.get(name).and_then(count).unwrap_or(0);
    ProviderCounts { total: get("total"), completed: get("completed"), failed: get("failed") }
}

fn pairs(map: &Map<String, Value>) -> Vec<(String, String)> {
    map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// `errors`: null, a list object, an array, one error, or plain words.
fn batch_errors(value: &Value) -> Vec<BatchError> {
    match value {
        Value::Array(entries) => entries.iter().filter_map(batch_error).collect(),
        Value::Object(map) => match map.get("data") {
            Some(data) => batch_errors(data),
            None => batch_error(value).into_iter().collect(),
        },
        Value::String(_) => batch_error(value).into_iter().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

fn batch_error(value: &Value) -> Option<BatchError> {
    match value {
        Value::Object(map) => {
            let words =
                |name: &str| map.get(name).and_then(scalar).map(|words| cut(&words, MESSAGE_CHARS_MAX));
            let error = BatchError {
                code: words("code"),
                message: words("message"),
                param: words("param"),
                line: map.get("line").and_then(count),
            };
            let says_something = error.code.is_some() || error.message.is_some() || error.line.is_some();
            says_something.then_some(error)
        }
        Value::String(words) if !words.is_empty() => {
            let message = Some(cut(words, MESSAGE_CHARS_MAX));
            Some(BatchError { code: None, message, param: None, line: None })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn batch(value: Value) -> BatchObject {
        BatchObject::from_json(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_whole_batch_is_read() {
        let read = batch(json!({
            "id": "batch_1", "object": "batch", "endpoint": "/v1/responses", "model": "m", "errors": null,
            "input_file_id": "file-1", "completion_window": "24h", "status": "completed",
            "output_file_id": "", "error_file_id": "file-2", "created_at": 1_795_000_000,
            "expires_at": 1_795_086_400, "completed_at": 1_795_000_132, "failed_at": null,
            "request_counts": {"total": 9, "completed": 0, "failed": 9},
            "usage": {"input_tokens": 0}, "metadata": {"ns_nonce": "n", "other": 7}
        }));
        assert_eq!(read.status, ProviderStatus::Completed);
        assert_eq!(read.output_file_id, None);
        assert_eq!(read.error_file_id, Some(FileId::new("file-2")));
        assert_eq!(read.ended_at, Some(Timestamp::from_secs(1_795_000_132)));
        assert_eq!(read.counts, Some(ProviderCounts { total: 9, completed: 0, failed: 9 }));
        assert_eq!(read.metadata, [("ns_nonce".to_owned(), "n".to_owned())]);
    }

    #[test]
    fn an_id_is_enough_and_nothing_less_is() {
        let read = batch(json!({"id": "b"}));
        assert_eq!(read.status, ProviderStatus::Unknown(String::new()));
        assert!(!read.status.is_terminal());
        for bad in ["{}", "{\"id\":\"\"}", "{\"id\":null}", "{\"id\":\"..\"}", "[]", "nonsense", ""] {
            assert!(BatchObject::from_json(bad.as_bytes()).is_err(), "{bad}");
            assert!(FileObject::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_come_in_four_shapes() {
        let at = Some(Timestamp::from_secs(1_795_000_000));
        for shape in [
            json!(1_795_000_000),
            json!(1_795_000_000.0),
            json!("1795000000"),
            json!("2026-11-18T11:06:40Z"),
            json!("2026-11-18T12:06:40+01:00"),
            json!("2026-11-18T11:06:40"),
            json!(1_795_000_000_000_i64),
        ] {
            assert_eq!(batch(json!({"id": "b", "created_at": shape})).created_at, at, "{shape}");
        }
        for none in [json!(null), json!(0), json!(""), json!("soon"), json!(-5), json!({})] {
            assert_eq!(batch(json!({"id": "b", "created_at": none})).created_at, None, "{none}");
        }
    }

    #[test]
    fn errors_come_in_five_shapes() {
        let one = json!({"code": "x", "message": "m", "line": "17"});
        for shape in [json!({"object": "list", "data": [one]}), json!([one]), one.clone()] {
            let errors = batch(json!({"id": "b", "errors": shape})).errors;
            assert_eq!(errors.len(), 1, "{shape}");
            assert_eq!((errors[0].code.as_deref(), errors[0].line), (Some("x"), Some(17)));
        }
        assert_eq!(batch(json!({"id": "b", "errors": "words"})).errors[0].message.as_deref(), Some("words"));
        assert_eq!(batch(json!({"id": "b", "errors": null})).errors, []);
    }

    #[test]
    fn counts_come_as_null_as_numbers_and_as_text() {
        assert_eq!(batch(json!({"id": "b", "request_counts": null})).counts, None);
        let read =
            batch(json!({"id": "b", "request_counts": {"total": "8", "completed": 4.0, "failed": null}}));
        assert_eq!(read.counts, Some(ProviderCounts { total: 8, completed: 4, failed: 0 }));
    }

    #[test]
    fn a_status_is_read_whatever_its_case() {
        for (word, status) in [
            ("Validating", ProviderStatus::Validating),
            ("IN_PROGRESS", ProviderStatus::InProgress),
            ("InProgress", ProviderStatus::InProgress),
            ("canceled", ProviderStatus::Cancelled),
            ("scheduling", ProviderStatus::Unknown("scheduling".into())),
        ] {
            assert_eq!(ProviderStatus::parse(word), status);
        }
        for word in [
            "validating",
            "in_progress",
            "finalizing",
            "completed",
            "failed",
            "expired",
            "cancelling",
            "cancelled",
        ] {
            assert_eq!(ProviderStatus::parse(word).label(), word);
        }
    }

    #[test]
    fn a_page_is_read_from_data_from_value_and_bare() {
        let page = |value: Value, asked| Page::<BatchObject>::from_json(value.to_string().as_bytes(), asked);
        let one = json!({"id": "b"});
        assert!(page(json!({"data": [one], "has_more": true}), 20).unwrap().has_more);
        assert!(!page(json!({"value": [one]}), 20).unwrap().has_more);
        assert!(page(json!({"value": [one]}), 1).unwrap().has_more);
        assert!(page(json!({"data": [one], "paging": {"next_cursor": "c"}}), 20).unwrap().has_more);
        assert!(page(json!([one]), 1).unwrap().has_more);
        assert!(!page(json!([one]), 2).unwrap().has_more && !page(json!([]), 1).unwrap().has_more);
        assert!(!page(json!([one, one]), 1).unwrap().has_more, "it has no pages");
        assert!(page(json!({"data": [], "has_more": true}), 20).unwrap().has_more);
        assert!(!page(json!({"data": [], "paging": {"next_cursor": "c"}}), 20).unwrap().has_more);
        assert!(!page(json!({"data": null}), 20).unwrap().has_more);
        assert!(page(json!({"data": [one, {"status": "completed"}]}), 20).is_err());
        assert!(page(json!({"error": {"message": "no"}}), 20).is_err());
    }

    #[test]
    fn words_about_a_refusal_are_found_in_any_envelope() {
        let read = |body: &str| ErrorBody::read(body.as_bytes());
        let whole = read(r#"{"error":{"message":"M","type":"T","param":"p","code":"C"},"detail":{"x":1}}"#);
        assert_eq!(
            whole,
            ErrorBody { code: "C".into(), kind: "T".into(), message: "M".into(), param: Some("p".into()) }
        );
        assert_eq!(read(r#"{"error":{"message":"M","type":"T","code":null}}"#).code, "T");
        assert_eq!(read(r#"{"error":{"message":"M","type":"T","code":"400"}}"#).code, "T");
        assert_eq!(read(r#"{"error":{"message":"M","code":400}}"#).code, "400");
        assert_eq!(read(r#"{"error":"plain"}"#).message, "plain");
        assert_eq!(read(r#"{"detail":[{"msg":"bad"}]}"#).message, r#"[{"msg":"bad"}]"#);
        assert_eq!(read("<html>\n502</html>").message, "<html> 502</html>");
        assert_eq!(read("").message, "");
        assert_eq!(ErrorBody::read(&[0xff; 9000]).message.chars().count(), 500);
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_reader(bytes: Vec<u8>) {
            let _ = BatchObject::from_json(&bytes);
            let _ = Page::<FileObject>::from_json(&bytes, 10);
            prop_assert!(ErrorBody::read(&bytes).message.chars().count() <= MESSAGE_CHARS_MAX);
        }

        #[test]
        fn any_value_in_any_member_leaves_the_id(name in "[a-z_]{1,12}", text: String, number: f64, deep: bool) {
            for member in ["status", "errors", "created_at", "request_counts", "metadata", "output_file_id", &name] {
                if member == "id" { continue; }
                for value in [json!(text), json!(number), json!([text]), json!({"data": {"total": number, "x": deep}})] {
                    let read = batch(json!({"id": "b", member: value}));
                    prop_assert_eq!(read.id.as_str(), "b");
                }
            }
        }
    }
}
