//! `GET /v2/self`: the authenticated user, and the token that they use.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::account::User;
use crate::clever::authentication::Session;
use crate::clever::transport::Json;
use crate::clock::Timestamp;
use crate::platform::model::OwnerId;

/// 2026-01-01: every account is as old as that.
pub const ACCOUNT_CREATION_MILLIS: i64 = 1_767_225_600_000;

/// A token that is used lives on for three months.
pub fn token_expiration(now: Timestamp) -> Timestamp {
    now.saturating_add(Duration::from_secs(90 * 24 * 3_600))
}

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/v2/self", get(get_profile))
        .route("/v2/self/tokens/current", get(get_current_token))
}

/// Field names and values are the real profile's; what has no meaning here is empty.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub id: OwnerId,
    pub email: String,
    pub name: String,
    pub phone: String,
    pub address: String,
    pub city: String,
    pub zipcode: String,
    pub country: String,
    pub avatar: Option<String>,
    /// Milliseconds since the epoch, as `/v2` writes dates.
    pub creation_date: i64,
    pub lang: &'static str,
    pub email_validated: bool,
    pub oauth_apps: Vec<String>,
    pub admin: bool,
    pub can_pay: bool,
    #[serde(rename = "preferredMFA")]
    pub preferred_mfa: &'static str,
    /// The CLI creates API tokens only for users with one.
    pub has_password: bool,
    pub partner_id: Option<String>,
    pub partner_name: Option<String>,
    pub partner_console_url: Option<String>,
}

impl Profile {
    fn of(user: &User) -> Profile {
        Profile {
            id: user.id.clone(),
            email: user.email.clone(),
            name: user.name.clone(),
            phone: String::new(),
            address: String::new(),
            city: String::new(),
            zipcode: String::new(),
            country: String::new(),
            avatar: None,
            creation_date: ACCOUNT_CREATION_MILLIS,
            lang: "EN",
            email_validated: true,
            oauth_apps: Vec::new(),
            admin: false,
            can_pay: true,
            preferred_mfa: "NONE",
            has_password: true,
            partner_id: None,
            partner_name: None,
            partner_console_url: None,
        }
    }
}

async fn get_profile(session: Session) -> Json<Profile> {
    Json(Profile::of(&session.user))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CurrentToken {
    pub token: String,
    pub creation_date: i64,
    pub expiration_date: i64,
    pub employee_id: Option<String>,
}

async fn get_current_token(State(clever): State<Clever>, session: Session) -> Json<CurrentToken> {
    Json(CurrentToken {
        token: session.user.token,
        creation_date: ACCOUNT_CREATION_MILLIS,
        expiration_date: token_expiration(clever.clock.now()).0,
        employee_id: None,
    })
}
