//! The query of a call, each key at most once and none that the call does not know.

use std::str::FromStr;

use super::reply::ApiError;
use crate::domain::id::CompanyId;

/// Entries of a page, unless asked otherwise.
const LIMIT_DEFAULT: usize = 50;
/// Entries of a page at most.
const LIMIT_MAX: usize = 500;

/// A parsed query.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `key=value&…`.
    pub fn parse(raw: &str) -> Result<Self, ApiError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in raw.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(ApiError::invalid("repeated_parameter", format!("{key} is given twice")));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// What `include` asks for beside the usual: words between commas, each of them known.
    pub fn include(&self, known: &'static [&'static str]) -> Result<Vec<&'static str>, ApiError> {
        let mut asked = Vec::new();
        for word in self.get("include").into_iter().flat_map(|words| words.split(',')) {
            let Some(known) = known.iter().find(|known| **known == word) else {
                let detail = format!("include can have {}, with commas between", known.join(" and "));
                return Err(ApiError::invalid("unknown_include", detail));
            };
            asked.push(*known);
        }
        Ok(asked)
    }

    /// Refuses what the call does not know: a filter that is misspelt must not mean everything.
    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => {
                let detail = match known {
                    [] => format!("{key} is not known here; this call has no parameters"),
                    known => format!("{key} is not known here; known are {}", known.join(", ")),
                };
                Err(ApiError::invalid("unknown_parameter", detail))
            }
        }
    }

    /// The value of a key; an empty one counts as none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    /// The value of a key in its type.
    pub fn parsed<T: FromStr>(&self, key: &'static str) -> Result<Option<T>, ApiError>
    where
        T::Err: std::fmt::Display,
    {
        match self.get(key).map(T::from_str) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(err)) => Err(ApiError::invalid("bad_parameter", format!("{key}: {err}"))),
        }
    }

    /// A company.
    pub fn company(&self, key: &'static str) -> Result<Option<CompanyId>, ApiError> {
        self.parsed(key)
    }

    /// `limit`, 1 to 500.
    pub fn limit(&self) -> Result<usize, ApiError> {
        match self.get("limit").map(str::parse::<usize>) {
            None => Ok(LIMIT_DEFAULT),
            Some(Ok(limit)) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
            Some(_) => {
                Err(ApiError::invalid("bad_limit", format!("limit must be a number from 1 to {LIMIT_MAX}")))
            }
        }
    }
}

/// Undoes percent-encoding.
pub fn decode(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::invalid("bad_encoding", format!("{text:?} is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().ok_or_else(bad)?, rest.next().ok_or_else(bad)?];
                // The number may have a sign otherwise.
                let digits = std::str::from_utf8(&digits)
                    .ok()
                    .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                    .ok_or_else(bad)?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_once_and_strictly() {
        let query = Query::parse("status=a%20b&limit=7&&empty=").unwrap();
        assert_eq!((query.get("status"), query.get("empty"), query.get("none")), (Some("a b"), None, None));
        assert_eq!(query.limit().unwrap(), 7);
        assert_eq!(query.only(&["status", "limit"]).unwrap_err().code, "unknown_parameter");
        assert_eq!(Query::parse("a=1&a=2").unwrap_err().code, "repeated_parameter");
        assert_eq!(Query::parse("a=%f").unwrap_err().code, "bad_encoding");
        assert_eq!(Query::parse("a=%+f").unwrap_err().code, "bad_encoding");
        for bad in ["limit=0", "limit=501", "limit=-1", "limit=x"] {
            assert_eq!(Query::parse(bad).unwrap().limit().unwrap_err().code, "bad_limit", "{bad}");
        }
    }
}
