//! Simple tokens: random words in memory that stand for a user, as etcd's are by default.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::distr::{Alphabetic, SampleString as _};

use crate::clock::Timestamp;

/// How long a token lives without being used.
const TTL: Duration = Duration::from_secs(300);
const LEN: usize = 16;
/// Tokens at once; the ones used longest ago go.
const TOKENS: usize = 100_000;

#[derive(Debug, Default)]
pub struct Tokens {
    tokens: HashMap<String, Token>,
}

#[derive(Debug)]
struct Token {
    user: Arc<str>,
    deadline: Timestamp,
}

impl Tokens {
    /// A new token; `index` makes it unique for sure.
    pub fn assign(&mut self, user: &str, index: i64, now: Timestamp) -> String {
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
            deadline: now.saturating_add(TTL),
        };
        self.tokens.insert(word.clone(), token);
        word
    }

    /// Whose token it is. Its life begins anew.
    pub fn user(&mut self, word: &str, now: Timestamp) -> Option<Arc<str>> {
        let token = self.tokens.get_mut(word)?;
        if token.deadline <= now {
            self.tokens.remove(word);
            return None;
        }
        token.deadline = now.saturating_add(TTL);
        Some(Arc::clone(&token.user))
    }

    pub fn forget_user(&mut self, user: &str) {
        self.tokens.retain(|_, token| token.user.as_ref() != user);
    }

    pub fn forget_all(&mut self) {
        self.tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_while_it_is_used() {
        let mut tokens = Tokens::default();
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
