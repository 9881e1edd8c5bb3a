//! Tests of the input and result lines.

use std::io::{BufReader, Cursor, Write as _};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::request::Usage;

const CHAT: &str = r#"{"id":"chatcmpl-x1","object":"chat.completion","model":"gpt-6-luna-2026-07-01","choices":[{"index":0,"message":{"role":"assistant","content":"The Elbe.","refusal":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":1200,"completion_tokens":300,"total_tokens":1500,"prompt_tokens_details":{"cached_tokens":1024,"audio_tokens":1,"cache_write_tokens":2},"completion_tokens_details":{"reasoning_tokens":128,"audio_tokens":3,"accepted_prediction_tokens":4,"rejected_prediction_tokens":5}},"service_tier":"default","system_fingerprint":"fp_1"}"#;

fn request_id() -> RequestId {
    "0190f3c2-7b1a-7c3d-8e4f-0123456789ab".parse().unwrap()
}

fn line_of(status: u16, body: &str) -> String {
    format!(
        r#"{{"id":"batch_req_1","custom_id":"c1","response":{{"status_code":{status},"request_id":"r1","body":{body}}},"error":null}}"#
    )
}

fn outcome_of(line: &str) -> Outcome {
    match decode_line(line.as_bytes()) {
        Decoded::Line { custom_id, outcome, .. } => {
            assert_eq!(custom_id, "c1");
            outcome
        }
        Decoded::Bad { reason, .. } => panic!("{reason}: {line}"),
    }
}

fn failure_of(line: &str) -> Failure {
    outcome_of(line).result.expect_err("a failure")
}

fn says(failure: &Failure) -> (FailureClass, &str, Option<u16>) {
    (failure.class, failure.code.as_str(), failure.http_status)
}

#[test]
fn an_input_line_has_four_members_and_the_body_as_it_is_written() {
    let line = input_line(
        request_id(),
        Endpoint::Responses,
        r#"{ "model": "m",  "t": 1.50e0, "s": "\u00e9\u2028" }"#,
    );
    assert_eq!(
        String::from_utf8(line).unwrap(),
        concat!(
            r#"{"custom_id":"0190f3c2-7b1a-7c3d-8e4f-0123456789ab","method":"POST","url":"/v1/responses","#,
            r#""body":{ "model": "m",  "t": 1.50e0, "s": "\u00e9\u2028" }}"#,
            "\n"
        )
    );
}

#[test]
fn a_body_with_raw_line_breaks_is_put_on_one_line_and_keeps_its_tokens() {
    let body = "{\r\n  \"a\": \"x \\\" \\\\\",\n\t\"b\": [1.0,\n 2e5]\n}\n";
    let line = String::from_utf8(input_line(request_id(), Endpoint::ChatCompletions, body)).unwrap();
    assert!(line.contains(r#""body":{"a":"x \" \\","b":[1.0,2e5]}}"#), "{line}");
    assert_eq!(line.matches('\n').count(), 1);
}

#[test]
fn a_good_line_gives_its_body_word_for_word_and_what_the_provider_says() {
    let outcome = outcome_of(&line_of(200, CHAT));
    assert_eq!(outcome.result.unwrap(), CHAT);
    let answered = outcome.answered;
    assert_eq!(answered.provider_request_id.as_deref(), Some("r1"));
    assert_eq!(answered.model.as_deref(), Some("gpt-6-luna-2026-07-01"));
    assert_eq!(answered.service_tier.as_deref(), Some("default"));
    assert_eq!(answered.system_fingerprint.as_deref(), Some("fp_1"));
    let usage = Usage {
        prompt: 1200,
        completion: 300,
        total: 1500,
        cached: 1024,
        cache_write: 2,
        reasoning: 128,
        audio_prompt: 1,
        audio_completion: 3,
        accepted_prediction: 4,
        rejected_prediction: 5,
    };
    assert_eq!(answered.usage, Some(usage));
}

#[test]
fn the_usage_of_responses_and_of_embeddings_is_read() {
    let body = r#"{"object":"response","status":"completed","output":[],"usage":{"input_tokens":1200,"input_tokens_details":{"cached_tokens":1024,"cache_write_tokens":{"30m":3,"12h":4}},"output_tokens":300,"output_tokens_details":{"reasoning_tokens":128},"total_tokens":1500}}"#;
    let outcome = outcome_of(&line_of(200, body));
    assert!(outcome.result.is_ok());
    let expected = Usage {
        prompt: 1200,
        completion: 300,
        total: 1500,
        cached: 1024,
        cache_write: 7,
        reasoning: 128,
        ..Usage::default()
    };
    assert_eq!(outcome.answered.usage, Some(expected));
    let body = r#"{"object":"list","data":[],"usage":{"prompt_tokens":"12","total_tokens":12.0}}"#;
    let expected = Usage { prompt: 12, total: 12, ..Usage::default() };
    assert_eq!(outcome_of(&line_of(200, body)).answered.usage, Some(expected));
    for none in ["null", "{}", "7", r#"{"prompt_tokens":-1}"#] {
        let body = format!(r#"{{"object":"list","usage":{none}}}"#);
        assert_eq!(outcome_of(&line_of(200, &body)).answered.usage, None, "{none}");
    }
}

#[test]
fn an_answer_of_400_says_why_in_its_body() {
    let body = r#"{"error":{"message":"Unsupported parameter","type":"invalid_request_error","param":"temperature","code":"unsupported_parameter"}}"#;
    let failure = failure_of(&line_of(400, body));
    assert_eq!(says(&failure), (FailureClass::Permanent, "unsupported_parameter", Some(400)));
    assert_eq!(failure.detail, "Unsupported parameter");
}

#[test]
fn a_request_that_got_no_answer_says_why_in_its_error() {
    let line =
        r#"{"id":"b","custom_id":"c1","response":null,"error":{"code":"batch_expired","message":"ended"}}"#;
    let failure = failure_of(line);
    assert_eq!(says(&failure), (FailureClass::Transient, "batch_expired", None));
    assert_eq!(failure.detail, "ended");
}

#[test]
fn errors_of_other_servers_are_understood() {
    let failure = |error: &str| failure_of(&format!(r#"{{"custom_id":"c1","error":{error}}}"#));
    let words = failure(r#""upstream went away""#);
    assert_eq!(says(&words), (FailureClass::Transient, "unknown_error", None));
    assert_eq!(words.detail, "upstream went away");
    let typed = failure(r#"{"type":"invalid_request_error","message":"no messages"}"#);
    assert_eq!(says(&typed), (FailureClass::Permanent, "invalid_request_error", None));
    let status_as_code = failure(r#"{"code":"404","message":"no such model"}"#);
    assert_eq!(says(&status_as_code), (FailureClass::Permanent, "404", None));
    let packed = json!({"error": {"message": "too long", "type": "invalid_request_error", "code": "400"}, "status_code": 400});
    let packed = json!({"code": null, "message": packed.to_string()});
    let packed = failure(&packed.to_string());
    assert_eq!(says(&packed), (FailureClass::Permanent, "invalid_request_error", Some(400)));
    assert_eq!(packed.detail, "too long");
    let body_null = r#"{"custom_id":"c1","response":{"status_code":400,"body":null},"error":"bad prompt"}"#;
    assert_eq!(says(&failure_of(body_null)), (FailureClass::Permanent, "http_400", Some(400)));
}

#[test]
fn a_status_that_is_no_success_fails_also_in_the_output_file() {
    assert_eq!(says(&failure_of(&line_of(0, "null"))), (FailureClass::Transient, "http_0", Some(0)));
    assert_eq!(says(&failure_of(&line_of(503, CHAT))), (FailureClass::Transient, "http_503", Some(503)));
    let quota = r#"{"error":{"code":"insufficient_quota","message":"pay"}}"#;
    assert_eq!(
        says(&failure_of(&line_of(429, quota))),
        (FailureClass::Account, "insufficient_quota", Some(429))
    );
    assert_eq!(failure_of(&line_of(401, "{}")).class, FailureClass::Account);
}

#[test]
fn a_good_status_around_an_error_is_a_failure() {
    let failure = failure_of(&line_of(200, r#"{"error":{"code":"server_error","message":"oops"}}"#));
    assert_eq!(says(&failure), (FailureClass::Transient, "server_error", Some(200)));
}

#[test]
fn an_error_of_the_line_counts_also_beside_a_good_answer() {
    for body in [CHAT, r#"{"object":"response","status":"completed"}"#] {
        let line = format!(
            r#"{{"custom_id":"c1","response":{{"status_code":200,"body":{body}}},"error":{{"code":"batch_expired"}}}}"#
        );
        assert_eq!(says(&failure_of(&line)), (FailureClass::Transient, "batch_expired", Some(200)));
    }
    let line = format!(r#"{{"custom_id":"c1","response":{{"status_code":200,"body":{CHAT}}},"error":""}}"#);
    assert!(outcome_of(&line).result.is_ok());
    let no_status = format!(r#"{{"custom_id":"c1","response":{{"body":{CHAT}}}}}"#);
    assert!(outcome_of(&no_status).result.is_ok());
}

#[test]
fn a_success_without_a_body_is_lost_because_it_was_paid_for() {
    for body in ["null", "\"\""] {
        assert_eq!(says(&failure_of(&line_of(200, body))), (FailureClass::Lost, "empty_body", Some(200)));
    }
    let missing = r#"{"custom_id":"c1","response":{"status_code":200}}"#;
    assert_eq!(failure_of(missing).code, "empty_body");
    assert_eq!(says(&failure_of(r#"{"custom_id":"c1"}"#)), (FailureClass::Transient, "empty_line", None));
}

#[test]
fn a_body_that_is_a_string_of_json_is_unpacked() {
    let packed = serde_json::to_string(CHAT).unwrap();
    let outcome = outcome_of(&line_of(200, &packed));
    assert_eq!(outcome.result.unwrap(), CHAT);
    assert_eq!(outcome.answered.usage.unwrap().total, 1500);
    for other in ["\"not json\"", "7", "[]", "\"{\\\"cut\"", "true"] {
        let failure = failure_of(&line_of(200, other));
        assert_eq!(says(&failure), (FailureClass::Unusable, "unreadable_body", Some(200)), "{other}");
    }
}

#[test]
fn an_answer_that_cannot_be_used_fails_and_keeps_its_usage() {
    let cases = [
        (
            r#"{"choices":[{"finish_reason":"length","message":{"content":"The"}}],"usage":{"total_tokens":9}}"#,
            "length",
        ),
        (r#"{"choices":[{"finish_reason":"content_filter"}],"usage":{"total_tokens":9}}"#, "content_filter"),
        (
            r#"{"choices":[{"finish_reason":"stop","message":{"refusal":"I cannot"}}],"usage":{"total_tokens":9}}"#,
            "refusal",
        ),
        (r#"{"choices":[],"usage":{"total_tokens":9}}"#, "no_choices"),
        (
            r#"{"object":"response","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"usage":{"total_tokens":9}}"#,
            "incomplete",
        ),
        (
            r#"{"object":"response","status":"failed","error":{"code":"server_error","message":"x"},"usage":{"total_tokens":9}}"#,
            "response_failed",
        ),
        (
            r#"{"object":"response","status":"completed","error":null,"output":[{"type":"reasoning"},{"type":"message","content":[{"type":"refusal","refusal":"no"}]}],"usage":{"total_tokens":9}}"#,
            "refusal",
        ),
    ];
    for (body, code) in cases {
        let outcome = outcome_of(&line_of(200, body));
        assert_eq!(outcome.answered.usage.map(|usage| usage.total), Some(9), "{body}");
        assert_eq!(says(&outcome.result.unwrap_err()), (FailureClass::Unusable, code, Some(200)), "{body}");
    }
}

#[test]
fn the_words_of_a_refusal_stay_out_of_the_failure() {
    let failure = failure_of(&line_of(200, r#"{"choices":[{"message":{"refusal":"SECRET WORDS"}}]}"#));
    assert!(!failure.to_string().contains("SECRET"));
}

#[test]
fn one_good_choice_of_several_is_an_answer() {
    let body =
        r#"{"choices":[{"finish_reason":"length"},{"finish_reason":"stop","message":{"content":"x"}}]}"#;
    assert!(outcome_of(&line_of(200, body)).result.is_ok());
}

#[test]
fn a_line_without_a_custom_id_or_of_another_shape_is_bad() {
    let bad = |bytes: &[u8]| match decode_line(bytes) {
        Decoded::Bad { reason, custom_id } => (reason, custom_id),
        Decoded::Line { .. } => panic!("{bytes:?} was taken"),
    };
    assert_eq!(bad(b"{\"custom_id\":\"\xff\"}"), ("not UTF-8", None));
    assert_eq!(bad(b"{\"custom_id\":\"c9\",\"x\":\"\xff\"}"), ("not UTF-8", Some("c9".into())));
    assert_eq!(custom_id_in(br#"{"id":"x","custom_id":"c9","response":{"bo"#), Some("c9".into()));
    assert_eq!(custom_id_in(br#"{"id":"x","custom_id":"c"#), None);
    assert_eq!(bad(b"  \r"), ("empty line", None));
    for torn in [&b"nonsense"[..], b"[]", b"{", b"\"x\"", b"null"] {
        assert_eq!(bad(torn), ("not a JSON object", None));
    }
    assert_eq!(bad(br#"{"id":"x","custom_id":"c9","respon"#), ("not a JSON object", Some("c9".into())));
    assert_eq!(bad(br#"{"custom_id":"c9"} {"custom_id":"c10"}"#), ("not a JSON object", Some("c9".into())));
    assert_eq!(bad(br#"{"id":"x","custom_id":null}"#), ("no usable custom_id", None));
    assert_eq!(
        bad(br#"{"custom_id":"c9","response":"x"}"#),
        ("response is not an object", Some("c9".into()))
    );
    let long = format!(r#"{{"custom_id":"{}"}}"#, "x".repeat(300));
    assert_eq!(bad(long.as_bytes()), ("no usable custom_id", None));
}

#[test]
fn a_byte_order_mark_and_a_carriage_return_do_no_harm() {
    let line = format!("\u{feff}{}\r", line_of(200, CHAT));
    assert!(outcome_of(&line).result.is_ok());
}

#[test]
fn unknown_and_repeated_members_do_no_harm() {
    let line = r#"{"extra":{"a":[1]},"custom_id":"c0","custom_id":"c1","response":{"x":1,"status_code":"200","body":{"choices":[{"finish_reason":"stop"}],"model":7}}}"#;
    let outcome = outcome_of(line);
    assert!(outcome.result.is_ok());
    assert_eq!(outcome.answered.model.as_deref(), Some("7"));
}

#[test]
fn a_body_nested_a_million_deep_costs_no_stack_and_is_no_result() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(says(&failure_of(&line_of(200, &deep))), (FailureClass::Unusable, "too_deep", Some(200)));
    let open = line_of(200, &format!("{{\"a\":{}", "[".repeat(1_000_000)));
    assert!(matches!(decode_line(open.as_bytes()), Decoded::Bad { .. }));
    let in_error = format!(r#"{{"custom_id":"c1","error":{deep}}}"#);
    assert_eq!(failure_of(&in_error).class, FailureClass::Transient);
    for names in ["choices", "usage", "output", "model"] {
        let body = format!("{{\"{names}\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(outcome_of(&line_of(200, &body)).result.is_err(), "{names}");
    }
    let just = format!("{{\"a\":{}{}}}", "[".repeat(DEPTH_MAX - 1), "]".repeat(DEPTH_MAX - 1));
    let result = outcome_of(&line_of(200, &just)).result.unwrap();
    assert!(serde_json::from_str::<Value>(&result).is_ok());
}

#[test]
fn brackets_in_words_are_not_depth() {
    let body = json!({"a": format!("\"\\{}", "[{".repeat(300))}).to_string();
    assert_eq!(outcome_of(&line_of(200, &body)).result.unwrap(), body);
}

#[test]
fn an_error_that_wraps_itself_again_and_again_is_unpacked_only_so_far() {
    let mut error = json!("the core");
    for _ in 0..6 {
        error = json!({"message": error.to_string()});
    }
    assert_eq!(failure_of(&json!({"custom_id": "c1", "error": error}).to_string()).code, "unknown_error");
}

fn all_lines(content: &[u8], max: usize) -> Vec<(u64, Option<Vec<u8>>, u64)> {
    let mut reader = LineReader::with_line_max(BufReader::with_capacity(3, Cursor::new(content)), 0, max);
    let mut lines = Vec::new();
    loop {
        let (offset, bytes) = match reader.next_line().unwrap() {
            None => return lines,
            Some(RawLine::Whole { offset, bytes }) => (offset, Some(bytes.to_vec())),
            Some(RawLine::Oversized { offset, .. }) => (offset, None),
        };
        lines.push((offset, bytes, reader.offset()));
    }
}

#[test]
fn lines_are_split_on_line_feeds_only_and_the_last_needs_none() {
    let content = "a\u{2028}b\r\n\n  \nc\u{85}d".as_bytes();
    let lines = all_lines(content, 100);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], (0, Some("a\u{2028}b\r".as_bytes().to_vec()), 7));
    assert_eq!(lines[1], (11, Some("c\u{85}d".as_bytes().to_vec()), content.len() as u64));
    assert_eq!(all_lines(b"", 100), []);
    assert_eq!(all_lines(b"\n\n", 100), []);
}

#[test]
fn an_oversized_line_is_passed_over_and_the_next_is_read() {
    let oversized = |offset, length, head| Some(RawLine::Oversized { offset, length, head });
    let mut reader = LineReader::with_line_max(Cursor::new(b"12345678\nok\nabcdefghi".as_slice()), 0, 4);
    assert_eq!(reader.next_line().unwrap(), oversized(0, 8, b"1234".as_slice()));
    assert_eq!(reader.offset(), 9);
    assert_eq!(reader.next_line().unwrap(), Some(RawLine::Whole { offset: 9, bytes: b"ok" }));
    assert_eq!(reader.next_line().unwrap(), oversized(12, 9, b"abcd".as_slice()));
    assert_eq!(reader.next_line().unwrap(), None);
    assert_eq!(all_lines(b"1234\n", 4), [(0, Some(b"1234".to_vec()), 5)]);
}

#[test]
fn reading_goes_on_where_it_stood() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"one\ntwo\nthree").unwrap();
    let mut reader = LineReader::open(file.path(), 0).unwrap();
    reader.next_line().unwrap();
    let mut again = LineReader::open(file.path(), reader.offset()).unwrap();
    assert_eq!(again.next_line().unwrap(), Some(RawLine::Whole { offset: 4, bytes: b"two" }));
    let mut behind = LineReader::open(file.path(), 99).unwrap();
    assert_eq!(behind.next_line().unwrap(), None);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(".{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn an_input_line_is_one_line_that_reads_back(body in any_json(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };
        let line = input_line(request_id(), Endpoint::Embeddings, &text.unwrap());
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: Value = serde_json::from_slice(&line).unwrap();
        prop_assert_eq!(&read["body"], &body);
        prop_assert_eq!(read.as_object().unwrap().len(), 4);
    }

    #[test]
    fn no_line_upsets_the_decoder(bytes: Vec<u8>, id in any_json(), response in any_json(), error in any_json()) {
        let _ = decode_line(&bytes);
        let line = json!({"custom_id": id, "response": response, "error": error}).to_string();
        let _ = decode_line(line.as_bytes());
        let line = json!({"custom_id": "c1", "response": {"status_code": 200, "body": response}, "error": error});
        let _ = outcome_of(&line.to_string());
        for cut in (0..line.to_string().len()).step_by(7) {
            let _ = decode_line(&line.to_string().as_bytes()[..cut]);
        }
    }

    #[test]
    fn any_member_of_a_body_may_be_anything(name in "choices|usage|status|object|output|error|model", value in any_json()) {
        let mut body: Value = serde_json::from_str(CHAT).unwrap();
        body[&name] = value;
        let outcome = outcome_of(&line_of(200, &body.to_string()));
        if let Ok(result) = outcome.result {
            prop_assert_eq!(result, body.to_string());
        }
    }

    #[test]
    fn the_lines_of_a_file_are_those_between_its_line_feeds(lines in prop::collection::vec("[a-c]{0,6}", 0..20), max in 1_usize..6) {
        let content = lines.join("\n");
        let mut expected = Vec::new();
        let mut offset = 0_u64;
        for line in &lines {
            let length = line.len() as u64;
            let end = (offset + length + 1).min(content.len() as u64);
            if line.len() > max {
                expected.push((offset, None, end));
            } else if !line.is_empty() {
                expected.push((offset, Some(line.as_bytes().to_vec()), end));
            }
            offset += length + 1;
        }
        prop_assert_eq!(all_lines(content.as_bytes(), max), expected);
    }
}
