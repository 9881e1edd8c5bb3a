//! What a request's text says, read by simple rules: who speaks, which questions, which mood, which language.

use serde_json::Value;

/// Words by which a line's speaker is known to be the user.
const USER_WORDS: [&str; 7] = ["user", "visitor", "customer", "employee", "client", "human", "guest"];
/// Words by which a line's speaker is known to be somebody else.
const OTHER_WORDS: [&str; 6] = ["assistant", "agent", "bot", "chatbot", "system", "ai"];

const POSITIVE: [&str; 16] = [
    "thanks",
    "thank",
    "great",
    "perfect",
    "awesome",
    "happy",
    "helpful",
    "excellent",
    "love",
    "bedankt",
    "super",
    "danke",
    "merci",
    "fijn",
    "prima",
    "toll",
];
const NEGATIVE: [&str; 18] = [
    "angry",
    "terrible",
    "awful",
    "useless",
    "wrong",
    "bad",
    "frustrated",
    "annoyed",
    "unacceptable",
    "complaint",
    "disappointed",
    "ridiculous",
    "worst",
    "slecht",
    "boos",
    "klacht",
    "schlecht",
    "nul",
];
/// Stop words by which a language is known.
const LANGUAGES: [(&str, [&str; 10]); 4] = [
    ("en", ["the", "is", "and", "my", "what", "how", "can", "you", "for", "have"]),
    ("nl", ["de", "het", "een", "ik", "is", "wat", "hoe", "mijn", "niet", "voor"]),
    ("de", ["der", "die", "das", "ich", "ist", "und", "wie", "mein", "nicht", "ein"]),
    ("fr", ["le", "la", "les", "je", "est", "et", "comment", "mon", "pas", "pour"]),
];

/// The texts of one request.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// What the user said, piece by piece.
    pub(super) user: Vec<String>,
    /// Everything but instructions, in lower case.
    all: String,
}

impl Conversation {
    /// Reads the messages of a chat completion or the input of a response.
    pub(super) fn of(body: &Value) -> Self {
        let mut conversation = Self::default();
        let input = body.get("messages").or_else(|| body.get("input")).unwrap_or(&Value::Null);
        if let Some(text) = input.as_str() {
            conversation.read(text);
        }
        for message in input.as_array().into_iter().flatten() {
            let is_instruction =
                matches!(message["role"].as_str(), Some("system" | "developer" | "assistant"));
            if let (false, Some(text)) = (is_instruction, text_of(&message["content"])) {
                conversation.read(&text);
            }
        }
        conversation
    }

    /// A document with a list of messages is a conversation within the message; everything else is text.
    fn read(&mut self, text: &str) {
        let document = serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
        let entries = document["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        if entries.is_empty() {
            return self.read_text(text);
        }
        for entry in entries {
            let Some(said) = entry["content"].as_str().or_else(|| entry["text"].as_str()) else { continue };
            self.all.push_str(&said.to_lowercase());
            self.all.push('\n');
            if entry["role"].as_str().is_none_or(|role| USER_WORDS.contains(&role)) {
                self.user.push(said.to_owned());
            }
        }
    }

    fn read_text(&mut self, text: &str) {
        self.all.push_str(&text.to_lowercase());
        self.all.push('\n');
        let lines: Vec<(Speaker, &str)> = text.lines().map(speaker).collect();
        let is_transcript = lines.iter().any(|(speaker, _)| *speaker == Speaker::User);
        let mut speaking = Speaker::Unknown;
        for (speaker, said) in lines {
            if speaker != Speaker::Unknown {
                speaking = speaker;
            }
            let said = said.trim();
            if !said.is_empty() && (!is_transcript || speaking == Speaker::User) {
                self.user.push(said.to_owned());
            }
        }
    }

    /// The user's sentences that end in a question mark.
    pub(super) fn questions(&self) -> Vec<String> {
        let mut questions = Vec::new();
        for said in &self.user {
            let mut start = 0;
            let mut characters = said.char_indices().peekable();
            while let Some((at, character)) = characters.next() {
                // A dot within a word or number ends no sentence.
                let at_end = characters.peek().is_none_or(|(_, next)| next.is_whitespace());
                if !at_end || !matches!(character, '?' | '.' | '!') {
                    continue;
                }
                let sentence = said.get(start..=at).unwrap_or_default().trim();
                if character == '?' && sentence.chars().count() > 2 {
                    questions.push(sentence.to_owned());
                }
                start = at + 1;
            }
        }
        questions
    }

    /// Whether any of `words` occurs as a word, or as the beginning of one.
    pub(super) fn mentions(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.weight(word) > 0)
    }

    /// How many words begin with `start`.
    pub(super) fn weight(&self, start: &str) -> usize {
        self.words().filter(|word| word.starts_with(start)).count()
    }

    /// `positive`, `negative` or `neutral`.
    pub(super) fn sentiment(&self) -> &'static str {
        let count = |list: &[&str]| self.words().filter(|word| list.contains(word)).count();
        match count(&POSITIVE).cmp(&count(&NEGATIVE)) {
            std::cmp::Ordering::Greater => "positive",
            std::cmp::Ordering::Less => "negative",
            std::cmp::Ordering::Equal => "neutral",
        }
    }

    /// The language with most stop words, English if none has any.
    pub(super) fn language(&self) -> &'static str {
        let mut best = ("en", 0);
        for (language, stop_words) in LANGUAGES {
            let count = self.words().filter(|word| stop_words.contains(word)).count();
            if count > best.1 {
                best = (language, count);
            }
        }
        best.0
    }

    /// The user's first words, which say what it was about.
    pub(super) fn gist(&self) -> String {
        let first = self.user.first().map_or("nothing", String::as_str);
        first.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.all.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
    }
}

/// The text of a message's content, which is text or a list of parts.
fn text_of(content: &Value) -> Option<String> {
    if let Some(text) = content.as_str() {
        return Some(text.to_owned());
    }
    let parts = content.as_array()?.iter().filter_map(|part| part["text"].as_str());
    Some(parts.collect::<Vec<_>>().join("\n"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    User,
    Other,
    Unknown,
}

/// Who speaks in a line such as `[09:30] User: hello`, and what they say.
fn speaker(line: &str) -> (Speaker, &str) {
    let mut rest = line.trim_start();
    if let Some((_, after)) = rest.strip_prefix('[').and_then(|stamped| stamped.split_once(']')) {
        rest = after.trim_start();
    }
    let Some((name, said)) = rest.split_once(':') else { return (Speaker::Unknown, rest) };
    let name = name.trim().trim_matches('*').to_lowercase();
    if USER_WORDS.contains(&name.as_str()) {
        (Speaker::User, said)
    } else if OTHER_WORDS.contains(&name.as_str()) {
        (Speaker::Other, said)
    } else {
        (Speaker::Unknown, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conversation(text: &str) -> Conversation {
        let system = json!({"role": "system", "content": "What is the category? Be helpful."});
        Conversation::of(&json!({"messages": [system, {"role": "user", "content": text}]}))
    }

    #[test]
    fn only_what_the_user_says_is_a_question_of_the_user() {
        let talk = conversation(
            "[09:30] User: Hello there. How many days do I have? Version 1.5 is odd, is it?\n\
             Assistant: Which year?\nUser: This one.",
        );
        assert_eq!(talk.questions(), ["How many days do I have?", "Version 1.5 is odd, is it?"]);
        assert_eq!(talk.gist(), "Hello there. How many days do I have? Version 1.5 is odd, is it?");
    }

    #[test]
    fn mood_and_language_are_read_from_words() {
        assert_eq!(conversation("Great, thanks!").sentiment(), "positive");
        assert_eq!(conversation("This is terrible").sentiment(), "negative");
        assert_eq!(conversation("Where?").sentiment(), "neutral");
        assert_eq!(conversation("Hoe kan ik mijn verlof aanvragen voor het weekend?").language(), "nl");
        assert_eq!(conversation("Wie kann ich das machen und ist der Urlaub frei?").language(), "de");
        assert_eq!(conversation("Comment poser mon jour pour le pont et les vacances?").language(), "fr");
        assert_eq!(conversation("42").language(), "en");
    }
}
