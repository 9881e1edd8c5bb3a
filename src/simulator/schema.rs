//! A JSON value that fits a schema and looks sensible for a conversation.
//!
//! The schema comes with the request; nothing about ours is known here. What a property is called decides what is
//! looked for, and its type, enum and bounds decide what may be answered.

use serde_json::{Map, Value, json};

use super::conversation::Conversation;

/// Depth at which a schema is no longer followed: it may be endless.
const MAX_DEPTH: usize = 16;
const MAX_ITEMS: usize = 5;

/// What hints at a category: words in its label, and words in the conversation.
const HINTS: [(&[&str], &[&str]); 9] = [
    (
        &["leave", "vacation", "holiday"],
        &["holiday", "vacation", "leave", "day", "verlof", "urlaub", "vacances"],
    ),
    (&["sick", "absence"], &["sick", "ill", "doctor", "ziek", "krank", "malade"]),
    (&["salary", "compensation", "pay"], &["salary", "pay", "wage", "bonus", "loon", "gehalt", "salaire"]),
    (&["contract", "hours", "schedule"], &["contract", "hour", "schedule", "shift", "rooster", "vertrag"]),
    (&["access", "login"], &["login", "password", "account", "access", "wachtwoord", "passwort"]),
    (&["onboarding"], &["onboarding", "first", "start"]),
    (&["offboarding"], &["resign", "quit", "offboarding"]),
    (&["benefit"], &["benefit", "insurance", "pension"]),
    (&["office", "tool", "workwear"], &["laptop", "office", "chair", "shoes", "uniform"]),
];

/// A value for `schema`, the schema of the property `name` (empty at the top).
pub(super) fn fill(schema: &Value, talk: &Conversation) -> Value {
    Filler { root: schema, talk }.value(schema, "", 0)
}

struct Filler<'a> {
    root: &'a Value,
    talk: &'a Conversation,
}

impl Filler<'_> {
    fn value(&self, schema: &Value, name: &str, depth: usize) -> Value {
        if depth > MAX_DEPTH {
            return Value::Null;
        }
        if let Some(target) = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
            return self.root.pointer(target).map_or(Value::Null, |to| self.value(to, name, depth + 1));
        }
        if let Some(fixed) = schema.get("const") {
            return fixed.clone();
        }
        if let Some(choices) = schema["enum"].as_array().filter(|choices| !choices.is_empty()) {
            return self.choice(choices, name);
        }
        if let Some(any) = schema["anyOf"].as_array().and_then(|any| any.first()) {
            return self.value(any, name, depth + 1);
        }
        match type_of(schema) {
            "object" => {
                let properties = schema["properties"].as_object();
                let filled = properties.into_iter().flatten();
                Value::Object(
                    filled
                        .map(|(key, of)| (key.clone(), self.value(of, key, depth + 1)))
                        .collect::<Map<_, _>>(),
                )
            }
            "array" => self.list(schema, name, depth),
            "boolean" => json!(self.is_true(name)),
            "integer" | "number" => schema.get("minimum").cloned().unwrap_or_else(|| json!(0)),
            "null" => Value::Null,
            _ => json!(self.text(schema, name)),
        }
    }

    fn choice(&self, choices: &[Value], name: &str) -> Value {
        let find = |wanted: &str| {
            choices
                .iter()
                .find(|choice| choice.as_str().is_some_and(|text| text.eq_ignore_ascii_case(wanted)))
        };
        let wanted = match name.to_lowercase().as_str() {
            sentiment if sentiment.contains("sentiment") => find(self.talk.sentiment()),
            language if language.contains("language") => find(self.talk.language()),
            _ => self.likeliest(choices),
        };
        let fallback = || find("other").or_else(|| find("unrecognized / other")).or(choices.last());
        wanted.or_else(fallback).cloned().unwrap_or(Value::Null)
    }

    /// The choice that the conversation hints at most.
    fn likeliest<'v>(&self, choices: &'v [Value]) -> Option<&'v Value> {
        let score = |choice: &Value| {
            let label = choice.as_str().unwrap_or_default().to_lowercase();
            let own = label.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3);
            let own: usize = own.map(|word| self.talk.weight(word)).sum();
            let hints = HINTS.iter().filter(|(labels, _)| labels.iter().any(|part| label.contains(part)));
            let hinted = hints.flat_map(|(_, words)| words.iter());
            own + hinted.map(|word| self.talk.weight(word)).sum::<usize>()
        };
        let scored = choices.iter().map(|choice| (score(choice), choice));
        // The first of equals, so that the order of the schema decides.
        scored.rev().max_by_key(|(score, _)| *score).filter(|(score, _)| *score > 0).map(|(_, choice)| choice)
    }

    fn list(&self, schema: &Value, name: &str, depth: usize) -> Value {
        let bound = |key: &str| schema[key].as_u64().and_then(|bound| usize::try_from(bound).ok());
        let (min, max) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(MAX_ITEMS));
        let items = &schema["items"];
        let mut list: Vec<Value> = Vec::new();
        if type_of(items) == "string" && items.get("enum").is_none() && name.contains("question") {
            let questions = self.talk.questions().into_iter().take(max);
            list.extend(questions.map(|question| json!(bounded(&question, items))));
        }
        while list.len() < min {
            list.push(self.value(items, name, depth + 1));
        }
        Value::Array(list)
    }

    fn is_true(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        if name.contains("hr") {
            return self.talk.mentions(&["hr", "personnel", "personeelszaken"]);
        }
        if name.contains("escalat") {
            return self.talk.mentions(&["manager", "escalat", "supervisor", "complain", "klacht"]);
        }
        false
    }

    fn text(&self, schema: &Value, name: &str) -> String {
        let name = name.to_lowercase();
        let wants_code = schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("[a-z]{2}"));
        if wants_code || name.contains("language") {
            return self.talk.language().to_owned();
        }
        if name.contains("summary") {
            return bounded(&format!("The user wrote about this: {}", self.talk.gist()), schema);
        }
        bounded(&self.talk.gist(), schema)
    }
}

/// The schema's type; of several the first that is not null.
fn type_of(schema: &Value) -> &str {
    let mut several = schema["type"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let untyped = if schema.get("properties").is_some() { "object" } else { "string" };
    schema["type"].as_str().or_else(|| several.find(|kind| *kind != "null")).unwrap_or(untyped)
}

/// `text` brought within the schema's lengths, counted in characters.
fn bounded(text: &str, schema: &Value) -> String {
    let bound = |key: &str| schema[key].as_u64().and_then(|bound| usize::try_from(bound).ok());
    let max = bound("maxLength").unwrap_or(300);
    let mut text: String = text.chars().take(max).collect();
    let min = bound("minLength").unwrap_or(0).min(max);
    while text.chars().count() < min {
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {
            "language": {"type": "string", "pattern": "^[a-z]{2}$"},
            "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
            "escalated": {"type": "boolean"},
            "forwarded_hr": {"type": "boolean"},
            "category": {"type": "string", "enum": ["Schedule & Hours", "Leave & Vacation", "Sick Leave & Recovery",
                "Salary & Compensation", "Contract & Hours", "Access & Login", "Unrecognized / Other"]},
            "questions": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 200}},
            "summary": {"type": "string", "minLength": 10, "maxLength": 300},
            "note": {"$ref": "#/$defs/note"}
        }, "$defs": {"note": {"type": ["null", "string"], "maxLength": 4}}})
    }

    fn filled(text: &str) -> Value {
        let body = json!({"messages": [{"role": "user", "content": text}]});
        fill(&schema(), &Conversation::of(&body))
    }

    #[test]
    fn an_analysis_fits_its_schema_and_the_conversation() {
        let answer = filled("User: How many vacation days do I have?\nAssistant: 25.\nUser: Great, thanks!");
        assert_eq!(answer["language"], "en");
        assert_eq!(answer["sentiment"], "positive");
        assert_eq!(answer["category"], "Leave & Vacation");
        assert_eq!(answer["questions"], json!(["How many vacation days do I have?"]));
        assert_eq!(answer["escalated"], false);
        assert_eq!(answer["note"], "How ");
        let summary = answer["summary"].as_str().unwrap().chars().count();
        assert!((10..=300).contains(&summary));
    }

    #[test]
    fn categories_follow_keywords_and_the_rest_is_other() {
        assert_eq!(filled("my password does not work")["category"], "Access & Login");
        assert_eq!(filled("when is my salary paid")["category"], "Salary & Compensation");
        assert_eq!(filled("i am ill and saw a doctor")["category"], "Sick Leave & Recovery");
        assert_eq!(filled("zzz")["category"], "Unrecognized / Other");
        assert_eq!(filled("let me talk to HR")["forwarded_hr"], true);
        assert_eq!(filled(&"long ".repeat(500))["summary"].as_str().unwrap().len(), 300);
    }
}
