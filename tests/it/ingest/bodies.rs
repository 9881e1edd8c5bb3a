//! Bodies that are packed, marked, or break off.

use serde_json::{Value, json};

use super::*;

async fn packed(encoding: &str, text: &[u8]) -> Vec<u8> {
    use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
    use tokio::io::AsyncWriteExt;
    if encoding == "gzip" {
        let mut encoder = GzipEncoder::new(Vec::new());
        encoder.write_all(text).await.unwrap();
        encoder.shutdown().await.unwrap();
        return encoder.into_inner();
    }
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(text).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

#[test]
fn what_is_packed_is_taken_like_what_is_not_and_what_is_torn_keeps_what_came_before() {
    with_actors(async |nightshift| {
        let lines: String =
            (0..600).map(|n| format!("{}\n", line(Some(&format!("z-{n}")), "packed"))).collect();
        for (encoding, expected) in [("gzip", [600, 0, 0]), ("zstd", [0, 600, 0])] {
            let body = packed(encoding, lines.as_bytes()).await;
            let call =
                Call::post(REQUESTS, "application/x-ndjson", body).header("content-encoding", encoding);
            assert_eq!(counts(&nightshift.call(call).await.good()), expected, "{encoding}");
        }
        let one = packed("gzip", line(None, "one object").to_string().as_bytes()).await;
        let call = Call::post(REQUESTS, "application/json", one.clone()).header("content-encoding", "gzip");
        assert_eq!(counts(&nightshift.call(call).await.good()), [1, 0, 0]);
        let more: String =
            (0..600).map(|n| format!("{}\n", line(Some(&format!("y-{n}")), "packed"))).collect();
        let body = packed("gzip", more.as_bytes()).await;
        let torn = body[..body.len() - 10].to_vec();
        let call = Call::post(REQUESTS, "application/x-ndjson", torn).header("content-encoding", "gzip");
        let refused = nightshift.call(call).await;
        assert_eq!(refused.problem(400), "bad_content_encoding");
        assert!(refused.body["accepted"].as_u64() >= Some(250), "{}", refused.body);
        let budget = packed("gzip", br#"{"monthlyMicros":5000000}"#).await;
        let call = Call::post("/api/v1/companies/demo/budget", "application/json", budget);
        nightshift.call(call.method("PUT").header("content-encoding", "gzip")).await.good();
        let call = Call::post(REQUESTS, "application/json", one).header("content-encoding", "br");
        let refused = nightshift.call(call).await;
        assert_eq!(refused.problem(415), "unsupported_encoding");
        assert_eq!(refused.header("accept-encoding"), Some("gzip, zstd"));
    });
}

#[test]
fn a_byte_order_mark_is_no_part_of_what_follows_and_an_id_has_no_control_characters() {
    with_actors(async |nightshift| {
        let marked = |text: String| format!("\u{feff}{text}");
        let lines = format!("{}\n{}", line(Some("m-1"), "x"), line(Some("m-2"), "x"));
        let reply = send_lines(&nightshift, REQUESTS, marked(lines)).await;
        assert_eq!(counts(&reply), [2, 0, 0]);
        for body in [line(Some("m-3"), "x"), json!([line(Some("m-4"), "x")])] {
            let call = Call::post(REQUESTS, "application/json", marked(body.to_string()));
            assert_eq!(counts(&nightshift.call(call).await.good()), [1, 0, 0]);
        }
        let call = Call::post(
            "/api/admin/legacy/companies",
            "application/json",
            marked(r#"{"id":"marked"}"#.to_owned()),
        );
        nightshift.call(call).await.made();
        let odd = "an\u{0}id";
        let session = json!({ "externalId": odd, "messages": [] }).to_string();
        for (path, line) in [(REQUESTS, line(Some(odd), "x").to_string()), (SESSIONS, session)] {
            let reply = send_lines(&nightshift, path, line).await;
            assert_eq!(refused_lines(&reply), [1]);
            assert!(reply["errors"][0]["detail"].as_str().unwrap().contains("control character"), "{reply}");
        }
    });
}

/// Sends a body that breaks off behind `text`; gives the error.
async fn break_off(nightshift: &Nightshift, path: &str, content_type: &str, text: &str) -> Value {
    let (pieces, body) = body_in_pieces();
    pieces.send(Ok(text.to_owned())).unwrap();
    pieces.send(Err(std::io::Error::other("gone"))).unwrap();
    let reply = nightshift.call(Call::streamed(path, content_type, body)).await;
    assert_eq!(reply.problem(400), "broken_body");
    reply.body
}

/// The lines that a reply names as refused.
fn refused_lines(reply: &Value) -> Vec<u64> {
    reply["errors"].as_array().unwrap().iter().map(|error| error["line"].as_u64().unwrap()).collect()
}

#[test]
fn a_stream_that_breaks_off_tells_what_became_of_each_line_up_to_the_last_that_is_settled() {
    with_actors(async |nightshift| {
        let good = |from: usize, to: usize| -> String {
            (from..=to).map(|n| format!("{}\n", line(Some(&format!("b-{n}")), "x"))).collect()
        };
        // A chunk is stored behind line 252; lines 253 and 254 came whole, too, and the last one did not.
        let body = format!("{{}}\n{}{{}}\n{}{{}}\n{{\"id\":", good(2, 250), good(252, 253));
        let told = break_off(&nightshift, REQUESTS, LINES, &body).await;
        assert_eq!((counts(&told), &told["lastLine"]), ([251, 0, 3], &json!(254)), "{told}");
        assert_eq!(refused_lines(&told), [1, 251, 254]);
        assert_eq!(
            counts(&send_lines(&nightshift, REQUESTS, good(2, 253)).await),
            [1, 251, 0],
            "line 251 was refused"
        );
        // What was only refused is settled, too.
        let told = break_off(&nightshift, REQUESTS, LINES, "{}\n{}\n").await;
        assert_eq!((counts(&told), refused_lines(&told)), ([0, 0, 2], vec![1, 2]));
        let told = break_off(&nightshift, REQUESTS, LINES, "{\"id\":").await;
        assert_eq!(told.get("lastLine"), None, "{told}");
        let many = break_off(&nightshift, SESSIONS, LINES, &"{}\n".repeat(1500)).await;
        assert_eq!((counts(&many), refused_lines(&many).len()), ([0, 0, 1500], 1000));
        assert_eq!((&many["lastLine"], &many["updated"]), (&json!(1500), &json!(0)));
    });
}

#[test]
fn what_is_left_of_a_row_where_an_export_breaks_off_is_no_bad_row() {
    with_actors(async |nightshift| {
        let row = |number: usize| {
            format!("s{number},01.02.2026 10:00:00,01.02.2026 10:05:00,,NL,nl,1,,,,,1,1,0,,hello\n")
        };
        let rows: String = (1..=250).map(row).collect();
        let body = format!("{}bad\n{rows}bad\ns251,01.02.20", row(0));
        let told = break_off(&nightshift, SESSIONS, "text/csv", &body).await;
        assert_eq!((counts(&told), &told["lastLine"]), ([251, 0, 2], &json!(253)), "{told}");
        assert_eq!(refused_lines(&told), [2, 253]);
        let told = break_off(&nightshift, SESSIONS, "text/csv", "s1,01.02.20").await;
        assert_eq!(told.get("rejected"), None, "{told}");
    });
}
