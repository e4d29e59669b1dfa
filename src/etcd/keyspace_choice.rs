//! Which keyspace a connection is for: its client's certificate may say, or the user who gives a password on it.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;

use super::auth::InvalidToken;
use super::service::Api;

/// From the common name of a client's certificate to a keyspace.
///
/// Written `alice=blue,bob=green,*`: alice gets the keyspace `blue`, bob gets `green`, and for
/// everybody else the keyspace has the certificate's common name. Without the `*` everybody else
/// gets the default keyspace, as clients without a certificate do in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceByCn {
    named: HashMap<String, String>,
    by_own_name: bool,
}

impl KeyspaceByCn {
    /// The keyspace of the client with this common name; `None` is the default one.
    pub fn keyspace<'a>(&'a self, common_name: &'a str) -> Option<&'a str> {
        match self.named.get(common_name) {
            Some(keyspace) => Some(keyspace),
            None => self.by_own_name.then_some(common_name),
        }
    }

    /// Whether every client gets the default keyspace.
    pub fn is_off(&self) -> bool {
        self.named.is_empty() && !self.by_own_name
    }
}

impl FromStr for KeyspaceByCn {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyspaceByCn, String> {
        let mut choice = KeyspaceByCn::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            if part == "*" {
                choice.by_own_name = true;
                continue;
            }
            // A common name may contain `=`, a keyspace's name may not.
            match part.rsplit_once('=') {
                Some((name, keyspace)) if !name.is_empty() && !keyspace.is_empty() => {
                    let before = choice.named.insert(name.to_owned(), keyspace.to_owned());
                    if before.is_some() {
                        return Err(format!("`{name}` is given two keyspaces"));
                    }
                }
                _ => return Err(format!("`{part}`: expected CN=KEYSPACE or *")),
            }
        }
        Ok(choice)
    }
}

/// From a user's name to the keyspace that has the user.
///
/// Written `alice=blue,bob=green`: alice's password and tokens are those of the keyspace `blue`, and open no other. Users who
/// are not named are the default keyspace's. There is no `*`: whoever can connect may say that they are anybody, and would make keyspaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceByUser {
    named: HashMap<String, Arc<str>>,
}

impl KeyspaceByUser {
    /// The keyspace of the user; `None` is the connection's own.
    pub fn keyspace(&self, user: &str) -> Option<&Arc<str>> {
        self.named.get(user)
    }

    pub fn is_off(&self) -> bool {
        self.named.is_empty()
    }

    /// What a client is given for a token of a keyspace, so that it is known again on any connection.
    pub fn outer_token(keyspace: &str, token: &str) -> String {
        format!("{}:{token}", URL_SAFE_NO_PAD.encode(keyspace))
    }

    /// Splits what [`KeyspaceByUser::outer_token`] has made. `None` if no user has such a keyspace.
    fn inner_token<'a>(&self, keyspace: &str, token: &'a str) -> Option<(&Arc<str>, &'a str)> {
        let keyspace = URL_SAFE_NO_PAD.decode(keyspace).ok()?;
        let mut keyspaces = self.named.values();
        let keyspace = keyspaces.find(|it| it.as_bytes() == keyspace)?;
        Some((keyspace, token))
    }
}

impl FromStr for KeyspaceByUser {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyspaceByUser, String> {
        let mut choice = KeyspaceByUser::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            // A user's name may contain `=`, a keyspace's name may not.
            match part.rsplit_once('=') {
                Some((user, keyspace)) if !user.is_empty() && !keyspace.is_empty() => {
                    let before = choice.named.insert(user.to_owned(), Arc::from(keyspace));
                    if before.is_some() {
                        return Err(format!("`{user}` is given two keyspaces"));
                    }
                }
                _ => return Err(format!("`{part}`: expected USER=KEYSPACE")),
            }
        }
        Ok(choice)
    }
}

/// The keyspace of a connection whose users may choose it.
///
/// Requests with a token go to the keyspace of the token. Those without go to that of the user who last gave a name over gRPC,
/// whether it was let in or not: a client goes on without a token if the keyspace asks for none, and must not end up
/// in another one.
#[derive(Clone, Default)]
pub struct Chosen(Arc<Mutex<Choice>>);

/// A keyspace that is not the connection's own, and its services.
type Choice = Option<(Arc<str>, Api)>;

impl Chosen {
    /// From now on the connection is for this keyspace; `None` is its own.
    pub fn choose(&self, keyspace: Choice) {
        *self.0.lock() = keyspace;
    }

    /// The services that the request is for, of which `own` are the connection's. They see the token as the keyspace gave it.
    pub fn api<T>(&self, own: &Api, request: &mut http::Request<T>) -> Api {
        const TOKEN: HeaderName = HeaderName::from_static("token");
        let server = &own.backend().server;
        let by_user = &server.config.keyspace_by_user;
        let name = [TOKEN, AUTHORIZATION]
            .into_iter()
            .find(|name| request.headers().contains_key(name));
        let found = name.as_ref().and_then(|name| request.headers().get(name));
        let token = found.and_then(|token| token.to_str().ok());
        let token = token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token));
        let api = match token.map(|token| token.split_once(':')) {
            None => {
                let chosen = self.0.lock();
                chosen.as_ref().map_or(own, |(_, api)| api).clone()
            }
            Some(None) => own.clone(),
            Some(Some((keyspace, token))) => match by_user.inner_token(keyspace, token) {
                Some((keyspace, token)) => {
                    let chosen = self.0.lock();
                    let api = match chosen.as_ref() {
                        Some((chosen, api)) if chosen == keyspace => api.clone(),
                        _ => server.api(keyspace, &own.backend().draining),
                    };
                    drop(chosen);
                    let inner = HeaderValue::from_str(token).ok();
                    if let (Some(name), Some(inner)) = (name, inner) {
                        request.headers_mut().insert(name, inner);
                    }
                    api
                }
                None => {
                    request.extensions_mut().insert(InvalidToken);
                    own.clone()
                }
            },
        };
        request.extensions_mut().insert(self.clone());
        api
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let check = |rule: &str, name: &str, expect: Option<&str>| {
            let choice: KeyspaceByCn = rule.parse().expect("a rule");
            assert_eq!(choice.keyspace(name), expect, "{rule}: {name}");
        };
        check("", "alice", None);
        check("*", "alice", Some("alice"));
        check("alice=blue,bob=green", "bob", Some("green"));
        check("alice=blue,bob=green", "carol", None);
        check("alice=blue,*", "alice", Some("blue"));
        check("alice=blue,*", "carol", Some("carol"));
        check("a=b=c", "a=b", Some("c"));
        for wrong in ["alice", "=blue", "alice=", "a=b,a=c", "a=b,**"] {
            assert!(wrong.parse::<KeyspaceByCn>().is_err(), "{wrong}");
        }
        assert!(KeyspaceByCn::default().is_off());
    }

    #[test]
    fn tokens_name_the_keyspace_of_a_user_and_no_other() {
        let by_user: KeyspaceByUser = "alice=blue,a=b=gr\u{fc}n".parse().expect("rules");
        for (user, keyspace) in [("alice", "blue"), ("a=b", "gr\u{fc}n")] {
            assert_eq!(by_user.keyspace(user).map(|it| &**it), Some(keyspace));
            let outer = KeyspaceByUser::outer_token(keyspace, "word.7");
            assert!(outer.is_ascii(), "{outer}");
            let (before, after) = outer.split_once(':').expect("two parts");
            let inner = by_user.inner_token(before, after);
            assert_eq!(
                inner.map(|(name, token)| (&**name, token)),
                Some((keyspace, "word.7"))
            );
        }
        assert_eq!(by_user.keyspace("bob"), None);
        let foreign = KeyspaceByUser::outer_token("red", "word.7");
        let (before, after) = foreign.split_once(':').expect("two parts");
        assert_eq!(by_user.inner_token(before, after), None);
        assert_eq!(by_user.inner_token("?", after), None);
        for wrong in ["alice", "=blue", "alice=", "a=b,a=c", "*"] {
            assert!(wrong.parse::<KeyspaceByUser>().is_err(), "{wrong}");
        }
    }
}
