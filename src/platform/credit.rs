//! Credits: what an organisation need not pay.
//!
//! A credit is there from the month on in which it is given, and is used up before anything is to be paid.
//! Credits are whole cents, and so is what an invoice comes to: they are taken from that, and what is left
//! goes on to the next month.
//!
//! Worked example: 100 euro are given in March. March comes to 66.00, April to 66.00: in March 66.00 of the
//! credit are used and nothing is to be paid, in April 34.00 and 32.00 are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::error::PlatformError;
use super::model::OwnerId;

/// Credits that an owner may be given, ever.
const MOST_CREDITS: usize = 1000;
/// A million euro.
const MOST_CENTS: u64 = 100_000_000;
const MOST_REASON_CHARS: usize = 256;
const MOST_NAME_CHARS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credit {
    /// Whoever gives it tells it from others by this.
    pub name: String,
    pub cents: u64,
    pub reason: String,
    pub given_at: Timestamp,
}

/// All that an owner was given, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credits {
    pub owner: OwnerId,
    pub given: Vec<Credit>,
}

impl Credits {
    pub fn new(owner: OwnerId) -> Credits {
        Credits {
            owner,
            given: Vec::new(),
        }
    }

    /// Gives a credit. Doing it again changes nothing; one of the same name that is another is a conflict.
    /// Returns whether it is new.
    pub fn give(&mut self, credit: Credit) -> Result<bool, PlatformError> {
        let chars = credit.name.chars().count();
        if !(1..=MOST_NAME_CHARS).contains(&chars) {
            let reason = format!("must have 1 to {MOST_NAME_CHARS} characters");
            return Err(PlatformError::invalid("name", credit.name, reason));
        }
        if !(1..=MOST_CENTS).contains(&credit.cents) {
            let reason = format!("must be 0.01 to {} euro", MOST_CENTS / 100);
            return Err(PlatformError::invalid(
                "amount",
                in_euro(credit.cents),
                reason,
            ));
        }
        if credit.reason.chars().count() > MOST_REASON_CHARS {
            let reason = format!("must have at most {MOST_REASON_CHARS} characters");
            return Err(PlatformError::invalid("reason", credit.reason, reason));
        }
        if let Some(known) = self.given.iter().find(|it| it.name == credit.name) {
            if known.cents == credit.cents && known.reason == credit.reason {
                return Ok(false);
            }
            return Err(PlatformError::conflict(format!(
                "Credit {} was given before, and is another",
                credit.name
            )));
        }
        if self.given.len() >= MOST_CREDITS {
            return Err(PlatformError::conflict(format!(
                "At most {MOST_CREDITS} credits can be given"
            )));
        }
        self.given.push(credit);
        Ok(true)
    }

    /// Cents given in `[from, until)`.
    pub fn given_between(&self, from: Timestamp, until: Timestamp) -> u64 {
        let given = self.given.iter();
        given
            .filter(|it| from <= it.given_at && it.given_at < until)
            .fold(0, |sum, it| sum.saturating_add(it.cents))
    }
}

/// What is to be paid of a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    /// Cents that the month comes to.
    pub total: u64,
    /// Of that, what credits cover.
    pub credited: u64,
    pub due: u64,
    /// What is left of the credits for the months after.
    pub left: u64,
}

/// `left` is what is left of earlier months' credits, `given` what was given in this one.
pub fn pay(total: u64, left: u64, given: u64) -> Payment {
    let available = left.saturating_add(given);
    let credited = total.min(available);
    Payment {
        total,
        credited,
        due: total - credited,
        left: available - credited,
    }
}

/// Cents as euro.
pub fn in_euro(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// An amount of money as text: euro with at most two decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Euro(pub u64);

impl TryFrom<String> for Euro {
    type Error = String;

    fn try_from(text: String) -> Result<Euro, String> {
        let invalid =
            || String::from("not an amount in euro with at most two decimals, such as 12.50");
        let (whole, part) = text.split_once('.').unwrap_or((&text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        if !digits(whole) || !digits(part) || whole.len() > 12 || part.len() > 2 {
            return Err(invalid());
        }
        let cents = format!("{whole}{part:0<2}");
        cents.parse().map(Euro).map_err(|_| invalid())
    }
}

impl From<Euro> for String {
    fn from(Euro(cents): Euro) -> String {
        in_euro(cents)
    }
}

impl JsonSchema for Euro {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Euro".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^[0-9]{1,12}(\.[0-9]{1,2})?$",
            "description": "Euro, with at most two decimals",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_amount_is_written_in_euro() {
        let check = |text: &str, expect: Option<u64>| {
            let read = Euro::try_from(text.to_owned()).ok();
            assert_eq!(read.map(|it| it.0), expect, "{text}");
        };
        check("12.5", Some(1250));
        check("12.05", Some(1205));
        check("0", Some(0));
        for text in ["", "1.", ".1", "-1", "1.001", "1e2", "1234567890123"] {
            check(text, None);
        }
        assert_eq!(String::from(Euro(5)), "0.05");
    }

    #[test]
    fn a_credit_is_given_once() {
        let owner: OwnerId = "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap();
        let mut credits = Credits::new(owner);
        let credit = |name: &str, cents| Credit {
            name: name.to_owned(),
            cents,
            reason: String::from("beta"),
            given_at: Timestamp(5),
        };
        assert_eq!(credits.give(credit("a", 100)).ok(), Some(true));
        assert_eq!(credits.give(credit("a", 100)).ok(), Some(false));
        for refused in [
            credit("a", 101),
            credit("", 1),
            credit("b", 0),
            credit("b", MOST_CENTS + 1),
        ] {
            assert!(credits.give(refused.clone()).is_err(), "{refused:?}");
        }
        let between = |from, until| credits.given_between(Timestamp(from), Timestamp(until));
        assert_eq!([between(0, 5), between(5, 6), between(6, 9)], [0, 100, 0]);
    }

    #[test]
    fn what_is_left_goes_on() {
        let march = pay(6600, 0, 10_000);
        assert_eq!((march.credited, march.due, march.left), (6600, 0, 3400));
        let april = pay(6600, march.left, 0);
        assert_eq!((april.credited, april.due, april.left), (3400, 3200, 0));
    }

    proptest! {
        #[test]
        fn no_cent_is_lost(months in proptest::collection::vec((0u64..100_000, 0u64..100_000), 0..24)) {
            let (mut left, mut paid, mut given, mut owed) = (0, 0, 0, 0);
            for (total, credit) in months {
                let payment = pay(total, left, credit);
                prop_assert_eq!(payment.credited + payment.due, total);
                prop_assert!(payment.due == 0 || payment.left == 0);
                (left, paid, given, owed) = (payment.left, paid + payment.due, given + credit, owed + total);
            }
            prop_assert_eq!(paid + given, owed + left);
        }
    }
}
