//! Identifiers: one spelling each, and nothing else is one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidId {
    pub text: String,
    pub expected: &'static str,
}

/// An organisation or a personal space: `orga_<uuid>` or `user_<uuid>`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OwnerId(String);

/// `kubernetes_` and a ULID in upper case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

/// `node_group_` and a ULID in upper case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeGroupId(String);

/// `node_` and a ULID in upper case; also the id of the node's VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

const OWNER: &str = "an owner id (orga_<uuid> or user_<uuid>)";

impl FromStr for OwnerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidId {
            text: text.to_owned(),
            expected: OWNER,
        };
        let lower = text.to_ascii_lowercase();
        let uuid = lower
            .strip_prefix("orga_")
            .or_else(|| lower.strip_prefix("user_"))
            .ok_or_else(invalid)?;
        // `Uuid` also reads forms without hyphens: the hyphenated one is 36 characters long.
        if uuid.len() != 36 || uuid::Uuid::try_parse(uuid).is_err() {
            return Err(invalid());
        }
        Ok(OwnerId(lower))
    }
}

/// A prefix and a ULID: `prefix` in lower case, 26 characters of Crockford's alphabet in upper case.
fn parse_ulid_id(text: &str, prefix: &str, expected: &'static str) -> Result<String, InvalidId> {
    let invalid = || InvalidId {
        text: text.to_owned(),
        expected,
    };
    let head = text.get(..prefix.len()).ok_or_else(invalid)?;
    let ulid = text.get(prefix.len()..).ok_or_else(invalid)?;
    let in_alphabet = |byte: u8| {
        // The CLI's own alphabet: it lets an L pass, which no ULID has.
        byte.is_ascii_digit() || (byte.is_ascii_uppercase() && !matches!(byte, b'I' | b'O' | b'U'))
    };
    let ulid = ulid.to_ascii_uppercase();
    if !head.eq_ignore_ascii_case(prefix) || ulid.len() != 26 || !ulid.bytes().all(in_alphabet) {
        return Err(invalid());
    }
    Ok(format!("{prefix}{ulid}"))
}

macro_rules! ulid_id {
    ($name:ident, $prefix:literal, $expected:literal) => {
        impl $name {
            pub const PREFIX: &'static str = $prefix;

            pub fn new(ulid: ulid::Ulid) -> $name {
                $name(format!(concat!($prefix, "{}"), ulid))
            }

            /// The 26 characters after the prefix.
            pub fn ulid(&self) -> &str {
                &self.0[$prefix.len()..]
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Any case is read; the id is kept in its one spelling.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_ulid_id(text, $prefix, $expected).map($name)
            }
        }
    };
}

macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

ulid_id!(ClusterId, "kubernetes_", "a cluster id (kubernetes_<ULID>)");
ulid_id!(
    NodeGroupId,
    "node_group_",
    "a node group id (node_group_<ULID>)"
);
ulid_id!(NodeId, "node_", "a node id (node_<ULID>)");
text_id!(OwnerId);
text_id!(ClusterId);
text_id!(NodeGroupId);
text_id!(NodeId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling() {
        let check = |text: &str, expect: Option<&str>| {
            let id = text.parse::<ClusterId>().ok();
            assert_eq!(id.as_ref().map(ClusterId::as_str), expect, "{text}");
        };
        let id = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
        check(id, Some(id));
        check(&id.to_lowercase(), Some(id));
        check("kubernetes_01KTREHTR6E4JEY46EPYBKY8X", None);
        check("kubernetes_01KTREHTR6E4JEY46EPYBKY8XU", None);
        check("kubernetes_01KTREHTR6E4JEY46EPYBKY/XG", None);
        check("node_group_01KTREHTR6E4JEY46EPYBKY8XG", None);
        check("kubernetes_é1KTREHTR6E4JEY46EPYBKY8X", None);
        check("", None);
    }

    #[test]
    fn owners_are_organisations_and_users() {
        let check = |text: &str, expect: bool| {
            assert_eq!(text.parse::<OwnerId>().is_ok(), expect, "{text}");
        };
        check("orga_3547a882-e464-4c34-8168-add4b3e0c135", true);
        check("user_3547a882-e464-4c34-8168-add4b3e0c135", true);
        check("ORGA_3547A882-E464-4C34-8168-ADD4B3E0C135", true);
        check("orga_3547a882e4644c348168add4b3e0c135", false);
        check("app_3547a882-e464-4c34-8168-add4b3e0c135", false);
        check("orga_", false);
    }
}
