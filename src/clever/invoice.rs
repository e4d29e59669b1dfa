//! `GET /_sim/organisations/{owner}/invoices/{month}`: what an organisation is to pay. No contract has a
//! path for it, so it is among the simulation's.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde::Serialize;
use time::{Date, Month};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::transport::Json;
use crate::clock::Timestamp;
use crate::platform::billing::Invoice;
use crate::platform::model::OwnerId;
use crate::platform::pricing::CURRENCY;

pub fn routes() -> Router<Clever> {
    Router::new().route("/_sim/organisations/{owner}/invoices/{month}", get(read))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InvoiceBody {
    owner_id: OwnerId,
    /// Such as `2026-01`.
    month: String,
    since: String,
    /// End of the month, or now if that is not over.
    until: String,
    currency: &'static str,
    taxes_included: bool,
    #[serde(flatten)]
    invoice: Invoice,
}

/// Start and end, in UTC.
fn month(text: &str) -> Option<(Timestamp, Timestamp)> {
    let (year, number) = text.split_once('-')?;
    if year.len() != 4 || number.len() != 2 {
        return None;
    }
    let year: i32 = year
        .parse()
        .ok()
        .filter(|year| (1970..9999).contains(year))?;
    let month = Month::try_from(number.parse::<u8>().ok()?).ok()?;
    let start = |year, month| {
        let first = Date::from_calendar_date(year, month, 1).ok()?;
        Some(Timestamp(
            first.midnight().assume_utc().unix_timestamp() * 1000,
        ))
    };
    let next = month.next();
    let next_year = if next == Month::January {
        year + 1
    } else {
        year
    };
    Some((start(year, month)?, start(next_year, next)?))
}

async fn read(
    State(clever): State<Clever>,
    Path((owner, text)): Path<(String, String)>,
) -> Result<Json<InvoiceBody>, ApiError> {
    let unknown = || ApiError::resource_not_found("Organisation", &owner);
    let owner_id: OwnerId = owner.parse().map_err(|_| unknown())?;
    if !clever.accounts.is_known(&owner_id) {
        return Err(unknown());
    }
    let (since, end) = month(&text)
        .ok_or_else(|| ApiError::invalid_field("month", &*text, "must be such as 2026-01"))?;
    let invoice = clever.platform.invoice(&owner_id, since, end).await?;
    Ok(Json(InvoiceBody {
        owner_id,
        month: text,
        since: since.to_rfc3339(),
        until: clever.clock.now().clamp(since, end).to_rfc3339(),
        currency: CURRENCY,
        taxes_included: false,
        invoice,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_one_of_the_calendar() {
        let check = |text: &str, expect: Option<(&str, &str)>| {
            let found = month(text).map(|(a, b)| (a.to_rfc3339(), b.to_rfc3339()));
            let found = found.as_ref().map(|(a, b)| (&a[..10], &b[..10]));
            assert_eq!(found, expect, "{text}");
        };
        check("2028-02", Some(("2028-02-01", "2028-03-01")));
        check("2026-12", Some(("2026-12-01", "2027-01-01")));
        for text in [
            "",
            "2026",
            "2026-13",
            "2026-00",
            "2026-1",
            "26-01",
            "2026-01-01",
            "-001-01",
        ] {
            check(text, None);
        }
    }
}
