//! JSON Web Tokens: signed words that say who somebody is, so that no server has to remember it.

use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Number;

use crate::clock::Timestamp;
use crate::etcd::error::Error;

const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// Why `--auth-token` is of no use. The texts begin with etcd's.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("auth: invalid auth signature method: `{0}`")]
    Method(String),
    #[error("auth: invalid auth options: `{0}`")]
    Option(String),
    #[error("auth: missing key data: {0} needs priv-key, or pub-key to verify alone")]
    MissingKey(&'static str),
    #[error("auth: public and private keys don't match")]
    Mismatch,
    #[error("cannot read `{path}`: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error(
        "`{path}` is no key for {method} in PEM (for ES256, ES384 and EdDSA: PKCS#8): {source}"
    )]
    Key {
        path: String,
        method: String,
        source: jsonwebtoken::errors::Error,
    },
}

/// What a token says. Names are etcd's.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    username: String,
    /// Of users, roles and permissions, when the password was checked.
    revision: Number,
    /// Seconds since 1970, exclusively. A token without it does not run out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<Number>,
    /// Seconds since 1970 from which on it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<Number>,
    /// The keyspace whose user it is. Without it, the default keyspace's: so tokens that others sign for etcd are good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyspace: Option<String>,
}

pub struct Jwt {
    algorithm: Algorithm,
    /// Without it tokens are verified, and none are given.
    private: Option<EncodingKey>,
    public: DecodingKey,
    validation: Validation,
    ttl: Duration,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Jwt");
        shown
            .field("algorithm", &self.algorithm)
            .field("ttl", &self.ttl);
        shown.finish_non_exhaustive()
    }
}

fn float(number: &Number) -> Option<f64> {
    number.as_f64().filter(|number| number.is_finite())
}

type Parse<K> = fn(&[u8]) -> Result<K, jsonwebtoken::errors::Error>;

/// How keys of the algorithm are read.
fn parsers(algorithm: Algorithm) -> (Parse<EncodingKey>, Parse<DecodingKey>) {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => (
            |key| Ok(EncodingKey::from_secret(key)),
            |key| Ok(DecodingKey::from_secret(key)),
        ),
        Algorithm::ES256 | Algorithm::ES384 => (EncodingKey::from_ec_pem, DecodingKey::from_ec_pem),
        Algorithm::EdDSA => (EncodingKey::from_ed_pem, DecodingKey::from_ed_pem),
        _ => (EncodingKey::from_rsa_pem, DecodingKey::from_rsa_pem),
    }
}

fn read<K>(path: &str, method: &str, parse: Parse<K>) -> Result<K, JwtError> {
    let bytes = std::fs::read(path).map_err(|source| JwtError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes).map_err(|source| JwtError::Key {
        path: path.to_owned(),
        method: method.to_owned(),
        source,
    })
}

impl Jwt {
    /// From what follows `jwt,`: `pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=DURATION`.
    ///
    /// # Errors
    /// An option or a key is missing, wrong, or does not go with the others.
    pub fn parse(options: &str) -> Result<Jwt, JwtError> {
        let (mut public, mut private, mut method, mut ttl) = (None, None, None, None);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let wrong = || JwtError::Option(option.to_owned());
            let (name, value) = option.split_once('=').ok_or_else(wrong)?;
            let place = match name {
                "pub-key" => &mut public,
                "priv-key" => &mut private,
                "sign-method" => &mut method,
                "ttl" => &mut ttl,
                _ => {
                    tracing::warn!(option = name, "unknown JWT option");
                    continue;
                }
            };
            if value.contains('=') || place.replace(value).is_some() {
                return Err(wrong());
            }
        }
        let ttl = match ttl.filter(|ttl| !ttl.is_empty()) {
            Some(ttl) => humantime::parse_duration(ttl)
                .map_err(|_| JwtError::Option(format!("ttl={ttl}")))?,
            None => DEFAULT_TTL,
        };
        let method = method.unwrap_or_default();
        let unknown = |_| JwtError::Method(method.to_owned());
        let algorithm: Algorithm = method.parse().map_err(unknown)?;
        let (private_key, public_key) = parsers(algorithm);
        let secret = matches!(
            algorithm,
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
        );
        let keys = [private, public].map(|path| path.filter(|path| !path.is_empty()));
        let (private, public) = match keys {
            // As in etcd, the secret is what stands for the private key.
            [Some(path), _] if secret => (
                Some(read(path, method, private_key)?),
                read(path, method, public_key)?,
            ),
            [None, _] if secret => return Err(JwtError::MissingKey("HMAC")),
            [Some(path), public] => {
                let key = read(path, method, private_key)?;
                let of_private = Jwk::from_encoding_key(&key, algorithm)
                    .and_then(|jwk| DecodingKey::from_jwk(&jwk))
                    .map_err(|source| JwtError::Key {
                        path: path.to_owned(),
                        method: method.to_owned(),
                        source,
                    })?;
                match public {
                    Some(path) => (Some(key), read(path, method, public_key)?),
                    None => (Some(key), of_private),
                }
            }
            [None, Some(path)] => (None, read(path, method, public_key)?),
            [None, None] => return Err(JwtError::MissingKey("the sign-method")),
        };
        let mut validation = Validation::new(algorithm);
        // Times are this server's own clock's, without leeway, as etcd's.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let jwt = Jwt {
            algorithm,
            private,
            public,
            validation,
            ttl,
        };
        if jwt.private.is_some() {
            let probe = jwt.assign("", 1, None, Timestamp(0));
            let probe = probe.map_err(|_| JwtError::Mismatch)?;
            jwt.claims(&probe).ok_or(JwtError::Mismatch)?;
        }
        Ok(jwt)
    }

    /// A token for the user; `keyspace` is `None` for the default one.
    ///
    /// # Errors
    /// There is no key to sign with, or it cannot sign.
    pub fn assign(
        &self,
        user: &str,
        revision: u64,
        keyspace: Option<&str>,
        now: Timestamp,
    ) -> Result<String, Error> {
        let key = self.private.as_ref().ok_or(Error::VerifyOnly)?;
        let deadline = now.saturating_add(self.ttl).0.div_euclid(1000);
        let claims = Claims {
            username: user.to_owned(),
            revision: revision.into(),
            exp: Some(deadline.into()),
            nbf: None,
            keyspace: keyspace.map(str::to_owned),
        };
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, key).map_err(|error| {
            tracing::error!(%error, "a token cannot be signed");
            Error::AuthFailed
        })
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let decoded = jsonwebtoken::decode(token, &self.public, &self.validation);
        decoded.ok().map(|decoded| decoded.claims)
    }

    /// Whose token it is, and the revision it was given at.
    pub fn user(
        &self,
        token: &str,
        keyspace: Option<&str>,
        now: Timestamp,
    ) -> Option<(String, u64)> {
        let claims = self.claims(token)?;
        let seconds = now.0 as f64 / 1000.0;
        let until = claims.exp.as_ref().map_or(Some(f64::INFINITY), float)?;
        let from = claims.nbf.as_ref().map_or(Some(0.0), float)?;
        if seconds >= until || seconds < from || claims.keyspace.as_deref() != keyspace {
            return None;
        }
        // As in etcd, a fraction is cut off.
        Some((claims.username, float(&claims.revision)? as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that nothing but the tests knows of.
    fn options(text: &str) -> String {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/jwt/");
        text.replace("@", directory)
    }

    fn parse(text: &str) -> Result<Jwt, JwtError> {
        Jwt::parse(&options(text))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    #[test]
    fn a_token_says_who_and_when() {
        for text in [
            "sign-method=HS256,priv-key=@hmac.txt",
            "sign-method=HS512,priv-key=@hmac.txt",
            "sign-method=RS256,priv-key=@rsa.pem",
            "sign-method=RS384,priv-key=@rsa.pem,pub-key=@rsa.pub.pem",
            "sign-method=PS256,priv-key=@rsa.pem",
            "sign-method=ES256,priv-key=@ec.pem",
            "pub-key=@ec.pub.pem,priv-key=@ec.pem,sign-method=ES256,ttl=",
            "sign-method=EdDSA,priv-key=@ed.pem,pub-key=@ed.pub.pem,ttl=5m",
        ] {
            let jwt = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let token = jwt.assign("ada", 7, None, at(100)).expect("a token");
            let user = |keyspace, seconds| jwt.user(&token, keyspace, at(seconds));
            assert_eq!(user(None, 100), Some(("ada".to_owned(), 7)), "{text}");
            assert_eq!(user(None, 399), Some(("ada".to_owned(), 7)), "{text}");
            assert_eq!(user(None, 400), None, "{text}");
            assert_eq!(user(Some("other"), 100), None, "{text}");
            let broken = format!("{}x", &token[..token.len() - 1]);
            let cut = token.trim_end_matches(|it| it != '.');
            for token in [broken.as_str(), cut, "", "a.b.c"] {
                assert_eq!(jwt.user(token, None, at(100)), None, "{text}: {token}");
            }
        }
    }

    #[test]
    fn a_token_is_of_one_keyspace() {
        let jwt = parse("sign-method=HS256,priv-key=@hmac.txt").expect("options");
        let token = jwt.assign("ada", 7, Some("a"), at(0)).expect("a token");
        let user = |keyspace| jwt.user(&token, keyspace, at(0)).is_some();
        assert_eq!(
            [user(Some("a")), user(Some("b")), user(None)],
            [true, false, false]
        );
    }

    #[test]
    fn whoever_has_the_public_key_alone_gives_no_tokens() {
        let signer = parse("sign-method=ES256,priv-key=@ec.pem").expect("options");
        let token = signer.assign("ada", 7, None, at(0)).expect("a token");
        let check = |text: &str, expect: bool| {
            let verifier = parse(text).expect("options");
            assert_eq!(
                verifier.user(&token, None, at(0)).is_some(),
                expect,
                "{text}"
            );
            let given = verifier.assign("ada", 7, None, at(0));
            assert_eq!(given.err(), Some(Error::VerifyOnly), "{text}");
        };
        check("sign-method=ES256,pub-key=@ec.pub.pem", true);
        check("sign-method=ES256,pub-key=@other.pub.pem", false);
        check("sign-method=RS256,pub-key=@rsa.pub.pem", false);
    }

    /// A public key is no secret: a token that was signed with it as one is a forgery.
    #[test]
    fn the_method_is_the_servers_choice() {
        let forger = parse("sign-method=HS256,priv-key=@rsa.pub.pem").expect("options");
        let token = forger.assign("root", 7, None, at(0)).expect("a token");
        let jwt = parse("sign-method=RS256,priv-key=@rsa.pem").expect("options");
        assert_eq!(jwt.user(&token, None, at(0)), None);
        // {"alg":"none","typ":"JWT"}
        let claims = token.split('.').nth(1).expect("claims");
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
        assert_eq!(jwt.user(&unsigned, None, at(0)), None);
    }

    #[test]
    fn claims_are_read_as_etcd_reads_them() {
        let jwt = parse("sign-method=HS256,priv-key=@hmac.txt").expect("options");
        let key = EncodingKey::from_secret(&std::fs::read(options("@hmac.txt")).expect("a key"));
        let check = |claims: serde_json::Value, expect: Option<u64>| {
            let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key);
            let found = jwt.user(&token.expect("a token"), None, at(50));
            assert_eq!(found.map(|(_, revision)| revision), expect, "{claims}");
        };
        use serde_json::json;
        check(json!({"username": "a", "revision": 7}), Some(7));
        check(
            json!({"username": "a", "revision": 7.9, "aud": "x", "exp": 50.5}),
            Some(7),
        );
        check(json!({"username": "a", "revision": 7, "nbf": 51}), None);
        check(
            json!({"username": "a", "revision": 7, "exp": "never"}),
            None,
        );
        check(json!({"username": "a", "revision": "7"}), None);
        check(json!({"username": 1, "revision": 7}), None);
        check(json!({"username": "a"}), None);
        check(json!({"revision": 7}), None);
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for (text, expect) in [
            ("", "auth: invalid auth signature method: ``"),
            (
                "sign-method=none",
                "auth: invalid auth signature method: `none`",
            ),
            (
                "sign-method=ES512,priv-key=@ec.pem",
                "auth: invalid auth signature method: `ES512`",
            ),
            ("sign-method", "auth: invalid auth options: `sign-method`"),
            (
                "ttl=1s,ttl=2s,sign-method=HS256",
                "auth: invalid auth options: `ttl=2s`",
            ),
            (
                "ttl=soon,sign-method=HS256",
                "auth: invalid auth options: `ttl=soon`",
            ),
            ("sign-method=HS256", "auth: missing key data"),
            ("sign-method=RS256", "auth: missing key data"),
            (
                "sign-method=ES256,priv-key=@ec.pem,pub-key=@other.pub.pem",
                "auth: public and private keys don't match",
            ),
            (
                "sign-method=ES256,priv-key=@rsa.pem",
                "`@rsa.pem` is no key for ES256",
            ),
            (
                "sign-method=ES384,priv-key=@ec.pem",
                "`@ec.pem` is no key for ES384",
            ),
            (
                "sign-method=RS256,priv-key=@nothing",
                "cannot read `@nothing`",
            ),
        ] {
            let error = parse(text)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.starts_with(&options(expect)), "{text}: {error}");
        }
    }
}
