//! Manifests that an owner has applied to a cluster around a redeployment of its control plane
//! (`contracts/cke-models.md` 4.11): some before it, some after it.
//!
//! Each is applied once the redeployment comes to it, and again after a kill: applying is idempotent. What the
//! cluster's API refuses ends the redeployment; it can be resumed from there.

use serde::{Deserialize, Serialize};

use crate::kubernetes::manifest;

use super::Result;
use super::deployment_event::Step;
use super::error::PlatformError;

/// All manifests together: they are part of the cluster's record while they are needed.
pub const LIMIT_BYTES: usize = 256 << 10;

/// Texts in YAML, each of one or several objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    before: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<String>,
}

impl Hooks {
    /// # Errors
    /// One is no manifest, or all together are more than [`LIMIT_BYTES`].
    pub fn new(before: Vec<String>, after: Vec<String>) -> Result<Hooks> {
        let mut size = 0;
        for (field, texts) in [("beforeYamls", &before), ("afterYamls", &after)] {
            for (index, text) in texts.iter().enumerate() {
                let field = format!("{field}[{index}]");
                size += text.len();
                if size > LIMIT_BYTES {
                    let reason = format!("must have at most {LIMIT_BYTES} bytes together");
                    return Err(PlatformError::invalid(field, text.len(), reason));
                }
                if let Err(error) = manifest::parse(text) {
                    let shown: String = text.chars().take(64).collect();
                    return Err(PlatformError::invalid(field, shown, error.to_string()));
                }
            }
        }
        Ok(Hooks { before, after })
    }

    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// What a step applies.
    pub fn of(&self, step: Step) -> &[String] {
        match step {
            Step::RedeployBeforeYaml => &self.before,
            Step::RedeployAfterYaml => &self.after,
            _ => &[],
        }
    }

    /// The step, if it has anything to apply.
    pub fn step(&self, step: Step) -> Option<Step> {
        (!self.of(step).is_empty()).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_applied_is_refused_with_its_place() {
        let good = || String::from("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n");
        let check = |before: Vec<String>, after: Vec<String>, expect: &str| {
            let error = Hooks::new(before, after).expect_err(expect).to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(vec![good(), String::from("a: [")], vec![], "beforeYamls[1]");
        check(vec![], vec![String::from("kind: Pod")], "afterYamls[0]");
        let long = format!("{}#{}", good(), "x".repeat(LIMIT_BYTES));
        check(vec![good()], vec![long], "at most 262144 bytes together");
        let hooks = Hooks::new(vec![good()], Vec::new()).expect("manifests");
        assert_eq!(
            hooks.step(Step::RedeployBeforeYaml),
            Some(Step::RedeployBeforeYaml)
        );
        assert_eq!(hooks.step(Step::RedeployAfterYaml), None);
        assert!(hooks.of(Step::ControlPlaneBundle).is_empty());
    }
}
