//! What an organisation is to pay, month by month. No contract has a path for it.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::organisation;
use crate::clever::simulation::invoice_page;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, Parameters};
use crate::platform::billing::Invoice;
use crate::platform::consumption::{Bill, BillingMonth};
use crate::platform::credit::Euro;
use crate::platform::model::OwnerId;
use crate::platform::pricing::CURRENCY;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get(
            "/_sim/organisations/{organisation}/invoices",
            "What an organisation's months come to, from its first",
        )
        .answers::<Vec<InvoiceSummary>>(),
        list,
    )
    .add(
        Operation::get(
            "/_sim/organisations/{organisation}/invoices/{month}",
            "What an organisation is to pay for a month, such as 2026-01, line by line",
        )
        .query(
            "format",
            "`html`: a page to be printed, as with the header Accept: text/html; else JSON",
        )
        .answers::<InvoiceBody>(),
        read,
    )
}

/// What is the same in both forms.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvoiceHead {
    #[schemars(with = "String")]
    pub owner_id: OwnerId,
    /// Such as `2026-01`.
    pub month: String,
    pub since: String,
    /// End of the month, or now if that is not over.
    pub until: String,
    /// Whether the month is over.
    #[serde(rename = "final")]
    pub is_final: bool,
    pub currency: &'static str,
    pub taxes_included: bool,
    /// What credits cover of the total.
    pub credits_used: Euro,
    /// What is to be paid.
    pub due: Euro,
    /// What is left of the credits for the months after.
    pub credits_left: Euro,
}

impl InvoiceHead {
    fn new(owner_id: OwnerId, bill: &Bill) -> InvoiceHead {
        InvoiceHead {
            owner_id,
            month: bill.month.to_string(),
            since: bill.month.start().to_rfc3339(),
            until: bill.until.to_rfc3339(),
            is_final: bill.is_final,
            currency: CURRENCY,
            taxes_included: false,
            credits_used: Euro(bill.payment.credited),
            due: Euro(bill.payment.due),
            credits_left: Euro(bill.payment.left),
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct InvoiceSummary {
    #[serde(flatten)]
    head: InvoiceHead,
    total: Euro,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct InvoiceBody {
    #[serde(flatten)]
    head: InvoiceHead,
    #[serde(flatten)]
    invoice: Invoice,
}

async fn list(
    State(clever): State<Clever>,
    Path(organisation): Path<String>,
) -> Result<Json<Vec<InvoiceSummary>>, ApiError> {
    let owner = organisation::known(&clever, &organisation)?;
    let bills = clever.platform.bills(&owner, None).await?;
    let summaries = bills.iter().map(|bill| InvoiceSummary {
        head: InvoiceHead::new(owner.clone(), bill),
        total: Euro(bill.payment.total),
    });
    Ok(Json(summaries.collect()))
}

/// Whether a page is asked for: a browser names HTML before anything else that would do.
fn wants_page(headers: &HeaderMap, parameters: &Parameters) -> Result<bool, ApiError> {
    match parameters.get("format") {
        Some("html") => return Ok(true),
        Some("json") => return Ok(false),
        Some(other) => {
            return Err(ApiError::invalid_field(
                "format",
                other,
                "must be html or json",
            ));
        }
        None => {}
    }
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let first = accept.and_then(|accept| accept.split([',', ';']).next());
    Ok(first.is_some_and(|first| first.trim().eq_ignore_ascii_case("text/html")))
}

async fn read(
    State(clever): State<Clever>,
    Path((organisation, month)): Path<(String, String)>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let owner = organisation::known(&clever, &organisation)?;
    let as_page = wants_page(&headers, &parameters)?;
    let month: BillingMonth = month
        .parse()
        .map_err(|reason: &str| ApiError::invalid_field("month", month.as_str(), reason))?;
    let bill = clever.platform.bill(&owner, month).await?;
    let head = InvoiceHead::new(owner.clone(), &bill);
    let invoice = bill.invoice;
    if !as_page {
        return Ok(Json(InvoiceBody { head, invoice }).into_response());
    }
    let name = clever.accounts.name_of(&owner).unwrap_or_default();
    let page = invoice_page::page(name, &head, &invoice);
    let html = [(CONTENT_TYPE, "text/html; charset=utf-8")];
    Ok((html, page).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_a_page() {
        let check = |accept: Option<&str>, query: &str, expect: Option<bool>| {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(ACCEPT, accept.parse().expect("a header"));
            }
            let found = wants_page(&headers, &Parameters::parse(query)).ok();
            assert_eq!(found, expect, "{accept:?} {query}");
        };
        check(None, "", Some(false));
        check(Some("application/json"), "", Some(false));
        check(Some("*/*"), "", Some(false));
        check(
            Some("text/html,application/xhtml+xml,*/*;q=0.8"),
            "",
            Some(true),
        );
        check(Some("application/json, text/html"), "", Some(false));
        check(Some("text/html"), "format=json", Some(false));
        check(None, "format=html", Some(true));
        check(None, "format=pdf", None);
    }
}
