//! `--store`: where everything is kept, as one text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::de::{self, Deserialize, Deserializer};

/// The prefix of an installation that does not name its own.
const DEFAULT_PREFIX: &str = "cke";

/// A store, as `embedded:DIR` or `fdb:///PATH/OF/CLUSTER_FILE[?prefix=NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// The embedded engine, in a directory of its own.
    Embedded(PathBuf),
    /// A FoundationDB cluster, or rather the part of it under a prefix: one installation.
    FoundationDb {
        cluster_file: PathBuf,
        prefix: String,
    },
}

impl StoreUrl {
    /// What a data directory holds unless the store is said to be elsewhere.
    pub fn in_directory(directory: &Path) -> StoreUrl {
        StoreUrl::Embedded(directory.join("store"))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Embedded(directory) => write!(f, "embedded:{}", directory.display()),
            StoreUrl::FoundationDb {
                cluster_file,
                prefix,
            } => write!(f, "fdb://{}?prefix={prefix}", cluster_file.display()),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<StoreUrl, String> {
        if let Some(directory) = text.strip_prefix("embedded:") {
            if directory.is_empty() {
                return Err(String::from("embedded: needs a directory: embedded:DIR"));
            }
            return Ok(StoreUrl::Embedded(PathBuf::from(directory)));
        }
        let Some(url) = text.strip_prefix("fdb://") else {
            return Err(String::from(
                "expected embedded:DIR or fdb:///PATH/fdb.cluster[?prefix=NAME]",
            ));
        };
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        if !path.starts_with('/') || path.len() == 1 {
            return Err(String::from(
                "the cluster file is an absolute path: fdb:///PATH/fdb.cluster",
            ));
        }
        let path = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| String::from("the path of the cluster file is not UTF-8"))?;
        let mut prefix = DEFAULT_PREFIX;
        for parameter in query.split('&').filter(|it| !it.is_empty()) {
            match parameter.split_once('=') {
                Some(("prefix", name)) => prefix = name,
                _ => {
                    return Err(format!("`{parameter}`: the only parameter is prefix=NAME"));
                }
            }
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if prefix.is_empty() || prefix.len() > fdb::PREFIX_LIMIT || !prefix.bytes().all(plain) {
            return Err(format!(
                "the prefix `{prefix}` is not 1 to {} letters, digits, `-`, `_` and `.`",
                fdb::PREFIX_LIMIT
            ));
        }
        Ok(StoreUrl::FoundationDb {
            cluster_file: PathBuf::from(path.as_ref()),
            prefix: prefix.to_owned(),
        })
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StoreUrl, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_one_text() {
        let check = |text: &str, expect: Result<&str, &str>| {
            let found = text.parse::<StoreUrl>().map(|url| url.to_string());
            match (found, expect) {
                (Ok(found), Ok(expect)) => assert_eq!(found, expect),
                (Err(found), Err(expect)) => assert!(found.contains(expect), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        };
        check("embedded:data", Ok("embedded:data"));
        check("embedded:/var/lib/cke", Ok("embedded:/var/lib/cke"));
        check(
            "fdb:///etc/foundationdb/fdb.cluster",
            Ok("fdb:///etc/foundationdb/fdb.cluster?prefix=cke"),
        );
        check(
            "fdb:///a%20b?prefix=x-1_y.z",
            Ok("fdb:///a b?prefix=x-1_y.z"),
        );
        check("embedded:", Err("needs a directory"));
        check("data", Err("expected embedded:DIR or fdb:///"));
        check("fdb://fdb.cluster", Err("absolute path"));
        check("fdb:///", Err("absolute path"));
        check("fdb:///f?prefix=", Err("letters, digits"));
        check("fdb:///f?prefix=a/b", Err("letters, digits"));
        check("fdb:///f?tls=1", Err("the only parameter"));
        let long = format!("fdb:///f?prefix={}", "x".repeat(fdb::PREFIX_LIMIT + 1));
        check(&long, Err("letters, digits"));
    }
}
