//! What is asked of a session, and which answer is valid.
//!
//! The body of a request is built from its parts as text, never through a JSON map: an input line that is built
//! again years later must be the same, byte for byte.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::line_ends;
use super::session::{Message, SessionFacts};
use v1::{REPAIR_PROMPT, RESPONSE_FORMAT, SYSTEM_PROMPT};

mod v1;

/// The version of prompt and schema that new requests are made with. A change of a single byte needs a new one.
pub const PROMPT_VERSION: u32 = 1;

/// A conversation with more text than this is cut in its middle: a session is judged by how it begins and ends.
pub const TRANSCRIPT_BYTES_MAX: usize = 200_000;

const QUESTIONS_MAX: usize = 5;
const QUESTION_CHARS_MAX: usize = 500;
const SUMMARY_CHARS_MIN: usize = 10;
const SUMMARY_CHARS_MAX: usize = 300;
/// What a message takes besides its text, so that a million empty messages count as well.
const MESSAGE_OVERHEAD_BYTES: usize = 32;

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $label)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that stands for it in an answer.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }

            fn from_label(label: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|word| word.label() == label)
            }
        }
    };
}

word_enum!(
    /// How the customer feels about it.
    Sentiment {
        /// Content, thankful.
        Positive = "POSITIVE",
        /// Neither.
        Neutral = "NEUTRAL",
        /// Annoyed, worried, let down.
        Negative = "NEGATIVE",
    }
);

word_enum!(
    /// What the conversation is mainly about.
    Category {
        /// Rosters, shifts, working hours of the week.
        ScheduleHours = "SCHEDULE_HOURS",
        /// Holidays and other leave.
        LeaveVacation = "LEAVE_VACATION",
        /// Being ill, and coming back.
        SickLeaveRecovery = "SICK_LEAVE_RECOVERY",
        /// Pay, payslips, allowances.
        SalaryCompensation = "SALARY_COMPENSATION",
        /// The contract and its hours.
        ContractHours = "CONTRACT_HOURS",
        /// Starting in the job.
        Onboarding = "ONBOARDING",
        /// Leaving the job.
        Offboarding = "OFFBOARDING",
        /// Work clothes and the staff pass.
        WorkwearStaffPass = "WORKWEAR_STAFF_PASS",
        /// Who is who, and how to reach them.
        TeamContacts = "TEAM_CONTACTS",
        /// Personal circumstances and personal data.
        PersonalQuestions = "PERSONAL_QUESTIONS",
        /// Accounts, passwords, apps.
        AccessLogin = "ACCESS_LOGIN",
        /// Small talk, staff parties, things social.
        SocialQuestions = "SOCIAL_QUESTIONS",
        /// None of the others.
        UnrecognizedOther = "UNRECOGNIZED_OTHER",
    }
);

/// A valid answer: what is known of a conversation once a model has read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analysis {
    /// ISO 639-1 code of the language that the customer writes.
    pub language: String,
    /// How the customer feels about it.
    pub sentiment: Sentiment,
    /// Whether a person was called in, or had to be.
    pub escalated: bool,
    /// Whether it was passed on to HR.
    pub forwarded_hr: bool,
    /// What it is mainly about.
    pub category: Category,
    /// What the customer asked, in English; at most five.
    pub questions: Vec<String>,
    /// 10 to 300 characters, in English.
    pub summary: String,
}

/// Why an answer cannot be used. It has been paid for all the same. No words of the conversation are in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The body is no chat completion.
    #[error("the body is no chat completion: {0}")]
    BadBody(String),
    /// It broke off at the model's limit of tokens.
    #[error("the answer was cut off at the limit of tokens")]
    Length,
    /// The provider's filter stopped it.
    #[error("the answer was stopped by the provider's content filter")]
    ContentFilter,
    /// The model would not.
    #[error("the model refused to answer")]
    Refusal,
    /// There is no text in it.
    #[error("the answer has no content (finish reason {0})")]
    Empty(String),
    /// The text is no JSON.
    #[error("the answer is not JSON: error at line {line}, column {column}")]
    NotJson {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// It is JSON, but not what was asked for.
    #[error("the answer is not valid: {0}")]
    Invalid(String),
}

impl AnswerError {
    /// A short code, kept with the failed request.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadBody(_) => "bad_body",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::Refusal => "refusal",
            Self::Empty(_) => "empty_answer",
            Self::NotJson { .. } => "not_json",
            Self::Invalid(_) => "invalid_answer",
        }
    }

    /// Whether the model may do better once it is shown what is wrong: it answered, and not in the form.
    pub const fn is_misfit(&self) -> bool {
        match self {
            Self::NotJson { .. } | Self::Invalid(_) => true,
            Self::BadBody(_) | Self::Length | Self::ContentFilter | Self::Refusal | Self::Empty(_) => false,
        }
    }
}

/// An answer that does not fit the form, and what is wrong with it: the model is shown both when it is asked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misfit {
    /// The answer's text; a long one is cut.
    pub answer: String,
    /// What is wrong with it, without words of the conversation.
    pub error: String,
}

/// More of an answer that does not fit is not shown again.
const MISFIT_BYTES_MAX: usize = 8000;

impl Misfit {
    /// The answer in the body of a chat completion, if it is one that the model may do better than.
    pub fn of(completion_body_json: &str, error: &AnswerError) -> Option<Self> {
        if !error.is_misfit() {
            return None;
        }
        let body: Value = serde_json::from_str(completion_body_json).ok()?;
        let answer = body.pointer("/choices/0/message/content").and_then(Value::as_str)?;
        let answer = answer[..answer.floor_char_boundary(MISFIT_BYTES_MAX)].to_owned();
        Some(Self { answer, error: error.to_string() })
    }
}

/// The body of the request that asks for the analysis of a session, for `/v1/chat/completions`.
///
/// The same arguments give the same bytes for ever. A prompt version that this program does not know is taken for the
/// newest; the checksum of the line, stored with the request, tells the difference. No temperature and no limit of
/// tokens are sent, because newer models refuse the names that older ones know.
///
/// With a `misfit` the model is shown its answer and what was wrong with it, and asked once more.
pub fn request_body(
    model: &str,
    prompt_version: u32,
    facts: &SessionFacts,
    messages: &[Message],
    misfit: Option<&Misfit>,
) -> String {
    // So far there is one version. The next one gets its own prompt and schema beside these, never in their place.
    let _ = prompt_version;
    let data = transcript_json(facts, messages);
    let (model, system, user) = (json_text(model), json_text(SYSTEM_PROMPT), json_text(&data));
    let again = misfit.map_or_else(String::new, |misfit| {
        let answer = json_text(&misfit.answer);
        let asked = json_text(&format!("{REPAIR_PROMPT} {}.", misfit.error));
        format!(r#",{{"role":"assistant","content":{answer}}},{{"role":"user","content":{asked}}}"#)
    });
    format!(
        r#"{{"model":{model},"messages":[{{"role":"system","content":{system}}},{{"role":"user","content":{user}}}{again}],"response_format":{RESPONSE_FORMAT}}}"#
    )
}

/// Tokens that so many bytes of input come to, about: four bytes a token, rounded up. Right for English within a
/// fifth; other languages take more tokens a character but also more bytes. It serves to keep within a queue's limit
/// that has room to spare, not to reckon money.
pub fn estimate_tokens(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

/// Takes the analysis out of the body of a chat completion, or says precisely why there is none.
pub fn parse_answer(completion_body_json: &str) -> Result<Analysis, AnswerError> {
    let body: Value = serde_json::from_str(completion_body_json).map_err(|err| {
        AnswerError::BadBody(format!("error at line {}, column {}", err.line(), err.column()))
    })?;
    let choice =
        body.pointer("/choices/0").ok_or_else(|| AnswerError::BadBody("it has no choice".to_owned()))?;
    let finish_reason = choice.get("finish_reason").and_then(Value::as_str).unwrap_or("none");
    match finish_reason {
        "length" => return Err(AnswerError::Length),
        "content_filter" => return Err(AnswerError::ContentFilter),
        _ => {}
    }
    if choice.pointer("/message/refusal").and_then(Value::as_str).is_some_and(|refusal| !refusal.is_empty()) {
        return Err(AnswerError::Refusal);
    }
    match choice.pointer("/message/content").and_then(Value::as_str) {
        Some(content) if !content.trim().is_empty() => parse_content(content),
        Some(_) | None => Err(AnswerError::Empty(finish_reason.chars().take(40).collect())),
    }
}

/// Written by hand, because a derived reader quotes what it does not like, and that may be the customer's words.
fn parse_content(content: &str) -> Result<Analysis, AnswerError> {
    let value: Value = serde_json::from_str(content)
        .map_err(|err| AnswerError::NotJson { line: err.line(), column: err.column() })?;
    let Value::Object(mut fields) = value else {
        return Err(AnswerError::Invalid("it is not an object".to_owned()));
    };
    let mut take = |name: &'static str| {
        fields.remove(name).ok_or_else(|| AnswerError::Invalid(format!("{name} is missing")))
    };
    let (language, sentiment) = (take("language")?, take("sentiment")?);
    let (escalated, forwarded_hr) = (take("escalated")?, take("forwarded_hr")?);
    let (category, questions, summary) = (take("category")?, take("questions")?, take("summary")?);
    if !fields.is_empty() {
        return Err(AnswerError::Invalid(format!("{} fields that were not asked for", fields.len())));
    }
    let language = text("language", language)?;
    if LANGUAGES.binary_search(&language.as_str()).is_err() {
        return Err(AnswerError::Invalid("language is no ISO 639-1 code".to_owned()));
    }
    Ok(Analysis {
        language,
        sentiment: word("sentiment", sentiment, Sentiment::from_label)?,
        escalated: truth("escalated", &escalated)?,
        forwarded_hr: truth("forwarded_hr", &forwarded_hr)?,
        category: word("category", category, Category::from_label)?,
        questions: parse_questions(questions)?,
        summary: sized("summary", text("summary", summary)?, SUMMARY_CHARS_MIN, SUMMARY_CHARS_MAX)?,
    })
}

fn parse_questions(value: Value) -> Result<Vec<String>, AnswerError> {
    let Value::Array(questions) = value else {
        return Err(AnswerError::Invalid("questions is not a list".to_owned()));
    };
    if questions.len() > QUESTIONS_MAX {
        let count = questions.len();
        return Err(AnswerError::Invalid(format!(
            "{count} questions, and at most {QUESTIONS_MAX} were asked for"
        )));
    }
    questions
        .into_iter()
        .map(|question| sized("a question", text("a question", question)?, 1, QUESTION_CHARS_MAX))
        .collect()
}

fn text(name: &str, value: Value) -> Result<String, AnswerError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(AnswerError::Invalid(format!("{name} is not text")))
        }
    }
}

fn truth(name: &str, value: &Value) -> Result<bool, AnswerError> {
    value.as_bool().ok_or_else(|| AnswerError::Invalid(format!("{name} is neither true nor false")))
}

fn word<T>(name: &str, value: Value, from_label: fn(&str) -> Option<T>) -> Result<T, AnswerError> {
    from_label(&text(name, value)?)
        .ok_or_else(|| AnswerError::Invalid(format!("{name} is none of the words that were asked for")))
}

fn sized(name: &str, text: String, min: usize, max: usize) -> Result<String, AnswerError> {
    let chars = text.trim().chars().count();
    if (min..=max).contains(&chars) && text.chars().count() <= max {
        Ok(text)
    } else {
        Err(AnswerError::Invalid(format!(
            "{name} has {chars} characters, which is not between {min} and {max}"
        )))
    }
}

/// The conversation as a JSON document of its own. In a JSON string nothing that a customer types can end the slot
/// that it stands in.
fn transcript_json(facts: &SessionFacts, messages: &[Message]) -> String {
    let (head, left_out, tail) = cut_middle(messages);
    let mut json = String::from("{\n\"export_language\":");
    json.push_str(&facts.language.as_deref().map_or_else(|| "null".to_owned(), json_text));
    json.push_str(",\n\"messages\":[");
    let mut separator = "\n";
    let mut push = |entry: &str| {
        json.push_str(separator);
        json.push_str(entry);
        separator = ",\n";
    };
    for line in &head {
        push(&line.json());
    }
    if left_out > 0 {
        push(&format!(r#"{{"left_out_bytes":{left_out}}}"#));
    }
    for line in &tail {
        push(&line.json());
    }
    json.push_str("\n]}");
    json
}

struct Line<'a> {
    role: &'static str,
    text: &'a str,
}

impl Line<'_> {
    fn json(&self) -> String {
        format!(r#"{{"role":"{}","text":{}}}"#, self.role, json_text(self.text))
    }
}

/// The lines to send: all of them, or as much of the beginning and of the end as there is room for, and between them
/// how many bytes of text are left out.
fn cut_middle(messages: &[Message]) -> (Vec<Line<'_>>, usize, VecDeque<Line<'_>>) {
    let lines = || messages.iter().map(|message| Line { role: message.role.label(), text: &message.text });
    let size: usize = messages.iter().map(|message| message.text.len() + MESSAGE_OVERHEAD_BYTES).sum();
    if size <= TRANSCRIPT_BYTES_MAX {
        return (lines().collect(), 0, VecDeque::new());
    }
    // The whole is larger than both halves together, so that what is taken from each end never meets.
    let mut head = Vec::new();
    let mut kept = 0;
    let mut room = TRANSCRIPT_BYTES_MAX / 2;
    for line in lines() {
        let text = &line.text[..line.text.floor_char_boundary(room.saturating_sub(MESSAGE_OVERHEAD_BYTES))];
        if text.is_empty() && room < line.text.len() + MESSAGE_OVERHEAD_BYTES {
            break;
        }
        kept += text.len();
        head.push(Line { role: line.role, text });
        room = room.saturating_sub(line.text.len() + MESSAGE_OVERHEAD_BYTES);
    }
    let mut tail = VecDeque::new();
    let mut room = TRANSCRIPT_BYTES_MAX / 2;
    for line in lines().rev() {
        let from = line.text.len().saturating_sub(room.saturating_sub(MESSAGE_OVERHEAD_BYTES));
        let text = &line.text[line.text.ceil_char_boundary(from)..];
        if text.is_empty() && room < line.text.len() + MESSAGE_OVERHEAD_BYTES {
            break;
        }
        kept += text.len();
        tail.push_front(Line { role: line.role, text });
        room = room.saturating_sub(line.text.len() + MESSAGE_OVERHEAD_BYTES);
    }
    let all: usize = messages.iter().map(|message| message.text.len()).sum();
    (head, all.saturating_sub(kept), tail)
}

/// A JSON string on one line for every reader.
fn json_text(text: &str) -> String {
    line_ends::escape(&Value::from(text).to_string(), &line_ends::OF_SESSIONS).into_owned()
}

/// ISO 639-1, sorted.
#[rustfmt::skip]
const LANGUAGES: [&str; 183] = [
    "aa", "ab", "ae", "af", "ak", "am", "an", "ar", "as", "av", "ay", "az", "ba", "be", "bg", "bi", "bm", "bn", "bo",
    "br", "bs", "ca", "ce", "ch", "co", "cr", "cs", "cu", "cv", "cy", "da", "de", "dv", "dz", "ee", "el", "en", "eo",
    "es", "et", "eu", "fa", "ff", "fi", "fj", "fo", "fr", "fy", "ga", "gd", "gl", "gn", "gu", "gv", "ha", "he", "hi",
    "ho", "hr", "ht", "hu", "hy", "hz", "ia", "id", "ie", "ig", "ii", "ik", "io", "is", "it", "iu", "ja", "jv", "ka",
    "kg", "ki", "kj", "kk", "kl", "km", "kn", "ko", "kr", "ks", "ku", "kv", "kw", "ky", "la", "lb", "lg", "li", "ln",
    "lo", "lt", "lu", "lv", "mg", "mh", "mi", "mk", "ml", "mn", "mr", "ms", "mt", "my", "na", "nb", "nd", "ne", "ng",
    "nl", "nn", "no", "nr", "nv", "ny", "oc", "oj", "om", "or", "os", "pa", "pi", "pl", "ps", "pt", "qu", "rm", "rn",
    "ro", "ru", "rw", "sa", "sc", "sd", "se", "sg", "si", "sk", "sl", "sm", "sn", "so", "sq", "sr", "ss", "st", "su",
    "sv", "sw", "ta", "te", "tg", "th", "ti", "tk", "tl", "tn", "to", "tr", "ts", "tt", "tw", "ty", "ug", "uk", "ur",
    "uz", "ve", "vi", "vo", "wa", "wo", "xh", "yi", "yo", "za", "zh", "zu",
];

#[cfg(test)]
mod tests;
