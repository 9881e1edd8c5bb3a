//! Whether an input file may become a batch, line by line, as strict as OpenAI.
//!
//! The file is read as a stream; what is kept is the set of its custom ids and the first errors.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};

use serde_json::Value;

use super::answers::{Endpoint, embedding_inputs};
use super::world::BatchError;

/// Lines at most in a batch.
const MAX_LINES: u64 = 50_000;
/// Errors at most that are told of.
const MAX_ERRORS: usize = 100;
/// Bytes at most in a line: it is held in memory.
pub(super) const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;
const MAX_INPUTS_PER_BATCH: usize = 50_000;
const MAX_INPUTS_PER_LINE: usize = 2_048;
/// Models whose name begins so do not exist.
const UNKNOWN_MODEL: &str = "no-such";

/// What a valid file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) total: u64,
    pub(super) model: String,
    pub(super) tokens: u64,
}

/// Reads a whole input file. The outer error is the disk's, the inner one the file's.
pub(super) fn validate(
    input: impl BufRead,
    endpoint: Endpoint,
) -> io::Result<Result<Found, Vec<BatchError>>> {
    let mut check = Check::new(endpoint);
    let mut lines = InputLines::new(input);
    while let Some(line) = lines.next_line()? {
        check.total += 1;
        if check.total > MAX_LINES {
            let message = format!("The file has more than {MAX_LINES} requests.");
            return Ok(Err(vec![error("too_many_tasks", message, None, None)]));
        }
        check.line(line);
        if check.errors.len() >= MAX_ERRORS {
            break;
        }
    }
    Ok(check.end())
}

/// Splits an input file at line ends only, within the bound of a line.
pub(super) struct InputLines<R> {
    input: R,
    line: Vec<u8>,
}

/// A line of an input file.
pub(super) enum Line<'a> {
    Bytes(&'a [u8]),
    TooLong,
}

impl<R: BufRead> InputLines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new() }
    }

    /// The next line without its end, none at the end of the file.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let bound = u64::try_from(MAX_LINE_BYTES + 1).unwrap_or(u64::MAX);
        if (&mut self.input).take(bound).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() > MAX_LINE_BYTES {
            self.input.skip_until(b'\n')?;
            return Ok(Some(Line::TooLong));
        }
        Ok(Some(Line::Bytes(&self.line)))
    }
}

fn error(code: &str, message: String, param: Option<&str>, line: Option<u64>) -> BatchError {
    BatchError { code: code.to_owned(), message, param: param.map(str::to_owned), line }
}

struct Check {
    endpoint: Endpoint,
    total: u64,
    tokens: u64,
    inputs: usize,
    model: Option<String>,
    custom_ids: HashSet<String>,
    errors: Vec<BatchError>,
}

impl Check {
    fn new(endpoint: Endpoint) -> Self {
        let (model, custom_ids, errors) = (None, HashSet::new(), Vec::new());
        Self { endpoint, total: 0, tokens: 0, inputs: 0, model, custom_ids, errors }
    }

    fn fail(&mut self, code: &str, message: String, param: Option<&str>) {
        self.errors.push(error(code, message, param, Some(self.total)));
    }

    fn missing(&mut self, param: &str) {
        let message = format!("Missing required parameter: '{param}'.");
        self.fail("missing_required_parameter", message, Some(param));
    }

    fn line(&mut self, line: Line<'_>) {
        let bytes = match line {
            Line::Bytes(bytes) => bytes,
            Line::TooLong => return self.fail("invalid_request", "This line is too long.".to_owned(), None),
        };
        let request = match serde_json::from_slice(bytes) {
            Ok(Value::Object(request)) => Value::Object(request),
            // A BOM and a blank line end up here, too.
            Ok(_) | Err(_) => {
                let message = "This line is not parseable as valid JSON.".to_owned();
                return self.fail("invalid_json_line", message, None);
            }
        };
        self.custom_id(&request["custom_id"]);
        let (method, url, body) = (&request["method"], &request["url"], &request["body"]);
        if method.is_null() {
            self.missing("method");
        } else if method != "POST" {
            self.fail("invalid_method", "The method has to be POST.".to_owned(), Some("method"));
        }
        if url.is_null() {
            self.missing("url");
        } else if url != self.endpoint.path() {
            let message = format!("The URL has to be the batch's endpoint, '{}'.", self.endpoint.path());
            self.fail("invalid_url", message, Some("url"));
        }
        if body.is_null() {
            self.missing("body");
        } else if body.is_object() {
            self.body(body);
        } else {
            self.fail("invalid_type", "The body has to be an object.".to_owned(), Some("body"));
        }
    }

    fn custom_id(&mut self, id: &Value) {
        let Some(text) = id.as_str() else {
            if id.is_null() {
                return self.missing("custom_id");
            }
            return self.fail("invalid_type", "'custom_id' has to be text.".to_owned(), Some("custom_id"));
        };
        if text.is_empty() {
            self.missing("custom_id");
        } else if !self.custom_ids.insert(text.to_owned()) {
            let message = "The custom_id of this line is that of an earlier line.".to_owned();
            self.fail("duplicate_custom_id", message, Some("custom_id"));
        }
    }

    fn body(&mut self, body: &Value) {
        match body["model"].as_str() {
            None | Some("") => self.missing("body.model"),
            Some(model) if model.starts_with(UNKNOWN_MODEL) => {
                let message = format!("The model `{model}` does not exist or is not there for batches.");
                self.fail("model_not_found", message, Some("body.model"));
            }
            Some(model) => match &self.model {
                None => self.model = Some(model.to_owned()),
                Some(first) if first != model => {
                    let message = format!("The model `{model}` is not that of the first line, `{first}`.");
                    self.fail("mismatched_model", message, Some("body.model"));
                }
                Some(_) => {}
            },
        }
        if body["stream"] == true {
            let message = "A request in a batch cannot stream.".to_owned();
            self.fail("streaming_unsupported", message, Some("body.stream"));
        }
        self.subject(body);
        self.tokens += super::answers::tokens_of(&self.endpoint.asked(body).to_string());
    }

    fn subject(&mut self, body: &Value) {
        let name = self.endpoint.subject();
        let param = format!("body.{name}");
        let subject = &body[name];
        if self.endpoint == Endpoint::Responses && !body["prompt"].is_null() {
            if !body["prompt"]["id"].is_string() {
                let (param, message) = ("body.prompt", "'body.prompt' is of a wrong type.".to_owned());
                return self.fail("invalid_type", message, Some(param));
            }
            if subject.is_null() {
                return;
            }
        }
        if subject.is_null() {
            return self.missing(&param);
        }
        let fits = match self.endpoint {
            Endpoint::Chat => subject.is_array(),
            Endpoint::Responses | Endpoint::Embeddings => subject.is_array() || subject.is_string(),
        };
        if !fits {
            return self.fail("invalid_type", format!("'{param}' is of a wrong type."), Some(&param));
        }
        if self.endpoint == Endpoint::Embeddings {
            let inputs = embedding_inputs(subject).len();
            self.inputs += inputs;
            if inputs > MAX_INPUTS_PER_LINE {
                let message = format!("A request has at most {MAX_INPUTS_PER_LINE} inputs.");
                self.fail("invalid_request", message, Some(&param));
            }
        }
    }

    fn end(mut self) -> Result<Found, Vec<BatchError>> {
        if self.total == 0 {
            self.errors.push(error("empty_file", "The file has no requests.".to_owned(), None, None));
        }
        if self.inputs > MAX_INPUTS_PER_BATCH {
            let message = format!("A batch has at most {MAX_INPUTS_PER_BATCH} embedding inputs.");
            self.errors.push(error("invalid_request", message, None, None));
        }
        match self.model {
            Some(model) if self.errors.is_empty() => {
                Ok(Found { total: self.total, model, tokens: self.tokens })
            }
            Some(_) | None => Err(self.errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, model: &str) -> String {
        format!(
            r#"{{"custom_id":"{id}","method":"POST","url":"/v1/chat/completions","body":{{"model":"{model}","messages":[{{"role":"user","content":"x"}}]}}}}"#
        )
    }

    fn codes(text: &str) -> Vec<(String, Option<u64>)> {
        let errors = validate(text.as_bytes(), Endpoint::Chat).unwrap().unwrap_err();
        errors.into_iter().map(|error| (error.code, error.line)).collect()
    }

    #[test]
    fn a_good_file_is_counted_with_or_without_a_last_line_end() {
        for end in ["", "\n"] {
            let text = format!("{}\n{}{end}", line("a", "m"), line("b", "m"));
            let found = validate(text.as_bytes(), Endpoint::Chat).unwrap().unwrap();
            assert_eq!((found.total, found.model.as_str()), (2, "m"));
        }
    }

    #[test]
    fn each_bad_line_is_named_with_its_number() {
        let good = line("a", "m");
        let text = [
            good.clone(),
            String::new(),
            "{broken".to_owned(),
            good.clone(),
            line("b", "other"),
            line("c", "no-such-model"),
            line("d", "m").replace("POST", "GET"),
            line("e", "m").replace("/v1/chat/completions", "/v1/responses"),
            line("f", "m").replace(r#""messages""#, r#""stream":true,"messages""#),
            line("g", "m").replace(r#""messages""#, r#""input""#),
            r#"{"method":"POST","url":"/v1/chat/completions"}"#.to_owned(),
        ]
        .join("\n");
        let expected: Vec<(String, Option<u64>)> = [
            ("invalid_json_line", 2),
            ("invalid_json_line", 3),
            ("duplicate_custom_id", 4),
            ("mismatched_model", 5),
            ("model_not_found", 6),
            ("invalid_method", 7),
            ("invalid_url", 8),
            ("streaming_unsupported", 9),
            ("missing_required_parameter", 10),
            ("missing_required_parameter", 11),
            ("missing_required_parameter", 11),
        ]
        .map(|(code, line)| (code.to_owned(), Some(line)))
        .into();
        assert_eq!(codes(&text), expected);
    }

    #[test]
    fn a_bom_an_empty_file_and_too_many_lines_are_refused() {
        assert_eq!(
            codes(&format!("\u{feff}{}", line("a", "m"))),
            [("invalid_json_line".to_owned(), Some(1))]
        );
        assert_eq!(codes(""), [("empty_file".to_owned(), None)]);
        let many: String = (0..=MAX_LINES).map(|n| line(&n.to_string(), "m") + "\n").collect();
        assert_eq!(codes(&many), [("too_many_tasks".to_owned(), None)]);
    }

    #[test]
    fn a_response_may_have_a_prompt_for_an_input() {
        let with = |prompt: &str| {
            let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
            format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/responses","body":{body}}}"#)
        };
        let found = |prompt: &str| validate(with(prompt).as_bytes(), Endpoint::Responses).unwrap();
        assert!(found(r#"{"id":"pmpt_1"}"#).is_ok());
        for (prompt, code) in [("\"pmpt_1\"", "invalid_type"), ("null", "missing_required_parameter")] {
            assert_eq!(found(prompt).unwrap_err()[0].code, code);
        }
    }

    #[test]
    fn a_separator_within_text_splits_nothing() {
        let text = line("a", "m").replace(r#""x""#, "\"x\u{2028}y\"");
        assert!(validate(text.as_bytes(), Endpoint::Chat).unwrap().is_ok());
    }
}
