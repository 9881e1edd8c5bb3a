//! The layers, one over the other: what was said and where, not yet whether it makes sense.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::DEFAULT_FILE;
use super::error::{ConfigError, Origin, Problem};
use super::keys::{self, COMPANY_KEYS, IMPORT_KEYS, KEYS, LONG_CONTEXT, LONG_CONTEXT_ABOVE, RATE_KEYS};
use super::values::Scalar;

const PRICES: &str = include_str!("prices.toml");
const VARIABLES: [(&str, &str); 3] = [
    ("OPENAI_BASE_URL", "provider.base_url"),
    ("BATCH_CREATION_ENABLED", "creation.enabled"),
    ("BATCH_POLLING_ENABLED", "polling.enabled"),
];
const PREFIX: &str = "NIGHTSHIFT_";

/// A value and where it comes from.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) value: Scalar,
    pub(super) origin: Origin,
}

/// An entry of a list, or the prices of a model.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) origin: Origin,
    pub(super) fields: BTreeMap<&'static str, Entry>,
}

/// Everything that was said.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) file: Option<PathBuf>,
    pub(super) entries: BTreeMap<&'static str, Entry>,
    pub(super) companies: Vec<Item>,
    pub(super) imports: Vec<Item>,
    /// The prices of a model, and of its long context.
    pub(super) models: BTreeMap<String, (Item, Option<Item>)>,
    pub(super) errors: Vec<ConfigError>,
}

/// A text in TOML and what its places are called.
struct Source<'a> {
    text: &'a str,
    /// None for what comes with the program.
    path: Option<&'a Path>,
}

impl Source<'_> {
    fn at(&self, span: &Range<usize>) -> Origin {
        let Some(path) = self.path else { return Origin::Default };
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        }
    }
}

impl Raw {
    /// The defaults.
    pub(super) fn new() -> Self {
        let mut raw = Self::default();
        for (key, default) in KEYS {
            if let Some(default) = default {
                let value = Scalar::Text(default.to_owned());
                raw.entries.insert(key, Entry { value, origin: Origin::Default });
            }
        }
        raw.read_text(&Source { text: PRICES, path: None });
        raw
    }

    /// The file, if there is one. That the default file does not exist is fine.
    pub(super) fn read_file(&mut self, asked_for: Option<&Path>) {
        let path = asked_for.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()),
            Err(err) if err.kind() == ErrorKind::NotFound && asked_for.is_none() => {
                self.companies.push(demo_company());
                return;
            }
            Err(err) => Err(format!("it cannot be read: {err}")),
        };
        self.file = Some(path.to_owned());
        match text {
            // Editors on Windows put the mark there; TOML knows none.
            Ok(text) => {
                self.read_text(&Source { text: text.trim_start_matches('\u{feff}'), path: Some(path) })
            }
            Err(problem) => {
                let origin = Origin::File { path: path.to_owned(), line: 1, column: 1 };
                self.errors.push(Problem::new(problem, "name another file with --config").at("", &origin));
            }
        }
    }

    /// The variables that are named like keys, and those that everybody knows.
    pub(super) fn read_variables(
        &mut self,
        env: &dyn Fn(&str) -> Option<String>,
        vars: impl IntoIterator<Item = (String, String)>,
    ) {
        for (name, key) in VARIABLES {
            if let Some(value) = env(name).filter(|value| !value.trim().is_empty()) {
                let origin = Origin::Env(name.to_owned());
                self.entries.insert(key, Entry { value: Scalar::Text(value), origin });
            }
        }
        let mut vars: Vec<_> = vars.into_iter().collect();
        vars.sort();
        for (name, value) in vars {
            let Some((section, key)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            let key = format!("{section}.{key}").to_lowercase();
            let origin = Origin::Env(name.clone());
            match keys::known(&key) {
                Some(_) if value.trim().is_empty() => {}
                Some(key) => drop(self.entries.insert(key, Entry { value: Scalar::Text(value), origin })),
                None => self.errors.push(keys::unknown(&key).at(key, &origin)),
            }
        }
    }

    /// Pairs of key and value from the command line.
    pub(super) fn read_flags(&mut self, flags: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in flags {
            let entry = Entry { value: Scalar::Text(value), origin: Origin::Flag };
            match keys::known(&key) {
                Some(key) => drop(self.entries.insert(key, entry)),
                None => self.errors.push(keys::unknown(&key).at(key, &Origin::Flag)),
            }
        }
    }

    fn read_text(&mut self, source: &Source<'_>) {
        let (table, errors) = DeTable::parse_recoverable(source.text);
        // What is left of a table that is not closed would only bring errors that are none.
        let table = if errors.is_empty() { table.into_inner() } else { DeTable::new() };
        for err in errors {
            let origin = source.at(&err.span().unwrap_or_default());
            let problem = format!("it is not TOML: {}", err.message().lines().collect::<Vec<_>>().join(", "));
            self.errors.push(Problem::new(problem, "mend it there").at("", &origin));
        }
        for (name, value) in &table {
            let origin = source.at(&name.span());
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("companies", _) => self.companies = self.list("companies", value, &COMPANY_KEYS, source),
                ("imports", _) => self.imports = self.list("imports", value, &IMPORT_KEYS, source),
                (section, DeValue::Table(table)) if keys::is_section(section) => {
                    self.section(section, table, source);
                }
                (section, _) if keys::is_section(section) => {
                    let problem =
                        Problem::new("it is a section", format!("write its keys below a line [{section}]"));
                    self.errors.push(problem.at(section, &origin));
                }
                (other, _) => self.errors.push(keys::unknown_section(other).at(other, &origin)),
            }
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>, source: &Source<'_>) {
        for (name, value) in table {
            let key = format!("{section}.{}", name.get_ref());
            let origin = source.at(&name.span());
            match (keys::known(&key), value.get_ref()) {
                (Some(key), value) => drop(self.entries.insert(key, Entry { value: scalar(value), origin })),
                (None, DeValue::Table(models)) if key == "prices.models" => self.models(models, source),
                (None, _) => self.errors.push(keys::unknown(&key).at(key, &origin)),
            }
        }
    }

    fn models(&mut self, models: &DeTable<'_>, source: &Source<'_>) {
        for (name, value) in models {
            let key = format!("prices.models.{:?}", name.get_ref());
            let origin = source.at(&name.span());
            let DeValue::Table(table) = value.get_ref() else {
                let problem = Problem::new("it is not a table", "give it input and output");
                self.errors.push(problem.at(key, &origin));
                continue;
            };
            let long = table.iter().find(|(name, _)| name.get_ref() == LONG_CONTEXT);
            let long = long.and_then(|(name, value)| match value.get_ref() {
                DeValue::Table(long) => {
                    let known = [RATE_KEYS.as_slice(), &[LONG_CONTEXT_ABOVE]].concat();
                    let key = format!("{key}.{LONG_CONTEXT}");
                    Some(self.item(&key, source.at(&name.span()), long, &known, &[], source))
                }
                value @ (DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_)) => {
                    let problem = format!("{} is not a table", scalar(value));
                    let remedy = "write it like { above = 272000, input = \"2\", output = \"7.5\" }";
                    let origin = source.at(&name.span());
                    self.errors
                        .push(Problem::new(problem, remedy).at(format!("{key}.{LONG_CONTEXT}"), &origin));
                    None
                }
            });
            let item = self.item(&key, origin, table, &RATE_KEYS, &[LONG_CONTEXT], source);
            self.models.insert(name.get_ref().to_string(), (item, long));
        }
    }

    fn list(
        &mut self,
        list: &str,
        value: &Spanned<DeValue<'_>>,
        known: &[&'static str],
        source: &Source<'_>,
    ) -> Vec<Item> {
        let wrong = || Problem::new("it is a list of tables", format!("begin each with a line [[{list}]]"));
        let DeValue::Array(items) = value.get_ref() else {
            self.errors.push(wrong().at(list, &source.at(&value.span())));
            return Vec::new();
        };
        let mut found = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let origin = source.at(&item.span());
            let key = format!("{list}[{index}]");
            match item.get_ref().as_table() {
                Some(table) => found.push(self.item(&key, origin, table, known, &[], source)),
                None => self.errors.push(wrong().at(key, &origin)),
            }
        }
        found
    }

    fn item(
        &mut self,
        key: &str,
        origin: Origin,
        table: &DeTable<'_>,
        known: &[&'static str],
        elsewhere: &[&str],
        source: &Source<'_>,
    ) -> Item {
        let mut fields = BTreeMap::new();
        for (name, value) in table {
            let text = name.get_ref().as_ref();
            let origin = source.at(&name.span());
            match known.iter().find(|known| **known == text) {
                Some(known) => drop(fields.insert(*known, Entry { value: scalar(value.get_ref()), origin })),
                None if elsewhere.contains(&text) => {}
                None => {
                    let problem = keys::unknown_in_list(text, known);
                    self.errors.push(problem.at(format!("{key}.{text}"), &origin));
                }
            }
        }
        Item { origin, fields }
    }
}

/// Without a file there is one company, so that the program can be tried at once.
fn demo_company() -> Item {
    let field = |value: &str| Entry { value: Scalar::Text(value.to_owned()), origin: Origin::Default };
    Item { origin: Origin::Default, fields: [("id", field("demo")), ("name", field("Demo"))].into() }
}

fn scalar(value: &DeValue<'_>) -> Scalar {
    match value {
        DeValue::String(text) => Scalar::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Scalar::Number(number.as_str().to_owned()),
        DeValue::Float(number) => Scalar::Number(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Scalar::Truth(*truth),
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
            texts.map_or(Scalar::Other("list of things that are no text"), Scalar::List)
        }
        DeValue::Integer(_) => Scalar::Other("integer that is not decimal"),
        DeValue::Datetime(_) => Scalar::Other("datetime"),
        DeValue::Table(_) => Scalar::Other("table"),
    }
}
