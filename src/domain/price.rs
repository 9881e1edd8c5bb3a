//! Tokens to money, in whole numbers. The prices themselves are configuration, not code.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::request::{Cost, Usage};

/// What the models cost, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceTable {
    /// Names the table; it is stored with every cost that was reckoned with it.
    pub version: String,
    /// ISO 4217 code of all prices.
    pub currency: String,
    /// By the model's name.
    pub models: BTreeMap<String, ModelPrice>,
}

/// The prices of one model: millionths of a currency unit for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPrice {
    /// The usual prices.
    pub usual: Rates,
    /// The prices of a request whose input is long, where the model has such.
    pub long_context: Option<LongContext>,
}

/// Millionths of a currency unit for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Input tokens.
    pub input: u64,
    /// Input tokens read from the cache; the price of the input where none is published.
    pub cached: Option<u64>,
    /// Input tokens written to the cache; the price of the input where none is published.
    pub cache_write: Option<u64>,
    /// Output tokens.
    pub output: u64,
}

/// Other prices for the whole of a request with more input than a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongContext {
    /// They hold when the input has more tokens than this.
    pub above: u64,
    /// The prices.
    pub rates: Rates,
}

const TOKENS_PER_PRICE: u128 = 1_000_000;
const SIMULATED: &str = "-simulated";

impl PriceTable {
    /// What one answer costs; none for a model that is not in the table, so that nobody takes "unknown" for "free".
    ///
    /// The model that answered decides, because that one is billed; the requested one stands in for it.
    pub fn cost(&self, model_requested: &str, model_answered: Option<&str>, usage: &Usage) -> Option<Cost> {
        let price = model_answered
            .and_then(|model| self.price_of(model))
            .or_else(|| self.price_of(model_requested))?;
        Some(Cost {
            micros: price.micros(usage),
            currency: self.currency.clone(),
            price_version: self.version.clone(),
        })
    }

    /// The price of a model: by its own name, else without a trailing `-simulated`, else by the longest name in the
    /// table that it continues with a date (`gpt-4o-mini-2024-07-18` is `gpt-4o-mini`).
    pub fn price_of(&self, model: &str) -> Option<&ModelPrice> {
        if let Some(price) = self.models.get(model) {
            return Some(price);
        }
        let model = model.strip_suffix(SIMULATED).unwrap_or(model);
        self.models.get(model).or_else(|| {
            model.match_indices('-').find_map(|(at, _)| {
                // A date is never followed by another date, so the first hit is the only one.
                let (name, date) = (&model[..at], &model[at + 1..]);
                if is_date(date) { self.models.get(name) } else { None }
            })
        })
    }
}

impl ModelPrice {
    /// What so many tokens are thought to cost, in millionths, none of them from a cache; rounded up.
    pub fn estimate(&self, input: u64, output: u64) -> u64 {
        let rates = self.rates(input);
        let sum = u128::from(input) * u128::from(rates.input) + u128::from(output) * u128::from(rates.output);
        u64::try_from(sum.div_ceil(TOKENS_PER_PRICE)).unwrap_or(u64::MAX)
    }

    /// The prices of a request with so much input.
    fn rates(&self, input: u64) -> &Rates {
        match &self.long_context {
            Some(long) if input > long.above => &long.rates,
            Some(_) | None => &self.usual,
        }
    }

    /// The price of one answer in millionths. Rounded once, at the end, half up.
    ///
    /// Cached and cache-written tokens are part of the input; what a provider claims beyond it is not counted twice.
    pub fn micros(&self, usage: &Usage) -> u64 {
        let rates = self.rates(usage.prompt);
        let cached = usage.cached.min(usage.prompt);
        let written = usage.cache_write.min(usage.prompt - cached);
        let plain = usage.prompt - cached - written;
        let sum = [
            (plain, rates.input),
            (cached, rates.cached.unwrap_or(rates.input)),
            (written, rates.cache_write.unwrap_or(rates.input)),
            (usage.completion, rates.output),
        ]
        .into_iter()
        .fold(0_u128, |sum, (tokens, price)| sum.saturating_add(u128::from(tokens) * u128::from(price)));
        let rounded = sum.saturating_add(TOKENS_PER_PRICE / 2) / TOKENS_PER_PRICE;
        u64::try_from(rounded).unwrap_or(u64::MAX)
    }
}

/// `2024-07-18`, `20240718` or `0613`: how snapshots are dated.
fn is_date(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match text.len() {
        4 | 8 => digits(text),
        10 => text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() }),
        _ => false,
    }
}

/// A decimal number brought to whole units of its last place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scaled {
    /// The number times ten to the power of the places, rounded half up.
    pub value: u64,
    /// Whether nothing was rounded.
    pub exact: bool,
}

/// Reads a decimal number that is not negative (`0.075`, `12`, `.5`, `1.2e-5`) without a detour over floats.
/// None if it is no such number or too large.
pub fn parse_decimal(text: &str, places: u8) -> Option<Scaled> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().next().is_none() || digits().count() > 60 || !digits().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // How many of the digits stand before the point once the number is scaled.
    let keep = i64::try_from(whole.len()).ok()? + i64::from(exponent) + i64::from(places);
    if !(-100..=100).contains(&keep) {
        return digits().all(|byte| byte == b'0').then_some(Scaled { value: 0, exact: true });
    }
    let mut value = 0_u64;
    let mut exact = true;
    let mut round_up = false;
    for place in 0..keep.max(i64::try_from(digits().count()).ok()?) {
        let digit = usize::try_from(place).ok().and_then(|at| digits().nth(at)).map_or(0, |byte| byte - b'0');
        if place < keep {
            value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
        } else {
            exact &= digit == 0;
            round_up |= place == keep && digit >= 5;
        }
    }
    let value = if round_up { value.checked_add(1)? } else { value };
    Some(Scaled { value, exact })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn rates(input: u64, cached: Option<u64>, output: u64) -> Rates {
        Rates { input, cached, cache_write: None, output }
    }

    fn table() -> PriceTable {
        let mini = ModelPrice { usual: rates(75_000, None, 300_000), long_context: None };
        let big = ModelPrice {
            usual: Rates {
                input: 1_000_000,
                cached: Some(100_000),
                cache_write: Some(1_250_000),
                output: 5_000_000,
            },
            long_context: Some(LongContext {
                above: 272_000,
                rates: Rates {
                    input: 2_000_000,
                    cached: Some(200_000),
                    cache_write: Some(2_500_000),
                    output: 7_500_000,
                },
            }),
        };
        let models = [("gpt-4o", big), ("gpt-4o-mini", mini), ("gpt-6-sol", big)];
        PriceTable {
            version: "test".to_owned(),
            currency: "USD".to_owned(),
            models: models.map(|(name, price)| (name.to_owned(), price)).into(),
        }
    }

    #[test]
    fn what_a_long_input_is_thought_to_cost_goes_by_the_prices_of_long_ones() {
        let price = table().price_of("gpt-6-sol").copied().unwrap();
        assert_eq!(price.estimate(272_000, 1000), 277_000);
        assert_eq!(price.estimate(300_000, 1000), 607_500);
    }

    fn usage(prompt: u64, completion: u64) -> Usage {
        Usage { prompt, completion, ..Usage::default() }
    }

    fn micros(model: &str, usage: &Usage) -> Option<u64> {
        table().cost(model, None, usage).map(|cost| cost.micros)
    }

    #[test]
    fn a_million_tokens_cost_what_the_table_says() {
        assert_eq!(micros("gpt-4o-mini", &usage(1_000_000, 0)), Some(75_000));
        assert_eq!(micros("gpt-4o-mini", &usage(0, 1_000_000)), Some(300_000));
        let cost = table().cost("gpt-4o-mini", None, &usage(1_200, 300)).unwrap();
        assert_eq!((cost.micros, cost.currency.as_str(), cost.price_version.as_str()), (180, "USD", "test"));
    }

    #[test]
    fn a_model_that_is_not_in_the_table_has_no_cost() {
        for model in ["gpt-9", "", "gpt-4o-mini-audio", "gpt-4o-mini-high", "ft:gpt-4o-mini-2024-07-18:us::x"]
        {
            assert_eq!(micros(model, &usage(1, 1)), None, "{model}");
        }
    }

    #[test]
    fn a_dated_snapshot_costs_what_its_model_costs() {
        let million = usage(1_000_000, 0);
        assert_eq!(micros("gpt-4o-mini-2024-07-18", &million), Some(75_000));
        assert_eq!(micros("gpt-4o-2024-08-06", &usage(1_000, 0)), Some(1_000));
        assert_eq!(micros("gpt-4o-mini-0718", &million), Some(75_000));
        assert_eq!(micros("gpt-4o-mini-simulated", &million), Some(75_000));
        assert_eq!(micros("gpt-4o-mini-2024-07-18-simulated", &million), Some(75_000));
    }

    #[test]
    fn a_snapshot_with_a_price_of_its_own_keeps_it() {
        let mut table = table();
        let own = ModelPrice { usual: rates(1, None, 1), long_context: None };
        table.models.insert("gpt-4o-mini-2024-07-18".to_owned(), own);
        assert_eq!(table.price_of("gpt-4o-mini-2024-07-18"), Some(&own));
    }

    #[test]
    fn the_model_that_answered_decides_and_the_requested_one_stands_in_for_it() {
        let million = usage(1_000, 0);
        let cost = |answered| table().cost("gpt-4o-mini", Some(answered), &million).map(|cost| cost.micros);
        assert_eq!(cost("gpt-6-sol"), Some(1_000));
        assert_eq!(cost("something-new"), Some(75));
    }

    #[test]
    fn cached_and_cache_written_tokens_have_their_own_prices() {
        let sample =
            Usage { prompt: 1_000, cached: 400, cache_write: 100, completion: 10, ..Usage::default() };
        // 500 plain at 1, 400 cached at 0.1, 100 written at 1.25, 10 out at 5.
        assert_eq!(micros("gpt-6-sol", &sample), Some(500 + 40 + 125 + 50));
    }

    #[test]
    fn without_a_cache_price_cached_tokens_cost_what_the_input_costs() {
        let sample = Usage { prompt: 1_000_000, cached: 900_000, ..Usage::default() };
        assert_eq!(micros("gpt-4o-mini", &sample), Some(75_000));
    }

    #[test]
    fn a_long_input_changes_the_price_of_the_whole_request() {
        assert_eq!(micros("gpt-6-sol", &usage(272_000, 1_000)), Some(272_000 + 5_000));
        assert_eq!(micros("gpt-6-sol", &usage(272_001, 1_000)), Some(544_002 + 7_500));
    }

    #[test]
    fn halves_are_rounded_up_once_at_the_end() {
        // 0.075 a token: 6 tokens are 0.45, 7 are 0.525; 20 are exactly 1.5.
        assert_eq!(micros("gpt-4o-mini", &usage(6, 0)), Some(0));
        assert_eq!(micros("gpt-4o-mini", &usage(7, 0)), Some(1));
        assert_eq!(micros("gpt-4o-mini", &usage(20, 0)), Some(2));
    }

    #[test]
    fn decimals_are_read_exactly() {
        let micros = |text| parse_decimal(text, 6).map(|scaled| (scaled.value, scaled.exact));
        assert_eq!(micros("0.075"), Some((75_000, true)));
        assert_eq!(micros("0.0625"), Some((62_500, true)));
        assert_eq!(micros("12"), Some((12_000_000, true)));
        assert_eq!(micros(".5"), Some((500_000, true)));
        assert_eq!(micros("1.2e-5"), Some((12, true)));
        assert_eq!(micros("3E2"), Some((300_000_000, true)));
        assert_eq!(micros("0.0000005"), Some((1, false)));
        assert_eq!(micros("0.00000049"), Some((0, false)));
        assert_eq!(micros("1e-9"), Some((0, false)));
        assert_eq!(micros("0e99999"), Some((0, true)));
        for bad in ["", ".", "-1", "+1", "1.2.3", "abc", "1e", "1e400", "99999999999999999999", "1 ", "٣"] {
            assert_eq!(micros(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_that_is_written_out_reads_back(value in 0..u64::MAX) {
            let text = format!("{}.{:06}", value / 1_000_000, value % 1_000_000);
            prop_assert_eq!(parse_decimal(&text, 6), Some(Scaled { value, exact: true }));
        }

        #[test]
        fn no_usage_and_no_text_makes_it_panic(
            prompt: u64, completion: u64, cached: u64, cache_write: u64, text: String
        ) {
            let usage = Usage { prompt, completion, cached, cache_write, ..Usage::default() };
            prop_assert!(micros("gpt-6-sol", &usage).is_some());
            let _ = parse_decimal(&text, 6);
            let _ = table().price_of(&text);
        }

        #[test]
        fn more_tokens_never_cost_less(prompt in 0..1_000_000_u64, more in 0..1_000_000_u64) {
            prop_assert!(micros("gpt-6-sol", &usage(prompt, 0)) <= micros("gpt-6-sol", &usage(prompt + more, 0)));
        }
    }
}
