//! The interactive `clever login`.
//!
//! The CLI makes up a `cli_token`, opens `{CONSOLE_TOKEN_URL}?cli_version=…&cli_token=…` in a browser,
//! and asks `GET /v2/self/cli_tokens?cli_token=…` every 2 s, at most 60 times: 404 means "not yet".
//! Our page asks who to be; its button grants that user's token to the `cli_token`, once.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::account::User;
use crate::clever::error::ApiError;
use crate::clever::profile::token_expiration;
use crate::clever::transport::Json;
use crate::platform::model::OwnerId;

/// Logins granted and not yet collected. The oldest is forgotten for one more: its CLI then keeps
/// waiting, and whoever sits there tries again.
const PENDING_LIMIT: usize = 64;

const CLI_TOKEN_LIMIT_BYTES: usize = 256;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/v2/self/cli_tokens", get(collect))
        .route("/cli-oauth", get(login_page).post(grant))
}

/// Who was granted which login.
#[derive(Clone, Default)]
pub struct Grants(Arc<Mutex<VecDeque<(String, OwnerId)>>>);

impl Grants {
    fn grant(&self, cli_token: String, user: OwnerId) {
        let mut pending = self.0.lock();
        pending.retain(|(known, _)| *known != cli_token);
        if pending.len() >= PENDING_LIMIT {
            pending.pop_front();
        }
        pending.push_back((cli_token, user));
    }

    /// The user granted, once.
    fn collect(&self, cli_token: &str) -> Option<OwnerId> {
        let mut pending = self.0.lock();
        let at = pending.iter().position(|(known, _)| known == cli_token)?;
        pending.remove(at).map(|(_, user)| user)
    }
}

#[derive(Deserialize)]
struct CollectQuery {
    cli_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CliToken {
    pub token: String,
    pub secret: String,
    /// RFC 3339. The CLI saves it as it is, and reads a saved profile only if this is a string.
    pub expiration_date: String,
}

async fn collect(
    State(clever): State<Clever>,
    Query(query): Query<CollectQuery>,
) -> Result<Json<CliToken>, ApiError> {
    let granted = query
        .cli_token
        .and_then(|cli_token| clever.grants.collect(&cli_token))
        .and_then(|id| clever.accounts.user(&id))
        .ok_or_else(|| ApiError::not_found("This login is not granted yet"))?;
    Ok(Json(CliToken {
        token: granted.token.clone(),
        secret: granted.secret.clone(),
        expiration_date: token_expiration(clever.clock.now()).to_rfc3339(),
    }))
}

#[derive(Deserialize)]
struct LoginQuery {
    cli_token: Option<String>,
}

async fn login_page(State(clever): State<Clever>, Query(query): Query<LoginQuery>) -> Response {
    match query.cli_token {
        Some(cli_token) if is_cli_token(&cli_token) => page(
            StatusCode::OK,
            &choose_user(&cli_token, clever.accounts.users()),
        ),
        _ => page(
            StatusCode::BAD_REQUEST,
            "<p>Start here from the command line: <code>clever login</code>.</p>",
        ),
    }
}

#[derive(Deserialize)]
struct GrantForm {
    cli_token: String,
    user: String,
}

async fn grant(State(clever): State<Clever>, Form(form): Form<GrantForm>) -> Response {
    let user = form
        .user
        .parse()
        .ok()
        .and_then(|id: OwnerId| clever.accounts.user(&id));
    match user {
        Some(user) if is_cli_token(&form.cli_token) => {
            clever.grants.grant(form.cli_token, user.id.clone());
            let name = escape(&user.name);
            page(
                StatusCode::OK,
                &format!("<p>You are {name} now. Go back to your terminal.</p>"),
            )
        }
        _ => page(StatusCode::BAD_REQUEST, "<p>There is no such user.</p>"),
    }
}

fn is_cli_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= CLI_TOKEN_LIMIT_BYTES
}

fn choose_user(cli_token: &str, users: &[User]) -> String {
    let buttons: String = users
        .iter()
        .map(|user| {
            format!(
                "<p><button name=\"user\" value=\"{}\">{} &lt;{}&gt;</button></p>",
                escape(user.id.as_str()),
                escape(&user.name),
                escape(&user.email)
            )
        })
        .collect();
    format!(
        "<p>Who do you want to be?</p><form method=\"post\" action=\"/cli-oauth\">\
         <input type=\"hidden\" name=\"cli_token\" value=\"{}\">{buttons}</form>",
        escape(cli_token)
    )
}

fn page(status: StatusCode, content: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>cke: log in</title>\
         <body><h1>Log in to cke</h1>{content}</body></html>"
    );
    // No other page may frame the buttons, and the token in the address goes nowhere.
    let headers = [
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, Html(html)).into_response()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_collected_once_and_the_oldest_is_forgotten() {
        let user: OwnerId = crate::clever::account::SEED_USER_ID.parse().unwrap();
        let grants = Grants::default();
        grants.grant("a".into(), user.clone());
        assert_eq!(grants.collect("b"), None);
        assert_eq!(grants.collect("a"), Some(user.clone()));
        assert_eq!(grants.collect("a"), None);
        for count in 0..=PENDING_LIMIT {
            grants.grant(count.to_string(), user.clone());
        }
        assert_eq!(grants.collect("0"), None);
        assert_eq!(grants.collect("1"), Some(user));
    }

    #[test]
    fn the_page_quotes_what_it_was_given() {
        assert_eq!(
            choose_user("\"><script>", &[]),
            "<p>Who do you want to be?</p><form method=\"post\" action=\"/cli-oauth\">\
             <input type=\"hidden\" name=\"cli_token\" value=\"&quot;&gt;&lt;script&gt;\"></form>"
        );
    }
}
