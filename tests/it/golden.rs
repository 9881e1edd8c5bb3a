//! Compares a reply with the one in `tests/golden`, with ids and times by their order of appearance.
//!
//! `UPDATE_GOLDEN=1 cargo test` writes the files anew; what changed is then for a person to read.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;

pub fn check(name: &str, reply: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    let mut names = HashMap::new();
    let text = serde_json::to_string_pretty(&normal(reply, &mut names)).unwrap() + "\n";
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} is not what was agreed", path.display());
}

fn normal(value: &Value, names: &mut HashMap<String, String>) -> Value {
    match value {
        Value::String(text) => {
            let id = text.strip_prefix("batch_").unwrap_or(text);
            if uuid::Uuid::parse_str(id).is_ok() {
                let next = format!("id-{}", names.len() + 1);
                let name = names.entry(id.to_owned()).or_insert(next).clone();
                return Value::String(text.replace(id, &name));
            }
            Value::String(text.clone())
        }
        Value::Array(items) => items.iter().map(|item| normal(item, names)).collect(),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| {
                // The back-off is spread by the id, which is another one each time.
                let spread = key == "notBefore" && value.is_string();
                let value = if spread { Value::String("(a time)".to_owned()) } else { normal(value, names) };
                (key.clone(), value)
            };
            fields.iter().map(field).collect()
        }
        other => other.clone(),
    }
}
