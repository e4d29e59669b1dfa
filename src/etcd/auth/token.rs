//! Tokens: words that stand for a user, so that the password need not be sent, and hashed, with every request.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::distr::{Alphabetic, SampleString as _};

use super::jwt::{Jwt, JwtError};
use crate::clock::Timestamp;
use crate::etcd::error::Error;

/// How long a simple token lives without being used, unless said otherwise; etcd's.
pub const SIMPLE_TTL: Duration = Duration::from_secs(300);
const LEN: usize = 16;
/// Tokens at once; the ones used longest ago go.
const TOKENS: usize = 100_000;

/// What tokens a server gives, as `--auth-token` says.
#[derive(Clone, Debug, Default)]
pub enum TokenKind {
    /// Random words that the server remembers.
    #[default]
    Simple,
    /// Signed words.
    Jwt(Arc<Jwt>),
    /// None: clients show certificates.
    None,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenKindError {
    #[error("auth: invalid auth options: `{0}` is neither `simple` nor `jwt,…`")]
    Unknown(String),
    #[error(transparent)]
    Jwt(#[from] JwtError),
}

impl FromStr for TokenKind {
    type Err = TokenKindError;

    /// Reads the keys that are named.
    fn from_str(text: &str) -> Result<TokenKind, TokenKindError> {
        let (kind, options) = text.split_once(',').unwrap_or((text, ""));
        match kind {
            "simple" => Ok(TokenKind::Simple),
            "jwt" => Ok(TokenKind::Jwt(Arc::new(Jwt::parse(options)?))),
            "" if options.is_empty() => Ok(TokenKind::None),
            _ => Err(TokenKindError::Unknown(text.to_owned())),
        }
    }
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub user: Arc<str>,
    /// Of users, roles and permissions, if the token says so; else it is good at any.
    pub revision: Option<u64>,
}

/// The tokens of one keyspace.
#[derive(Debug)]
pub enum Tokens {
    Simple(Mutex<SimpleTokens>),
    Jwt {
        jwt: Arc<Jwt>,
        /// `None` for the default one.
        keyspace: Option<Arc<str>>,
    },
    None,
}

impl Tokens {
    /// `keyspace` is `None` for the default one, `ttl` of simple tokens.
    pub fn new(kind: &TokenKind, ttl: Duration, keyspace: Option<Arc<str>>) -> Tokens {
        match kind {
            TokenKind::Simple => Tokens::Simple(Mutex::new(SimpleTokens::new(ttl))),
            TokenKind::Jwt(jwt) => Tokens::Jwt {
                jwt: Arc::clone(jwt),
                keyspace,
            },
            TokenKind::None => Tokens::None,
        }
    }

    /// A token for a user whose password was checked at `revision`. `None` if `is_current` finds that it is not the
    /// revision any more. `index` makes a random word unique for sure.
    ///
    /// # Errors
    /// No tokens are given here.
    pub fn assign(
        &self,
        user: &str,
        revision: u64,
        index: i64,
        now: Timestamp,
        is_current: impl FnOnce(u64) -> bool,
    ) -> Result<Option<String>, Error> {
        match self {
            // Looked at with the tokens held: a change of the user is made before their tokens are forgotten, so either
            // it is seen here, or the token is there to be forgotten.
            Tokens::Simple(tokens) => {
                let mut tokens = tokens.lock();
                Ok(is_current(revision).then(|| tokens.assign(user, index, now)))
            }
            Tokens::Jwt { jwt, keyspace } => {
                let token = jwt.assign(user, revision, keyspace.as_deref(), now)?;
                Ok(is_current(revision).then_some(token))
            }
            Tokens::None => Err(Error::AuthFailed),
        }
    }

    /// Whose token it is. The life of a simple one begins anew.
    pub fn bearer(&self, token: &str, now: Timestamp) -> Option<Bearer> {
        match self {
            Tokens::Simple(tokens) => tokens.lock().user(token, now).map(|user| Bearer {
                user,
                revision: None,
            }),
            Tokens::Jwt { jwt, keyspace } => {
                let found = jwt.user(token, keyspace.as_deref(), now);
                found.map(|(user, revision)| Bearer {
                    user: Arc::from(user),
                    revision: Some(revision),
                })
            }
            Tokens::None => None,
        }
    }

    /// The user is gone, or has another password. A signed token ends with the revision that it names.
    pub fn forget_user(&self, user: &str) {
        if let Tokens::Simple(tokens) = self {
            tokens.lock().forget_user(user);
        }
    }

    pub fn forget_all(&self) {
        if let Tokens::Simple(tokens) = self {
            tokens.lock().forget_all();
        }
    }
}

/// Random words, in memory.
#[derive(Debug)]
pub struct SimpleTokens {
    tokens: HashMap<String, Token>,
    /// How long a token lives without being used.
    ttl: Duration,
}

#[derive(Debug)]
struct Token {
    user: Arc<str>,
    deadline: Timestamp,
}

impl SimpleTokens {
    fn new(ttl: Duration) -> SimpleTokens {
        SimpleTokens {
            tokens: HashMap::new(),
            ttl,
        }
    }

    /// A new token; `index` makes it unique for sure.
    fn assign(&mut self, user: &str, index: i64, now: Timestamp) -> String {
        if self.tokens.len() >= TOKENS {
            self.tokens.retain(|_, token| token.deadline > now);
        }
        if self.tokens.len() >= TOKENS {
            let oldest = self.tokens.iter().min_by_key(|(_, token)| token.deadline);
            if let Some(oldest) = oldest.map(|(word, _)| word.clone()) {
                self.tokens.remove(&oldest);
            }
        }
        let word = format!(
            "{}.{index}",
            Alphabetic.sample_string(&mut rand::rng(), LEN)
        );
        let token = Token {
            user: Arc::from(user),
            deadline: now.saturating_add(self.ttl),
        };
        self.tokens.insert(word.clone(), token);
        word
    }

    /// Whose token it is. Its life begins anew.
    fn user(&mut self, word: &str, now: Timestamp) -> Option<Arc<str>> {
        let token = self.tokens.get_mut(word)?;
        if token.deadline <= now {
            self.tokens.remove(word);
            return None;
        }
        token.deadline = now.saturating_add(self.ttl);
        Some(Arc::clone(&token.user))
    }

    fn forget_user(&mut self, user: &str) {
        self.tokens.retain(|_, token| token.user.as_ref() != user);
    }

    fn forget_all(&mut self) {
        self.tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_while_it_is_used() {
        let mut tokens = SimpleTokens::new(SIMPLE_TTL);
        let at = |seconds: i64| Timestamp(seconds * 1000);
        let word = tokens.assign("ada", 7, at(0));
        assert!(word.ends_with(".7") && word.len() == LEN + 2, "{word}");
        assert_eq!(tokens.user(&word, at(299)).as_deref(), Some("ada"));
        assert_eq!(tokens.user(&word, at(598)).as_deref(), Some("ada"));
        assert_eq!(tokens.user(&word, at(898)), None);
        let word = tokens.assign("ada", 8, at(0));
        let other = tokens.assign("bob", 9, at(0));
        tokens.forget_user("ada");
        assert_eq!(tokens.user(&word, at(1)), None);
        assert_eq!(tokens.user(&other, at(1)).as_deref(), Some("bob"));
        tokens.forget_all();
        assert_eq!(tokens.user(&other, at(1)), None);
    }
}
