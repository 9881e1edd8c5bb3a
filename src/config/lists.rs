//! Companies, imports and prices: what there may be several of.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::check::Check;
use super::error::{Origin, Problem};
use super::keys::LONG_CONTEXT;
use super::raw::{Entry, Item};
use super::values::{self, Scalar};
use super::{ImportSource, Location, Secret};
use crate::domain::company::{Company, CompanyChange, ConfiguredCompany};
use crate::domain::id::CompanyId;
use crate::domain::price::{LongContext, ModelPrice, PriceTable, Rates};
use crate::domain::retention::Retention;
use crate::fetch::{Guard, Url};

const SECOND: Duration = Duration::from_secs(1);
/// No host is asked for more transcripts at once.
const CONCURRENCY_MAX: u32 = 4;
const EVERY_DEFAULT: Duration = Duration::from_secs(15 * 60);

fn required<'a>(
    check: &mut Check,
    path: &str,
    item: &'a Item,
    name: &str,
    remedy: &str,
) -> Option<&'a Entry> {
    let entry = item.fields.get(name);
    if entry.is_none() {
        check.fail(format!("{path}.{name}"), &item.origin, Problem::new("it is missing", remedy));
    }
    entry
}

/// Where a field stands, or the item that lacks it.
fn origin_of<'a>(item: &'a Item, name: &str) -> &'a Origin {
    item.fields.get(name).map_or(&item.origin, |entry| &entry.origin)
}

/// `Some(None)` where it is left out, none after an error.
fn optional<T>(
    check: &mut Check,
    path: &str,
    item: &Item,
    name: &str,
    parse: impl FnOnce(&Scalar) -> Result<T, Problem>,
) -> Option<Option<T>> {
    match item.fields.get(name) {
        Some(entry) => check.read(&format!("{path}.{name}"), entry, parse).map(Some),
        None => Some(None),
    }
}

fn company_id(value: &Scalar) -> Result<CompanyId, Problem> {
    let remedy = "use 1 to 64 of a-z A-Z 0-9 _ -";
    values::text(value)?
        .parse()
        .map_err(|_| Problem::new(format!("{value} is not the id of a company"), remedy))
}

/// The ids that are given, each with its company unless something is wrong with that.
pub(super) fn companies(
    check: &mut Check,
    items: &[Item],
    model_default: Option<&str>,
) -> Vec<(CompanyId, Option<ConfiguredCompany>)> {
    let mut companies: Vec<(CompanyId, Option<ConfiguredCompany>)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("companies[{index}]");
        let id = required(check, &path, item, "id", "give the company an id, for instance \"demo\"");
        let id = id.and_then(|entry| check.read(&format!("{path}.id"), entry, company_id));
        let name = optional(check, &path, item, "name", values::text);
        let model = optional(check, &path, item, "model", values::model);
        let suspended = optional(check, &path, item, "suspended", values::truth);
        let budget = optional(check, &path, item, "monthly_budget", values::money);
        let mut keep = |name| optional(check, &path, item, name, values::keep);
        let kept = (keep("retention_complete"), keep("retention_failed"), keep("retention_sessions"));
        let Some(id) = id else { continue };
        if companies.iter().any(|(other, _)| *other == id) {
            let problem =
                Problem::new(format!("{:?} is there twice", id.as_str()), "give each company its own id");
            check.fail(format!("{path}.id"), origin_of(item, "id"), problem);
            continue;
        }
        let company = (|| {
            // The default counts as said: who changes it means all companies that name no model.
            let model = model?.or_else(|| model_default.map(str::to_owned))?;
            let retention = Retention { complete: kept.0?, failed: kept.1?, sessions: kept.2? };
            let says = CompanyChange {
                retention: Some(retention).filter(|retention| !retention.is_silent()),
                name: name?,
                model: Some(model.clone()),
                suspended: suspended?,
                budget_micros: budget?,
            };
            let new = Company {
                id: id.clone(),
                name: id.to_string(),
                model,
                suspended: false,
                budget_micros: None,
                retention: Default::default(),
            };
            Some(ConfiguredCompany { new: says.clone().made_to(new), says })
        })();
        if let Some(ConfiguredCompany { new: company, .. }) = &company {
            let state = if company.suspended { ", suspended" } else { "" };
            let value = format!("{:?}, model {:?}{state}", company.name, company.model);
            check.list(format!("companies.{id}"), value, &item.origin);
        }
        companies.push((id, company));
    }
    companies
}

/// The exports to read.
pub(super) fn imports(
    check: &mut Check,
    items: &[Item],
    companies: &[(CompanyId, Option<ConfiguredCompany>)],
    zone_default: Option<&TimeZone>,
    guard: Option<&Guard>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<ImportSource> {
    let mut imports = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("imports[{index}]");
        let company = required(check, &path, item, "company", "name one of the [[companies]]");
        let company = company.and_then(|entry| check.read(&format!("{path}.company"), entry, company_id));
        if let Some(company) = &company
            && !companies.iter().any(|(id, _)| id == company)
        {
            let ids: Vec<&str> = companies.iter().map(|(id, _)| id.as_str()).collect();
            let remedy = format!("add it to [[companies]], or use one of: {}", ids.join(", "));
            let problem = Problem::new(format!("there is no company {:?}", company.as_str()), remedy);
            check.fail(format!("{path}.company"), origin_of(item, "company"), problem);
        }
        let base = check.base(&item.origin).to_owned();
        let csv = required(check, &path, item, "csv", "give the path or the address of the export");
        let csv = csv.and_then(|entry| check.read(&format!("{path}.csv"), entry, values::location(&base)));
        let every = optional(check, &path, item, "every", values::duration(SECOND));
        let transcripts = optional(check, &path, item, "transcripts", values::path(&base));
        let time_zone = optional(check, &path, item, "time_zone", values::time_zone);
        let concurrency =
            optional(check, &path, item, "transcript_concurrency", values::small(1, CONCURRENCY_MAX));
        let login = login(check, &path, item, csv.as_ref(), env);
        if let (Some(Location::Url(url)), Some(guard)) = (&csv, guard) {
            warn_of_address(check, &path, url, guard, login.as_ref().is_some_and(Option::is_some));
        }
        let import = (|| {
            Some(ImportSource {
                company: company?,
                csv: csv?,
                every: every?.unwrap_or(EVERY_DEFAULT),
                transcripts: transcripts?,
                time_zone: time_zone?.or_else(|| zone_default.cloned())?,
                login: login?,
                transcript_concurrency: concurrency?.unwrap_or(CONCURRENCY_MAX),
            })
        })();
        if let Some(import) = import {
            check.list(path, listed(&import), &item.origin);
            imports.push(import);
        }
    }
    imports
}

/// `Some(None)` where there is none, none after an error.
fn login(
    check: &mut Check,
    path: &str,
    item: &Item,
    csv: Option<&Location>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<Option<(String, Secret)>> {
    let name = optional(check, path, item, "username", values::text)?;
    let variable = optional(check, path, item, "password_env", values::variable_name)?;
    let field = if name.is_some() { "username" } else { "password_env" };
    let problem = match (name, variable, csv) {
        (None, None, _) => return Some(None),
        (_, _, Some(Location::Path(_))) => {
            Problem::new("the export is a file, which takes no login", "leave it out")
        }
        (Some(_), None, _) => Problem::new("there is no password for it", "give password_env, too"),
        (None, Some(_), _) => Problem::new("there is no name for it", "give username, too"),
        (Some(name), Some(_), _) if name.contains(':') || name.chars().any(char::is_control) => {
            Problem::new("a name with a colon cannot be sent", "give another one")
        }
        (Some(name), Some(variable), _) => match super::check::variable(env, &variable) {
            Some(password) => return Some(Some((name, Secret::new(password)))),
            None => {
                let remedy = format!("set {variable} to the password");
                check.fail(
                    format!("{path}.password_env"),
                    origin_of(item, "password_env"),
                    Problem::new(format!("the environment has no {variable}"), remedy),
                );
                return None;
            }
        },
    };
    check.fail(format!("{path}.{field}"), origin_of(item, field), problem);
    None
}

/// Tells of an address that will be refused, as far as it tells itself, and of a password in the clear.
fn warn_of_address(check: &mut Check, path: &str, url: &str, guard: &Guard, has_login: bool) {
    let Ok(parsed) = Url::parse(url) else { return };
    if let Err(why) = guard.check(&parsed) {
        check.notes.push(format!("{path}.csv is not fetched: {why}"));
    }
    if has_login && parsed.scheme() == "http" {
        check.notes.push(format!("{path}.csv is not https: the password travels in the clear"));
    }
}

fn listed(import: &ImportSource) -> String {
    let kind = match &import.csv {
        Location::Path(_) => "file",
        Location::Url(_) => "address",
    };
    let every = humantime::format_duration(import.every);
    format!("{kind} {} for {}, every {every}", import.csv, import.company)
}

/// The prices that come with the program, and over them those of the file.
pub(super) fn prices(
    check: &mut Check,
    models: BTreeMap<String, (Item, Option<Item>)>,
) -> Option<PriceTable> {
    // Those of prices.toml lie in the layers as everything else does; only their origin tells them apart.
    let builtin = |item: &Item| item.origin == Origin::Default;
    let version = check.optional("prices.version", values::text)?;
    let currency = check.get("prices.currency", values::currency)?;
    let (own_version, own_currency) = (check.is_set("prices.version"), check.is_set("prices.currency"));
    let mut table = BTreeMap::new();
    let mut own = 0_usize;
    let mut whole = true;
    for (name, (item, long)) in models {
        if builtin(&item) && own_currency && currency != BUILTIN_CURRENCY {
            // Dollars do not become euros by another name.
            continue;
        }
        own += usize::from(!builtin(&item));
        let path = format!("prices.models.{name:?}");
        match model_price(check, &path, &item, long.as_ref()) {
            Some(price) => drop(table.insert(name, price)),
            None => whole = false,
        }
    }
    let version = version.unwrap_or_default();
    // A stored cost names the version: two tables must not share one.
    let version = if own > 0 && !own_version { format!("{version}+custom") } else { version };
    let count = format!("{} models, {own} of them set here", table.len());
    check.list("prices.models", count, &Origin::Default);
    whole.then_some(PriceTable { version, currency, models: table })
}

const BUILTIN_CURRENCY: &str = "USD";

fn model_price(check: &mut Check, path: &str, item: &Item, long: Option<&Item>) -> Option<ModelPrice> {
    let usual = rates(check, path, item);
    let long_context = match long {
        Some(long) => long_context(check, &format!("{path}.{LONG_CONTEXT}"), long).map(Some),
        None => Some(None),
    };
    Some(ModelPrice { usual: usual?, long_context: long_context? })
}

fn long_context(check: &mut Check, path: &str, item: &Item) -> Option<LongContext> {
    let above = required(check, path, item, "above", "give the number of input tokens, for instance 272000");
    let above =
        above.and_then(|entry| check.read(&format!("{path}.above"), entry, values::whole(1, u64::MAX)));
    let rates = rates(check, path, item);
    Some(LongContext { above: above?, rates: rates? })
}

fn rates(check: &mut Check, path: &str, item: &Item) -> Option<Rates> {
    let remedy = "write what a million tokens cost, \"0\" if nothing";
    let mut one = |name| {
        let entry = required(check, path, item, name, remedy)?;
        check.read(&format!("{path}.{name}"), entry, values::price)
    };
    let (input, output) = (one("input"), one("output"));
    let cached = optional(check, path, item, "cached", values::price);
    let cache_write = optional(check, path, item, "cache_write", values::price);
    Some(Rates { input: input?, cached: cached?, cache_write: cache_write?, output: output? })
}
