//! Which versions of Kubernetes are out, and whether clusters are taken along.
//!
//! Three minor versions are supported (n-2). When another comes out, the oldest of them no longer is:
//! clusters that run it go on, their version check says so, and with the switch they are updated, one minor
//! version after the other, until they are supported again.

use serde::{Deserialize, Serialize};

use super::catalog::{Catalog, FIRST_NEWEST_MINOR, NEWEST_MINOR_LIMIT, minor};
use super::error::PlatformError;
use super::store::Change;
use super::{ATTEMPTS, Platform, Result, contention};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Releases {
    pub newest_minor: u32,
    /// Whether clusters whose version is no longer supported are updated by the platform; as the server was
    /// started, if absent.
    pub auto_upgrade: Option<bool>,
}

impl Default for Releases {
    fn default() -> Releases {
        Releases {
            newest_minor: FIRST_NEWEST_MINOR,
            auto_upgrade: None,
        }
    }
}

impl Releases {
    pub fn catalog(&self) -> Catalog {
        Catalog::new(self.newest_minor)
    }

    /// The version that a cluster at `version` is to be taken to, if any.
    pub fn due_update(&self, version: &str, by_default: bool) -> Option<String> {
        let catalog = self.catalog();
        let is_due = self.auto_upgrade.unwrap_or(by_default) && !catalog.is_supported(version);
        catalog.next_version(version).filter(|_| is_due)
    }
}

impl Platform {
    /// What can be ordered now, as far as is seen.
    pub fn catalog(&self) -> Catalog {
        self.store().seen_releases().catalog()
    }

    /// Whether the platform updates clusters by itself.
    pub fn upgrades_by_itself(&self) -> bool {
        let releases = self.store().seen_releases();
        releases
            .auto_upgrade
            .unwrap_or(self.inner.context.auto_upgrade)
    }

    /// Lets versions come out, up to `newest`, and switches automatic updates. What is `None` stays.
    ///
    /// # Errors
    /// No version, or one that is older than the newest that is out.
    pub async fn release(&self, newest: Option<&str>, auto_upgrade: Option<bool>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let mut releases = self.store().releases().await?;
            if let Some(newest) = newest {
                let out = releases.value.newest_minor;
                let reason = format!("must be from 1.{out} to 1.{NEWEST_MINOR_LIMIT}");
                match minor(newest).filter(|minor| *minor >= out) {
                    Some(minor) => releases.value.newest_minor = minor,
                    None => return Err(PlatformError::invalid("newest", newest, reason)),
                }
            }
            if auto_upgrade.is_some() {
                releases.value.auto_upgrade = auto_upgrade;
            }
            let mut change = Change::new();
            change.releases(&releases)?;
            if self.store().commit(change).await? {
                return Ok(());
            }
        }
        Err(contention("the list of versions"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_longer_supported_is_taken_along_and_one_version_at_a_time() {
        let check = |newest_minor, switch, version: &str, expect: Option<&str>| {
            let releases = Releases {
                newest_minor,
                auto_upgrade: switch,
            };
            let due = releases.due_update(version, false);
            assert_eq!(due.as_deref(), expect, "{releases:?} {version}");
        };
        check(36, Some(true), "1.34", None);
        check(37, Some(true), "1.34", Some("1.35"));
        check(40, Some(true), "1.34", Some("1.35"));
        check(37, Some(true), "1.35", None);
        check(37, Some(false), "1.34", None);
        check(37, None, "1.34", None);
        let by_default = Releases {
            newest_minor: 37,
            auto_upgrade: None,
        };
        assert_eq!(by_default.due_update("1.34", true).as_deref(), Some("1.35"));
    }
}
