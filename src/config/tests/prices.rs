//! The table of prices, built in and overridden.

use super::{error, good};
use crate::domain::request::Usage;

#[test]
fn the_prices_that_come_with_the_program_are_exact() {
    let prices = good("").prices;
    assert_eq!(
        (prices.version.as_str(), prices.currency.as_str(), prices.models.len()),
        ("2026-10", "USD", 41)
    );
    let cost = |model, usage| prices.cost(model, None, &usage).unwrap().micros;
    let million = |prompt, completion| Usage { prompt, completion, ..Usage::default() };
    assert_eq!(cost("gpt-4o-mini", million(1_000_000, 1_000_000)), 375_000);
    assert_eq!(cost("gpt-4o-mini-2024-07-18", million(1_000_000, 0)), 75_000);
    assert_eq!(cost("gpt-5-nano", Usage { cached: 1_000_000, ..million(1_000_000, 0) }), 2_500);
    assert_eq!(cost("text-embedding-3-large", million(1_000_000, 0)), 65_000);
    assert_eq!(cost("gpt-6-sol", million(272_001, 0)), 544_002);
    assert!(prices.cost("gpt-9", None, &million(1, 1)).is_none());
}

#[test]
fn own_prices_go_over_those_and_give_the_table_another_version() {
    let prices = |text: &str| good(text).prices;
    let own = "[prices.models.\"gpt-4o-mini\"]\ninput = 0.1\noutput = \"0.4\"\n[prices.models.mine]\ninput = \"1\"\noutput = \"0\"\n\
        long_context = { above = 1000, input = \"2\", output = \"0\" }\n";
    let table = prices(own);
    assert_eq!(table.version, "2026-10+custom");
    assert_eq!(table.models.len(), 42);
    assert_eq!(table.models["gpt-4o-mini"].usual.input, 100_000);
    assert_eq!(
        table.models["mine"].long_context.map(|long| (long.above, long.rates.input)),
        Some((1_000, 2_000_000))
    );
    assert_eq!(prices(&format!("[prices]\nversion = \"mine-1\"\n{own}")).version, "mine-1");
    let euros = prices(&format!("[prices]\nversion = \"e\"\ncurrency = \"EUR\"\n{own}"));
    assert_eq!((euros.currency.as_str(), euros.models.len()), ("EUR", 2), "dollar prices are left out");
}

#[test]
fn a_price_that_is_wrong_names_its_model() {
    let cases = [
        ("input = \"x\"\noutput = \"1\"", "prices.models.\"m\".input", "is not a price"),
        ("input = \"0.0000001\"\noutput = \"1\"", "prices.models.\"m\".input", "six decimals"),
        ("input = \"1\"", "prices.models.\"m\".output", "missing"),
        ("input = \"1\"\noutput = \"1\"\ncache = \"1\"", "prices.models.\"m\".cache", "no such key"),
        (
            "input = \"1\"\noutput = \"1\"\nlong_context = 5",
            "prices.models.\"m\".long_context",
            "not a table",
        ),
        (
            "input = \"1\"\noutput = \"1\"\nlong_context = { input = \"1\", output = \"1\" }",
            "prices.models.\"m\".long_context.above",
            "missing",
        ),
    ];
    for (body, key, problem) in cases {
        let err = error(&format!("[prices.models.m]\n{body}\n"), &[], &[]);
        assert_eq!(err.key, key);
        assert!(err.problem.contains(problem), "{err}");
    }
    assert!(error("[prices]\ncurrency = \"dollars\"", &[], &[]).remedy.contains("ISO 4217"));
}
