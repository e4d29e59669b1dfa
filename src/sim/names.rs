//! What a scenario's names stand for: ids of what it created, and what it saved of answers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

#[derive(Debug, thiserror::Error)]
pub enum UnknownName {
    #[error("nothing was created or saved as `{0}`")]
    Unknown(String),
    #[error("`${{` without an end in `{0}`")]
    Unended(String),
}

#[derive(Default)]
pub struct Names {
    known: BTreeMap<String, String>,
}

impl Names {
    pub fn save(&mut self, name: &str, value: &str) {
        self.known.insert(name.to_owned(), value.to_owned());
    }

    pub fn get(&self, name: &str) -> Result<String, UnknownName> {
        let found = self.known.get(name).cloned();
        found.ok_or_else(|| UnknownName::Unknown(name.to_owned()))
    }

    /// Path of a cluster in the REST API.
    pub fn cluster(&self, name: &str) -> Result<String, UnknownName> {
        let (organisation, id) = (self.get("org")?, self.get(name)?);
        Ok(format!(
            "/v4/kubernetes/organisations/{organisation}/clusters/{id}"
        ))
    }

    /// Path of a node group, named `<cluster>.<group>`.
    pub fn node_group(&self, name: &str) -> Result<String, UnknownName> {
        let cluster = name.split('.').next().unwrap_or_default();
        let (cluster, id) = (self.cluster(cluster)?, self.get(name)?);
        Ok(format!("{cluster}/node-groups/{id}"))
    }

    /// Replaces every `${name}`.
    pub fn fill(&self, text: &str) -> Result<String, UnknownName> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let Some((name, after)) = after.split_once('}') else {
                return Err(UnknownName::Unended(text.to_owned()));
            };
            filled.push_str(&self.get(name)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    /// In every text of the value.
    pub fn fill_all(&self, value: &Value) -> Result<Value, UnknownName> {
        Ok(match value {
            Value::String(text) => Value::String(self.fill(text)?),
            Value::Array(items) => {
                let filled = items.iter().map(|item| self.fill_all(item));
                Value::Array(filled.collect::<Result<_, _>>()?)
            }
            Value::Object(object) => {
                let fill = |(key, item): (&String, &Value)| Ok((key.clone(), self.fill_all(item)?));
                let filled = object.iter().map(fill);
                Value::Object(filled.collect::<Result<Map<_, _>, UnknownName>>()?)
            }
            other => other.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_wherever_they_stand() {
        let mut names = Names::default();
        names.save("org", "orga_1");
        names.save("demo", "kubernetes_2");
        names.save("demo.w", "node_group_3");
        let check = |text: &str, expect: &str| {
            let filled = names.fill(text);
            let filled = filled.unwrap_or_else(|error| error.to_string());
            assert_eq!(filled, expect, "{text}");
        };
        check("plain", "plain");
        check("/${org}/x/${demo}", "/orga_1/x/kubernetes_2");
        check("${nobody}", "nothing was created or saved as `nobody`");
        check("${org", "`${` without an end in `${org`");
        let group = names.node_group("demo.w").expect("a path");
        assert_eq!(
            group,
            "/v4/kubernetes/organisations/orga_1/clusters/kubernetes_2/node-groups/node_group_3"
        );
        let value = serde_json::json!({"a": ["${org}", 1], "b": {"c": "${demo}"}});
        let expect = serde_json::json!({"a": ["orga_1", 1], "b": {"c": "kubernetes_2"}});
        assert_eq!(names.fill_all(&value).expect("names"), expect);
    }
}
