//! From the text of a value to its type, with a reason and a remedy where that fails.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;

use super::error::Problem;
use super::{Location, LogFormat, LogLevel, ProviderKind};
use crate::domain::price::parse_decimal;
use crate::domain::retention::Keep;
use crate::fetch::{Guard, Url};

/// A value as a file, a variable or a flag gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scalar {
    /// Also everything that comes from a variable or a flag.
    Text(String),
    /// As it is written, so that a price is exact.
    Number(String),
    Truth(bool),
    List(Vec<String>),
    /// Something that no key takes: its name.
    Other(&'static str),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(text) => f.write_str(text),
            Self::Truth(truth) => write!(f, "{truth}"),
            Self::List(items) => write!(f, "{items:?}"),
            Self::Other(kind) => write!(f, "a value of the type {kind}"),
        }
    }
}

impl Scalar {
    /// As a listing shows it.
    pub(super) fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::List(items) => items.join(", "),
            Self::Number(_) | Self::Truth(_) | Self::Other(_) => self.to_string(),
        }
    }
}

type Parsed<T> = Result<T, Problem>;

const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

fn wrong<T>(value: &Scalar, expected: &str, remedy: impl Into<String>) -> Parsed<T> {
    Err(Problem::new(format!("{value} is not {expected}"), remedy))
}

pub(super) fn text(value: &Scalar) -> Parsed<String> {
    match value {
        Scalar::Text(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Scalar::Text(_) => Err(Problem::new("it is empty", "give it a value or leave it out")),
        Scalar::Number(_) | Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => {
            wrong(value, "text", "put it in quotes")
        }
    }
}

pub(super) fn model(value: &Scalar) -> Parsed<String> {
    let name = text(value)?;
    if name.len() > 200 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong(
            value,
            "the name of a model",
            "write it as the provider does, for instance \"gpt-4o-mini\"",
        );
    }
    Ok(name)
}

pub(super) fn truth(value: &Scalar) -> Parsed<bool> {
    let word = match value {
        Scalar::Truth(truth) => return Ok(*truth),
        Scalar::Text(text) | Scalar::Number(text) => text.trim().to_lowercase(),
        Scalar::List(_) | Scalar::Other(_) => String::new(),
    };
    match word.as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => wrong(value, "true or false", "write true or false"),
    }
}

pub(super) fn whole(min: u64, max: u64) -> impl Fn(&Scalar) -> Parsed<u64> {
    move |value| {
        let range = || format!("use a whole number from {min} to {max}");
        let number = match value {
            Scalar::Number(text) | Scalar::Text(text) => text.replace('_', "").trim().parse::<u64>().ok(),
            Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => None,
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Ok(number),
            Some(_) => Err(Problem::new(format!("{value} is out of range"), range())),
            None => wrong(value, "a whole number", range()),
        }
    }
}

pub(super) fn small(min: u32, max: u32) -> impl Fn(&Scalar) -> Parsed<u32> {
    let whole = whole(u64::from(min), u64::from(max));
    move |value| whole(value).map(|number| u32::try_from(number).unwrap_or(max))
}

/// A span of time of at least `min`.
pub(super) fn duration(min: Duration) -> impl Fn(&Scalar) -> Parsed<Duration> {
    move |value| {
        let parsed = match value {
            Scalar::Text(text) => humantime::parse_duration(text.trim()).ok(),
            Scalar::Number(number) => {
                return wrong(
                    value,
                    "a span of time",
                    format!("write it with its unit, for instance \"{number}s\""),
                );
            }
            Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => None,
        };
        match parsed {
            Some(span) if span < min => Err(Problem::new(
                format!("{value} is less than {}", humantime::format_duration(min)),
                format!("use \"{}\" or more", humantime::format_duration(min)),
            )),
            Some(span) if span > YEAR => {
                Err(Problem::new(format!("{value} is more than a year"), "use less"))
            }
            Some(span) => Ok(span),
            None => wrong(value, "a span of time", "write it like \"30s\", \"10m\" or \"1h 30m\""),
        }
    }
}

/// How long something is kept.
pub(super) fn keep(value: &Scalar) -> Parsed<Keep> {
    match value {
        Scalar::Text(text) => text.parse().ok(),
        Scalar::Number(_) | Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => None,
    }
    .map_or_else(|| wrong(value, "a time to keep something", format!("write {}", Keep::EXPECTED)), Ok)
}

/// Bytes, from `min` to `max`.
pub(super) fn size(min: u64, max: u64) -> impl Fn(&Scalar) -> Parsed<u64> {
    move |value| {
        let bytes = match value {
            Scalar::Text(text) | Scalar::Number(text) => bytes(text),
            Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => None,
        };
        match bytes {
            Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
            Some(_) => Err(Problem::new(
                format!("{value} is out of range"),
                format!("use a size from {} to {}", size_text(min), size_text(max)),
            )),
            None => wrong(value, "a size", "write it like \"190MB\" (a million bytes each) or \"64MiB\""),
        }
    }
}

fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    number.replace('_', "").parse::<u64>().ok()?.checked_mul(factor)
}

/// The shortest exact spelling.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1 << 30, "GiB"), (1_000_000, "MB"), (1 << 20, "MiB"), (1_000, "KB")];
    let fits = units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

pub(super) fn address(value: &Scalar) -> Parsed<SocketAddr> {
    match text(value)?.parse() {
        Ok(address) => Ok(address),
        Err(_) => {
            wrong(value, "an address with a port", "write it like \"127.0.0.1:8080\" or \"[::1]:8080\"")
        }
    }
}

/// The base of a web address: `http://` or `https://` and a host, without the slash at its end.
pub(super) fn base_url(value: &Scalar) -> Parsed<String> {
    let url = text(value)?;
    let remedy = "write it like \"https://api.openai.com/v1\"";
    if !is_web_address(&url) {
        return wrong(value, "an http or https address", remedy);
    }
    if url.contains(['?', '#', '@']) {
        return Err(Problem::new("it has a query, a fragment or a user in it", remedy));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn is_web_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    host.is_some_and(|host| !host.trim_start_matches(':').is_empty())
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// A path from `base`, or a web address.
pub(super) fn location(base: &Path) -> impl Fn(&Scalar) -> Parsed<Location> {
    move |value| {
        let text = text(value)?;
        if !text.contains("://") {
            return Ok(Location::Path(base.join(text)));
        }
        if !is_web_address(&text) {
            // Not quoted: it may hold a password.
            return Err(Problem::new("it is neither a path nor an http(s) address", "use one of them"));
        }
        let Ok(url) = Url::parse(&text) else {
            return Err(Problem::new("it is no address that can be read", "copy it anew"));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Problem::new(
                "it has a user or a password in it, and files end up in repositories",
                "take it out of the address; give `username`, and `password_env`: the name of the environment \
                 variable that holds the password",
            ));
        }
        Ok(Location::Url(text))
    }
}

pub(super) fn path(base: &Path) -> impl Fn(&Scalar) -> Parsed<PathBuf> {
    move |value| Ok(base.join(text(value)?))
}

pub(super) fn time_zone(value: &Scalar) -> Parsed<TimeZone> {
    match TimeZone::get(&text(value)?) {
        Ok(zone) => Ok(zone),
        Err(_) => {
            wrong(value, "a time zone", "use a name of the IANA list, for instance \"Europe/Amsterdam\"")
        }
    }
}

/// Names of hosts, perhaps with a port.
pub(super) fn hosts(value: &Scalar) -> Parsed<Vec<String>> {
    let hosts: Vec<String> = match value {
        Scalar::List(hosts) => hosts.iter().map(|host| host.trim().to_lowercase()).collect(),
        // As a variable or a flag gives it.
        Scalar::Text(text) => {
            text.split(',').map(|host| host.trim().to_lowercase()).filter(|host| !host.is_empty()).collect()
        }
        Scalar::Number(_) | Scalar::Truth(_) | Scalar::Other(_) => {
            return wrong(value, "a list of hosts", "write it like [\"files.example\", \"10.0.0.5:8080\"]");
        }
    };
    let is_host = |host: &String| !host.contains(['/', '@']) && Guard::new(&[host]).is_ok();
    match hosts.iter().find(|host| !is_host(host)) {
        Some(host) => Err(Problem::new(
            format!("{host:?} is not a host"),
            "give names or addresses, with a port if need be, without scheme or path",
        )),
        None => Ok(hosts),
    }
}

fn choice<T: Copy>(value: &Scalar, choices: &[(&str, T)]) -> Parsed<T> {
    let word = text(value)?.to_lowercase();
    match choices.iter().find(|(name, _)| *name == word) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            Err(Problem::new(format!("{value} is not known here"), format!("use {}", names.join(" or "))))
        }
    }
}

pub(super) fn kind(value: &Scalar) -> Parsed<ProviderKind> {
    choice(value, &[("simulator", ProviderKind::Simulator), ("openai", ProviderKind::OpenAi)])
}

pub(super) fn log_level(value: &Scalar) -> Parsed<LogLevel> {
    choice(value, &LogLevel::ALL.map(|level| (level.label(), level)))
}

pub(super) fn log_format(value: &Scalar) -> Parsed<LogFormat> {
    let formats = [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
    choice(value, &formats)
}

/// The name of an environment variable.
pub(super) fn variable_name(value: &Scalar) -> Parsed<String> {
    let name = match value {
        Scalar::Text(name) => name.trim(),
        Scalar::Number(_) | Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => "",
    };
    let good = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.is_empty()
        && name.len() <= 100
        && name.bytes().all(good)
        && !name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Ok(name.to_owned());
    }
    // Not quoted: it may be the password itself.
    let problem = "it is not the name of an environment variable";
    Err(Problem::new(problem, "use capitals, digits and _, and put the password into that variable"))
}

/// An amount of money in millionths, exact.
pub(super) fn price(value: &Scalar) -> Parsed<u64> {
    let text = match value {
        Scalar::Text(text) | Scalar::Number(text) => text.trim(),
        Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => "",
    };
    match parse_decimal(text, 6) {
        Some(amount) if amount.exact => Ok(amount.value),
        Some(_) => Err(Problem::new(format!("{value} has more than six decimals"), "use six at most")),
        None => wrong(value, "a price", "write what a million tokens cost, for instance \"0.075\""),
    }
}

/// An amount of money, in millionths of the currency of the prices.
pub(super) fn money(value: &Scalar) -> Parsed<u64> {
    let text = match value {
        Scalar::Text(text) | Scalar::Number(text) => text.trim(),
        Scalar::Truth(_) | Scalar::List(_) | Scalar::Other(_) => "",
    };
    match parse_decimal(text, 6) {
        Some(amount) if amount.exact => Ok(amount.value),
        Some(_) => Err(Problem::new(format!("{value} has more than six decimals"), "use six at most")),
        None => wrong(
            value,
            "an amount",
            "write it in the currency of the prices, for instance \"250\" or \"0.50\"",
        ),
    }
}

pub(super) fn currency(value: &Scalar) -> Parsed<String> {
    let code = text(value)?;
    if code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Ok(code);
    }
    wrong(value, "a currency", "use the three capital letters of ISO 4217, for instance \"USD\"")
}

/// A web address without user, password, query and fragment, any of which may hold a secret.
pub(super) fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (path, hidden) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?[hidden]"),
        None => (rest, ""),
    };
    let (host, path) = path.split_at(path.find('/').unwrap_or(path.len()));
    let (user, host) = host.rsplit_once('@').map_or(("", host), |(_, host)| ("[hidden]@", host));
    format!("{scheme}://{user}{host}{path}{hidden}")
}
