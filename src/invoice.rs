//! `cke invoice`: what an organisation is to pay, asked of a running server.

use clap::{Args, ValueEnum};
use http::Method;
use serde_json::Value;

use crate::clever::account::{SEED_API_TOKEN, SEED_ORGANISATION_ID};
use crate::sim::client::{Client, ClientError};

#[derive(Debug, thiserror::Error)]
pub enum InvoiceError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("cannot write the invoice: {0}")]
    Write(#[from] std::io::Error),
    #[error("all months together are written as a table or as JSON")]
    OneMonth,
}

/// Options of `cke invoice`.
#[derive(Args, Clone, Debug)]
pub struct InvoiceOptions {
    /// Such as 2026-01; what all months come to, unless given
    #[arg(value_name = "MONTH")]
    month: Option<String>,
    /// The seed organisation unless given
    #[arg(long, env = "CKE_ORG", value_name = "ORGANISATION", default_value = SEED_ORGANISATION_ID)]
    organisation: String,
    /// The server to ask
    #[arg(
        long,
        env = "API_HOST",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    url: String,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    /// A page to be printed
    Html,
}

impl InvoiceOptions {
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub fn run(self) -> Result<(), InvoiceError> {
        use std::io::Write as _;
        let text = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(InvoiceError::Runtime)?
            .block_on(self.text())?;
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    async fn text(self) -> Result<String, InvoiceError> {
        let client = Client::new(&self.url, SEED_API_TOKEN)?;
        let organisation = percent_encoding::utf8_percent_encode(
            &self.organisation,
            percent_encoding::NON_ALPHANUMERIC,
        );
        let base = format!("/_sim/organisations/{organisation}/invoices");
        let month = self.month.map(|month| {
            percent_encoding::utf8_percent_encode(&month, percent_encoding::NON_ALPHANUMERIC)
                .to_string()
        });
        let path = match (&month, self.format) {
            (Some(month), Format::Html) => format!("{base}/{month}?format=html"),
            (None, Format::Html) => return Err(InvoiceError::OneMonth),
            (Some(month), _) => format!("{base}/{month}?format=json"),
            (None, _) => base,
        };
        if self.format == Format::Html {
            return Ok(client.text(&Method::GET, &path).await?);
        }
        let answer = client.json(&Method::GET, &path, None).await?;
        Ok(match self.format {
            Format::Json => format!("{answer:#}\n"),
            _ if month.is_some() => of_month(&answer),
            _ => of_months(&answer),
        })
    }
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// As it was billed: amounts are shown, never computed here.
fn of_month(invoice: &Value) -> String {
    let mut text = format!(
        "{:<20}  {:<28}  {:>14}  {:<16}  {:>10}  {:>12}\n",
        "CLUSTER", "ITEM", "HOURS", "OF", "RATE", "EUR"
    );
    let empty = Vec::new();
    for line in invoice["lines"].as_array().unwrap_or(&empty) {
        let item = match word(line, "kind") {
            "nodeGroup" => format!("node group {}", word(line, "nodeGroupName")),
            "controlPlane" => String::from("control plane"),
            "loadBalancers" => String::from("load balancers"),
            other => other.to_owned(),
        };
        let charges = line["charges"].as_array().unwrap_or(&empty);
        for (index, charge) in charges.iter().enumerate() {
            let first = |text: &str| {
                if index == 0 {
                    text.to_owned()
                } else {
                    String::new()
                }
            };
            text += &format!(
                "{:<20}  {:<28}  {:>14}  {:<16}  {:>10}  {:>12}\n",
                first(word(line, "clusterName")),
                first(&item),
                word(charge, "unitHours"),
                word(charge, "unit"),
                word(charge, "monthlyRate"),
                word(charge, "amount"),
            );
        }
    }
    let totals = [
        ("total, without taxes", "total"),
        ("credits", "creditsUsed"),
        ("to be paid", "due"),
    ];
    for (label, key) in totals {
        text += &format!("{label:<98}  {:>12}\n", word(invoice, key));
    }
    text
}

fn of_months(months: &Value) -> String {
    let mut text = format!(
        "{:<8}  {:>12}  {:>12}  {:>12}  {}\n",
        "MONTH", "EUR", "CREDITS", "TO BE PAID", ""
    );
    for month in months.as_array().unwrap_or(&Vec::new()) {
        let note = if month["final"] == true { "" } else { "so far" };
        let line = format!(
            "{:<8}  {:>12}  {:>12}  {:>12}  {note}",
            word(month, "month"),
            word(month, "total"),
            word(month, "creditsUsed"),
            word(month, "due"),
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}
