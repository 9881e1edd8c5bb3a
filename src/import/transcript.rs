//! The messages of one conversation: lines `[DD.MM.YYYY HH:MM:SS] Role: text` or `Role: text`.
//!
//! Only a known role starts a message. Every other line goes on with the message above it, also one like
//! `Note: call back`, because people write such lines into their messages.

use std::fmt;
use std::io::{self, Read};

use super::{Encoding, Options, decode, time};
use crate::domain::id::Timestamp;
use crate::domain::session::{Message, Role};

/// Larger transcripts are refused.
pub const TRANSCRIPT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// More of them say no more.
const WARNINGS_MAX: usize = 100;
/// Longer names are no role.
const NAME_BYTES_MAX: usize = 32;

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transcript {
    /// What was said, in the order of the file.
    pub messages: Vec<Message>,
    /// What is odd about the file; the first hundred.
    pub warnings: Vec<Warning>,
}

/// Something odd that did not keep the conversation from being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warning {
    /// The line of the file, from 1.
    pub line: u64,
    /// What it is.
    pub kind: WarningKind,
}

/// What may be odd about a transcript.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarningKind {
    /// Text stands before the first message. Nobody said it, so it is left out.
    BeforeFirstMessage,
    /// A message has no text and is left out.
    EmptyMessage,
    /// The time of a message cannot be read; the message is kept without it.
    BadTime,
    /// A line has a time and a name that is no known role; it is kept as a part of the message above.
    UnknownRole,
    /// A line is not UTF-8 and was taken for Windows-1252.
    Windows1252,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            WarningKind::BeforeFirstMessage => "text before the first message, left out",
            WarningKind::EmptyMessage => "a message without text, left out",
            WarningKind::BadTime => "a time that cannot be read; the message is kept without it",
            WarningKind::UnknownRole => "a role that is not known; the line is kept with the message above",
            WarningKind::Windows1252 => "not UTF-8; taken for Windows-1252",
        };
        write!(f, "line {}: {what}", self.line)
    }
}

/// Why a transcript could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// It is larger than [`TRANSCRIPT_BYTES_MAX`].
    #[error("the transcript is larger than {TRANSCRIPT_BYTES_MAX} bytes")]
    TooLarge,
    /// It is UTF-16 or a binary file.
    #[error("the transcript is no text in UTF-8 or Windows-1252")]
    NotText,
    /// The reader failed.
    #[error("the transcript cannot be read")]
    Io(#[source] io::Error),
}

/// Reads a whole transcript. One without a single message is fine, and has none.
pub fn read(reader: impl Read, options: &Options) -> Result<Transcript, TranscriptError> {
    let mut bytes = Vec::new();
    reader.take(TRANSCRIPT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(TranscriptError::Io)?;
    // One byte more than allowed was asked for.
    if u64::try_from(bytes.len()).is_ok_and(|length| length > TRANSCRIPT_BYTES_MAX) {
        return Err(TranscriptError::TooLarge);
    }
    if bytes.contains(&0) {
        return Err(TranscriptError::NotText);
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(&bytes);
    let mut parser = Parser { options, transcript: Transcript::default(), open: None };
    for (line, bytes) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let (text, encoding) = decode(bytes.strip_suffix(b"\r").unwrap_or(bytes));
        if encoding == Encoding::Windows1252 {
            parser.warn(line, WarningKind::Windows1252);
        }
        parser.line(line, &text);
    }
    parser.close();
    Ok(parser.transcript)
}

struct Parser<'a> {
    options: &'a Options,
    transcript: Transcript,
    /// The message that lines are added to, and the line on which it began.
    open: Option<(u64, Message)>,
}

impl Parser<'_> {
    fn line(&mut self, line: u64, text: &str) {
        match start_of_message(text) {
            Start::Message { time, role, text } => {
                self.close();
                let at = time.and_then(|time| self.time(line, time));
                self.open = Some((line, Message { role, at, text: text.to_owned() }));
                return;
            }
            Start::Stranger => self.warn(line, WarningKind::UnknownRole),
            Start::None => {}
        }
        match &mut self.open {
            Some((_, message)) => {
                message.text.push('\n');
                message.text.push_str(text);
            }
            None if text.trim().is_empty() => {}
            None => self.warn(line, WarningKind::BeforeFirstMessage),
        }
    }

    fn time(&mut self, line: u64, text: &str) -> Option<Timestamp> {
        let at = time::parse(text, &self.options.time_zone);
        if at.is_none() {
            self.warn(line, WarningKind::BadTime);
        }
        at
    }

    fn close(&mut self) {
        let Some((line, mut message)) = self.open.take() else { return };
        let text = message.text.trim();
        if text.is_empty() {
            self.warn(line, WarningKind::EmptyMessage);
            return;
        }
        if text.len() < message.text.len() {
            message.text = text.to_owned();
        }
        self.transcript.messages.push(message);
    }

    fn warn(&mut self, line: u64, kind: WarningKind) {
        if self.transcript.warnings.len() < WARNINGS_MAX {
            self.transcript.warnings.push(Warning { line, kind });
        }
    }
}

enum Start<'a> {
    Message {
        time: Option<&'a str>,
        role: Role,
        text: &'a str,
    },
    /// A time, a name and a colon, but nobody known.
    Stranger,
    None,
}

fn start_of_message(line: &str) -> Start<'_> {
    let line = line.trim_start();
    let (time, rest) = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((time, rest)) if looks_like_time(time) => (Some(time), rest),
        Some(_) | None => (None, line),
    };
    let Some((name, text)) = rest.split_once(':') else { return Start::None };
    match role_of(name.trim()) {
        Some(role) => Start::Message { time, role, text: text.strip_prefix(' ').unwrap_or(text) },
        None if time.is_some() && name.len() <= NAME_BYTES_MAX => Start::Stranger,
        None => Start::None,
    }
}

/// Digits and what may stand between them; whether it is a time is seen when it is read.
fn looks_like_time(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_digit() || " .:-/,+TZ".contains(c);
    text.chars().any(|c| c.is_ascii_digit()) && text.chars().all(allowed)
}

/// Words for the three roles in English, Dutch and German. Words that start ordinary lines of a message, as
/// "support: 0800 …" or "contact: …" do, are not among them.
fn role_of(name: &str) -> Option<Role> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    match name.to_lowercase().as_str() {
        "user" | "customer" | "client" | "visitor" | "guest" | "human" | "employee" | "gebruiker"
        | "klant" | "bezoeker" | "benutzer" | "nutzer" | "kunde" | "kundin" | "besucher" => Some(Role::User),
        "assistant" | "bot" | "chatbot" | "agent" | "ai" | "ai assistant" | "virtual assistant"
        | "operator" | "assistent" | "assistentin" => Some(Role::Assistant),
        "system" | "systeem" => Some(Role::System),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WarningKind::*;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    fn options() -> Options {
        Options { time_zone: TimeZone::get("Europe/Amsterdam").unwrap() }
    }

    fn parse(text: impl AsRef<[u8]>) -> Transcript {
        read(text.as_ref(), &options()).unwrap()
    }

    /// Role, text and warnings, without times.
    type Outline = (Vec<(Role, String)>, Vec<(u64, WarningKind)>);

    fn outline(text: impl AsRef<[u8]>) -> Outline {
        let transcript = parse(text);
        let messages = transcript.messages.into_iter().map(|message| (message.role, message.text)).collect();
        (messages, transcript.warnings.into_iter().map(|warning| (warning.line, warning.kind)).collect())
    }

    fn said(role: Role, text: &str) -> (Role, String) {
        (role, text.to_owned())
    }

    #[test]
    fn messages_with_and_without_a_time_are_read() {
        let transcript = parse("[01.06.2025 08:34:22] User: Help me.\nAssistant: With what?\n");
        assert_eq!(transcript.messages[0].at.unwrap().to_string(), "2025-06-01T06:34:22.000Z");
        assert_eq!(transcript.messages[0].text, "Help me.");
        assert_eq!((transcript.messages[1].role, transcript.messages[1].at), (Role::Assistant, None));
        assert_eq!(transcript.warnings, []);
    }

    #[test]
    fn a_line_that_starts_no_message_belongs_to_the_one_above() {
        let (messages, warnings) =
            outline("User: one\n\n  two\nNote: call back\nhttp://x.example\nBot: yes\n\n");
        let text = "one\n\n  two\nNote: call back\nhttp://x.example";
        assert_eq!(messages, [said(Role::User, text), said(Role::Assistant, "yes")]);
        assert_eq!(warnings, []);
    }

    #[test]
    fn the_usual_words_for_a_role_are_known_whatever_their_case() {
        for name in ["USER", "customer", "Visitor", "Klant", "Kunde", " client "] {
            assert_eq!(outline(format!("{name}: hi")).0, [said(Role::User, "hi")], "{name}");
        }
        for name in ["bot", "CHATBOT", "Agent", "AI Assistant"] {
            assert_eq!(outline(format!("{name}: hi")).0, [said(Role::Assistant, "hi")], "{name}");
        }
        assert_eq!(outline("System: joined").0, [said(Role::System, "joined")]);
    }

    #[test]
    fn text_before_the_first_message_is_left_out_with_a_warning() {
        let (messages, warnings) = outline("\nChat log\nUser: hi");
        assert_eq!(messages, [said(Role::User, "hi")]);
        assert_eq!(warnings, [(2, BeforeFirstMessage)]);
    }

    #[test]
    fn a_stranger_with_a_time_is_kept_with_the_message_above_and_reported() {
        let (messages, warnings) = outline("User: hi\n[01.06.2025 08:34:22] Maria: hello");
        assert_eq!(messages, [said(Role::User, "hi\n[01.06.2025 08:34:22] Maria: hello")]);
        assert_eq!(warnings, [(2, UnknownRole)]);
    }

    #[test]
    fn a_time_that_is_none_is_reported_and_the_message_kept() {
        let (messages, warnings) = outline("[31.02.2025 08:34:22] User: hi");
        assert_eq!((messages, warnings), (vec![said(Role::User, "hi")], vec![(1, BadTime)]));
    }

    #[test]
    fn brackets_that_hold_no_time_start_no_message() {
        assert_eq!(outline("User: a\n[see below] User: b").0, [said(Role::User, "a\n[see below] User: b")]);
    }

    #[test]
    fn a_message_may_begin_on_the_next_line_and_an_empty_one_is_left_out() {
        let (messages, warnings) = outline("User:\nhello\nBot:   \nUser: bye");
        assert_eq!(messages, [said(Role::User, "hello"), said(Role::User, "bye")]);
        assert_eq!(warnings, [(3, EmptyMessage)]);
    }

    #[test]
    fn byte_order_mark_carriage_returns_and_latin_1_are_fine() {
        let (messages, warnings) =
            outline(b"\xef\xbb\xbfUser: one\r\ntwo\r\nBot: caf\xe9\r\nUser: caf\xc3\xa9");
        let expected =
            [said(Role::User, "one\ntwo"), said(Role::Assistant, "café"), said(Role::User, "café")];
        assert_eq!((messages.as_slice(), warnings.as_slice()), (&expected[..], &[(3, Windows1252)][..]));
    }

    #[test]
    fn what_is_too_large_or_no_text_is_refused() {
        let limit = usize::try_from(TRANSCRIPT_BYTES_MAX).unwrap();
        let fits = format!("User: {}", "x".repeat(limit - 6));
        assert_eq!(parse(&fits).messages.len(), 1);
        assert!(matches!(read(format!("{fits}x").as_bytes(), &options()), Err(TranscriptError::TooLarge)));
        assert!(matches!(read(&b"U\0s\0e\0r\0"[..], &options()), Err(TranscriptError::NotText)));
        assert_eq!(parse("").messages, []);
    }

    #[test]
    fn a_file_full_of_oddities_warns_a_hundred_times_at_most() {
        assert_eq!(parse("odd\n".repeat(1_000)).warnings.len(), 100);
    }

    /// The form that an export has.
    fn render(messages: &[Message]) -> String {
        let mut text = String::new();
        for message in messages {
            if let Some(at) = message.at {
                let at = jiff::Timestamp::from_millisecond(at.as_millis()).unwrap();
                let zoned = options().time_zone.to_datetime(at);
                text.push_str(&format!("[{}] ", zoned.strftime("%d.%m.%Y %H:%M:%S")));
            }
            text.push_str(&format!("{}: {}\n", message.role.label(), message.text));
        }
        text
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let role = prop_oneof![Just(Role::User), Just(Role::Assistant), Just(Role::System)];
        // No colons, so that no line looks like a message; no time in the hours that the clock repeats.
        let line = "[^:\r\n\u{0}]{0,30}";
        let text = proptest::collection::vec(line, 1..4).prop_map(|lines| lines.join("\n").trim().to_owned());
        let at =
            proptest::option::of((0..20_000_i64).prop_map(|day| Timestamp::from_secs(day * 86_400 + 43_200)));
        (role, at, text.prop_filter("said something", |text| !text.is_empty()))
            .prop_map(|(role, at, text)| Message { role, at, text })
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_back(messages in proptest::collection::vec(any_message(), 0..20), crlf: bool) {
            let text = render(&messages);
            let text = if crlf { text.replace('\n', "\r\n") } else { text };
            let transcript = parse(text);
            prop_assert_eq!(transcript.messages, messages);
            prop_assert_eq!(transcript.warnings, vec![]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let _ = read(bytes.as_slice(), &options());
        }
    }
}
