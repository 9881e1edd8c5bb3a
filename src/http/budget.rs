//! What a company may spend, and spent, by month.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::body::object;
use super::reply::ApiError;
use crate::actors::creator;
use crate::domain::budget::{Money, Month};
use crate::domain::id::CompanyId;
use crate::store::StoreError;

/// Months that are shown.
const MONTHS_MAX: usize = 24;

/// `GET /api/v1/companies/{companyId}/budget`
pub async fn show(api: &Api, company: CompanyId) -> Result<Value, ApiError> {
    let shared = api.shared.clone();
    let now = Month::of(shared.clock.now());
    super::blocking(move || {
        let limit = shared.reader.company(&company)?.and_then(|company| company.budget_micros);
        let money = shared.reader.money(&company, now)?;
        let months = shared.reader.months(&company, MONTHS_MAX)?;
        // Of each group that waits, whether its next request may be cut.
        let mut pauses = Vec::new();
        for waits in shared.reader.waiting_of(&company)? {
            let batch = creator::empty(&shared, waits.group);
            if let Some(why) = creator::out_of_money(shared.reader.affordable(&batch)?, &batch) {
                pauses.push(json!({
                    "endpoint": batch.group.endpoint.path(),
                    "model": batch.group.model,
                    "waiting": waits.waiting.requests,
                    "why": why,
                }));
            }
        }
        Ok::<_, StoreError>(json!({
            "ok": true,
            "budget": {
                "companyId": company.as_str(),
                "currency": shared.prices.currency,
                "month": now.to_string(),
                "monthlyMicros": limit,
                "spentMicros": money.spent,
                "reservedMicros": money.reserved,
                "leftMicros": limit.map(|limit| limit.saturating_sub(money.spent).saturating_sub(money.reserved)),
                "paused": pauses,
                "months": months.iter().map(month).collect::<Vec<_>>(),
            },
        }))
    })
    .await
}

fn month((month, money): &(Month, Money)) -> Value {
    json!({ "month": month.to_string(), "spentMicros": money.spent, "reservedMicros": money.reserved })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Body {
    /// Null takes the limit away; it must be said.
    #[serde(deserialize_with = "Option::deserialize")]
    monthly_micros: Option<u64>,
}

/// `PUT /api/v1/companies/{companyId}/budget`
pub async fn set(api: &Api, company: CompanyId, body: &[u8]) -> Result<Value, ApiError> {
    let body: Body = object(body, "{\"monthlyMicros\": 250000000}, or null for no limit")?;
    let micros = body.monthly_micros;
    crash_point!("budget.before_commit");
    api.shared.store.set_budget(company.clone(), micros).await?;
    crash_point!("budget.after_commit");
    show(api, company).await
}
