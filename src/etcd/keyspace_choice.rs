//! Which keyspace a connection is for: its client certificate may say.

use std::collections::HashMap;
use std::str::FromStr;

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
}
