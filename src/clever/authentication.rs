//! Who sent a request.
//!
//! Three ways to say it are verified:
//! - OAuth 1.0 PLAINTEXT as the CLI writes it: three parameters, nothing percent-encoded, the
//!   signature being consumer secret, `%26`, token secret. Standard writers, which encode the
//!   signature and name the method, are understood as well. Any consumer is accepted: what proves
//!   the user is the token's secret.
//! - OAuth 1.0 HMAC-SHA512 and HMAC-SHA1, for known consumers. The Go client leaves the query out of
//!   what it signs, other clients put it in: either signature is right. Nonces and timestamps are
//!   signed but not remembered, for the simulated clock has nothing to do with the client's.
//! - `Bearer` with an API token, or with the token of a cluster: then it is not a user who asks, but a component
//!   of that cluster, for whom only what takes an [`Actor`] is open.

use axum::extract::FromRequestParts;
use axum::extract::RawPathParams;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;
use axum::http::{Method, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use crate::clever::account::{Accounts, User};
use crate::clever::cluster_token::ClusterIdentity;
use crate::clever::error::ApiError;
use crate::clever::transport::ReceivedTarget;
use crate::clever::{Clever, api_token};
use crate::platform::model::{ClusterId, OwnerId};

/// RFC 5849, 3.6: everything but the unreserved characters is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The authenticated user.
pub struct Session {
    pub user: User,
}

/// The owner in the path, for whom the authenticated user may act.
pub struct Owner {
    pub id: OwnerId,
}

impl FromRequestParts<Clever> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let header = parts
            .headers
            .get(AUTHORIZATION)
            .ok_or_else(ApiError::unauthorized)?
            .to_str()
            .map_err(|_| ApiError::unauthorized())?;
        let (scheme, credentials) = header
            .trim_start()
            .split_once(' ')
            .ok_or_else(ApiError::unauthorized)?;
        let user = if scheme.eq_ignore_ascii_case("oauth") {
            let parameters = OauthParameters::parse(credentials);
            let target = parts
                .extensions
                .get::<ReceivedTarget>()
                .map_or(&parts.uri, |received| &received.0);
            let host = parts
                .headers
                .get(HOST)
                .and_then(|host| host.to_str().ok())
                .unwrap_or_default();
            let request = SignedRequest {
                method: &parts.method,
                target,
                host,
            };
            parameters
                .verify(&clever.accounts, &request)
                .cloned()
                .ok_or_else(ApiError::unauthorized)?
        } else if cluster_identity(parts, clever).is_some() {
            return Err(ApiError::forbidden(
                "A component of a cluster deals with what is its cluster's own",
            ));
        } else if scheme.eq_ignore_ascii_case("bearer") {
            api_token::user_of(clever, credentials.trim()).await?
        } else {
            return Err(ApiError::unauthorized());
        };
        Ok(Session { user })
    }
}

impl FromRequestParts<Clever> for Owner {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let session = Session::from_request_parts(parts, clever).await?;
        let owner = owner_in_path(parts).await?;
        // An owner that cannot exist is answered like one that the user does not belong to.
        let id: OwnerId = owner.parse().map_err(|_| not_for(&owner))?;
        if !clever.accounts.may_act_for(&session.user, &id) {
            return Err(not_for(&owner));
        }
        Ok(Owner { id })
    }
}

/// The owner in the path, for whom a user of the owner's asks, or a component of one of its clusters.
pub struct Actor {
    pub owner: OwnerId,
    /// The only cluster that who asks may deal with; `None` for a user, who may deal with all.
    pub only: Option<ClusterId>,
}

impl Actor {
    /// Whether the cluster is within reach; another one is answered like one that is not there.
    pub fn may_reach(&self, cluster: &ClusterId) -> bool {
        self.only.as_ref().is_none_or(|only| only == cluster)
    }
}

impl FromRequestParts<Clever> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let Some(identity) = cluster_identity(parts, clever) else {
            let Owner { id } = Owner::from_request_parts(parts, clever).await?;
            return Ok(Actor {
                owner: id,
                only: None,
            });
        };
        let owner = owner_in_path(parts).await?;
        if owner != identity.owner.as_str() {
            return Err(not_for(&owner));
        }
        Ok(Actor {
            owner: identity.owner,
            only: Some(identity.cluster),
        })
    }
}

/// The cluster whose token the request bears.
fn cluster_identity(parts: &Parts, clever: &Clever) -> Option<ClusterIdentity> {
    let header = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.trim_start().split_once(' ')?;
    let bearer = scheme.eq_ignore_ascii_case("bearer");
    bearer.then(|| clever.cluster_tokens.verify(token.trim()))?
}

async fn owner_in_path(parts: &mut Parts) -> Result<String, ApiError> {
    let path = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let owner = path.iter().find(|(name, _)| *name == "owner");
    Ok(owner.map_or_else(String::new, |(_, value)| value.to_owned()))
}

fn not_for(owner: &str) -> ApiError {
    let owner: String = owner.chars().take(64).collect();
    ApiError::forbidden(format!("You are not allowed to act for {owner}"))
}

/// The parameters of an `Authorization: OAuth` header, as they were written.
#[derive(Debug, PartialEq)]
struct OauthParameters<'a>(Vec<(&'a str, &'a str)>);

/// What an HMAC signature covers besides the parameters.
struct SignedRequest<'a> {
    method: &'a Method,
    target: &'a Uri,
    /// The `Host` header.
    host: &'a str,
}

impl<'a> OauthParameters<'a> {
    /// `name="value"`, separated by commas. Values end at the next quote: nothing escapes one.
    /// What is not of this form is left out, and its absence then fails the verification.
    fn parse(mut text: &'a str) -> OauthParameters<'a> {
        let mut parameters = Vec::new();
        while let Some((name, rest)) = text.split_once("=\"") {
            let Some((value, rest)) = rest.split_once('"') else {
                break;
            };
            parameters.push((name.trim_matches([',', ' ', '\t']), value));
            text = rest;
        }
        OauthParameters(parameters)
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }

    fn decoded(&self, name: &str) -> Option<String> {
        self.get(name).map(decode)
    }

    fn verify<'b>(&self, accounts: &'b Accounts, request: &SignedRequest) -> Option<&'b User> {
        let token = self.get("oauth_token")?;
        if token.is_empty() || token == "undefined" {
            return None;
        }
        let user = accounts.user_by_token(token)?;
        let signature = self.get("oauth_signature")?;
        let right = match self.get("oauth_signature_method").unwrap_or("PLAINTEXT") {
            "PLAINTEXT" => {
                plaintext_secret(signature).is_some_and(|secret| same_secret(secret, &user.secret))
            }
            "HMAC-SHA512" => self.hmac_matches::<Hmac<Sha512>>(accounts, user, request),
            "HMAC-SHA1" => self.hmac_matches::<Hmac<Sha1>>(accounts, user, request),
            _ => false,
        };
        right.then_some(user)
    }

    fn hmac_matches<M>(&self, accounts: &Accounts, user: &User, request: &SignedRequest) -> bool
    where
        M: Mac + hmac::digest::KeyInit,
    {
        let consumer = self.decoded("oauth_consumer_key");
        let Some(consumer_secret) =
            consumer.and_then(|key| accounts.consumer_secret(&key).map(str::to_owned))
        else {
            return false;
        };
        let Some(Ok(signature)) = self
            .decoded("oauth_signature")
            .map(|text| BASE64.decode(text))
        else {
            return false;
        };
        let key = format!("{}&{}", encode(&consumer_secret), encode(&user.secret));
        // TLS may end in front of us, so the client may have signed https.
        ["http", "https"].into_iter().any(|scheme| {
            [true, false].into_iter().any(|with_query| {
                let base = self.base_string(request, scheme, with_query);
                <M as Mac>::new_from_slice(key.as_bytes()).is_ok_and(|mut mac| {
                    mac.update(base.as_bytes());
                    mac.verify_slice(&signature).is_ok()
                })
            })
        })
    }

    /// RFC 5849, 3.4.1.
    fn base_string(&self, request: &SignedRequest, scheme: &str, with_query: bool) -> String {
        let mut parameters: Vec<(String, String)> = self
            .0
            .iter()
            .filter(|(name, _)| *name != "realm" && *name != "oauth_signature")
            .map(|(name, value)| (encode(&decode(name)), encode(&decode(value))))
            .collect();
        if with_query {
            for pair in request.target.query().unwrap_or_default().split('&') {
                if pair.is_empty() {
                    continue;
                }
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let form = |text: &str| encode(&decode(&text.replace('+', " ")));
                parameters.push((form(name), form(value)));
            }
        }
        parameters.sort();
        let parameters: Vec<String> = parameters
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let host = request.host.to_ascii_lowercase();
        let host = match scheme {
            "https" => host.strip_suffix(":443").unwrap_or(&host),
            _ => host.strip_suffix(":80").unwrap_or(&host),
        };
        let url = format!("{scheme}://{host}{}", request.target.path());
        format!(
            "{}&{}&{}",
            request.method,
            encode(&url),
            encode(&parameters.join("&"))
        )
    }
}

/// The token's secret in a PLAINTEXT signature: what follows the first separator, as it is.
fn plaintext_secret(signature: &str) -> Option<&str> {
    let raw = signature.split_once("%26").or(signature.split_once('&'));
    raw.map(|(_, secret)| secret)
}

/// Compares in a time that does not depend on where the two differ.
pub fn same_secret(one: &str, other: &str) -> bool {
    let digests = [one, other].map(|text| Sha256::digest(text.as_bytes()));
    digests[0]
        .iter()
        .zip(digests[1].iter())
        .fold(0, |difference, (a, b)| difference | (a ^ b))
        == 0
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

pub fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clever::account::{AccountsConfig, SEED_SECRET, SEED_TOKEN};

    fn verified(header: &str, method: &str, target: &str) -> bool {
        let accounts = Accounts::new(AccountsConfig::default()).unwrap();
        let request = SignedRequest {
            method: &method.parse().unwrap(),
            target: &target.parse().unwrap(),
            host: "api.example.test",
        };
        OauthParameters::parse(header)
            .verify(&accounts, &request)
            .is_some()
    }

    #[test]
    fn plaintext_as_the_cli_writes_it() {
        let check = |token: &str, signature: &str, expect: bool| {
            let header = format!(
                r#"oauth_consumer_key="K", oauth_token="{token}", oauth_signature="{signature}""#
            );
            assert_eq!(verified(&header, "GET", "/v2/self"), expect, "{header}");
        };
        check(SEED_TOKEN, &format!("CS%26{SEED_SECRET}"), true);
        check(SEED_TOKEN, &format!("%26{SEED_SECRET}"), true);
        check(SEED_TOKEN, &format!("CS&{SEED_SECRET}"), true);
        check(SEED_TOKEN, &format!("CS%26{SEED_SECRET}x"), false);
        check(SEED_TOKEN, SEED_SECRET, false);
        check(SEED_TOKEN, "CS%26", false);
        check(SEED_TOKEN, "CS%26undefined", false);
        check("undefined", "CS%26undefined", false);
        check("", "CS%26", false);
        check("unknown", &format!("CS%26{SEED_SECRET}"), false);
    }

    #[test]
    fn what_is_missing_or_malformed_proves_nothing() {
        for header in [
            "",
            "oauth_token",
            r#"oauth_token="cke-seed-token""#,
            r#"oauth_signature="CS%26cke-seed-secret""#,
            r#"oauth_token="cke-seed-token", oauth_signature="CS%26cke-seed-secret"#,
            r#"oauth_token="cke-seed-token", oauth_signature="CS%26cke-seed-secret", oauth_signature_method="RSA-SHA1""#,
        ] {
            assert!(!verified(header, "GET", "/"), "{header}");
        }
    }

    /// Signs as a client does, with or without the query in the base string.
    fn hmac_header<M: Mac + hmac::digest::KeyInit>(
        method: &str,
        signed_query: &[(&str, &str)],
    ) -> String {
        let mut parameters = vec![
            ("oauth_consumer_key", "T5nFjKeHH4AIlEveuGhB5S3xg8T19e"),
            ("oauth_nonce", "n1"),
            ("oauth_signature_method", method),
            ("oauth_timestamp", "1767225600"),
            ("oauth_token", SEED_TOKEN),
            ("oauth_version", "1.0"),
        ];
        let header: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        parameters.extend_from_slice(signed_query);
        parameters.sort();
        let joined: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        let base = format!(
            "GET&http%3A%2F%2Fapi.example.test%2Fv2%2Fself&{}",
            encode(&joined.join("&"))
        );
        let key = format!("MgVMqTr6fWlf2M0tkC2MXOnhfqBWDT&{SEED_SECRET}");
        let mut mac = <M as Mac>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(base.as_bytes());
        let signature = encode(&BASE64.encode(mac.finalize().into_bytes()));
        format!("{}, oauth_signature=\"{signature}\"", header.join(", "))
    }

    #[test]
    fn hmac_signatures_cover_the_request() {
        let check = |header: &str, method: &str, target: &str, expect: bool| {
            assert_eq!(
                verified(header, method, target),
                expect,
                "{method} {target}"
            );
        };
        let bare = hmac_header::<Hmac<Sha512>>("HMAC-SHA512", &[]);
        check(&bare, "GET", "/v2/self", true);
        // The Go client does not sign the query.
        check(&bare, "GET", "/v2/self?status=ACTIVE", true);
        check(&bare, "POST", "/v2/self", false);
        check(&bare, "GET", "/v2/summary", false);
        check(&bare.replace("n1", "n2"), "GET", "/v2/self", false);
        check(&bare.replace("T5nFjK", "other"), "GET", "/v2/self", false);
        check(&bare.replace("SHA512", "SHA1"), "GET", "/v2/self", false);

        let query =
            hmac_header::<Hmac<Sha512>>("HMAC-SHA512", &[("a", "x y"), ("status", "ACTIVE")]);
        check(&query, "GET", "/v2/self?status=ACTIVE&a=x+y", true);
        check(&query, "GET", "/v2/self?a=x%20y&status=ACTIVE", true);
        check(&query, "GET", "/v2/self?status=FAILED&a=x+y", false);

        check(
            &hmac_header::<Hmac<Sha1>>("HMAC-SHA1", &[]),
            "GET",
            "/v2/self",
            true,
        );
    }
}
