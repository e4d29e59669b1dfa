//! Label and field selectors.

use serde_json::Value;

use crate::kubernetes::status::ApiError;

/// What a list or watch is limited to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// Fields that every kind can be selected by, and those of some kinds.
const FIELDS: [&str; 12] = [
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.unschedulable",
    "status.phase",
    "type",
    "reason",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
];

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`; empty texts select everything.
    pub fn parse(labels: &str, fields: &str) -> Result<Selector, ApiError> {
        Ok(Selector {
            labels: parse_labels(labels).ok_or_else(|| {
                ApiError::bad_request(format!("unable to parse requirement: {labels}"))
            })?,
            fields: parse_fields(fields)?,
        })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let by_label = self.labels.iter().all(|requirement| {
            let value = labels[&requirement.key].as_str();
            match &requirement.operator {
                Operator::In(values) => {
                    value.is_some_and(|value| values.iter().any(|allowed| allowed == value))
                }
                Operator::NotIn(values) => {
                    value.is_none_or(|value| values.iter().all(|refused| refused != value))
                }
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        });
        by_label
            && self
                .fields
                .iter()
                .all(|(path, equal, value)| (field(object, path) == *value) == *equal)
    }
}

/// Whether an object's `LabelSelector` selects these labels. None selects nothing, an empty one everything.
pub fn matches_selector(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let wanted = selector["matchLabels"].as_object();
    let all = wanted
        .into_iter()
        .flatten()
        .all(|(key, value)| labels[key] == *value);
    all && selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .all(|requirement| matches_requirement(requirement, labels))
}

/// `{key, operator, values}`, as label selectors and node affinities have it.
pub fn matches_requirement(requirement: &Value, labels: &Value) -> bool {
    let key = requirement["key"].as_str().unwrap_or("");
    let value = labels[key].as_str();
    let values = requirement["values"].as_array();
    let listed = |value: &str| values.into_iter().flatten().any(|one| one == value);
    let bound = || values?.first()?.as_str()?.parse::<i64>().ok();
    let number = || value?.parse::<i64>().ok();
    match requirement["operator"].as_str().unwrap_or("") {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => matches!((number(), bound()), (Some(is), Some(than)) if is > than),
        "Lt" => matches!((number(), bound()), (Some(is), Some(than)) if is < than),
        _ => false,
    }
}

/// A `LabelSelector` as `labelSelector` in a query writes it.
pub fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object();
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    for requirement in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = requirement["key"].as_str().unwrap_or("");
        let values: Vec<&str> = requirement["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        terms.push(match requirement["operator"].as_str().unwrap_or("") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.sort();
    terms.join(",")
}

/// A field as text; one that is not there is empty, or false.
fn field(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, part| &value[part]);
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        _ if path == "spec.unschedulable" => String::from("false"),
        _ => String::new(),
    }
}

fn parse_fields(text: &str) -> Result<Vec<(String, bool, String)>, ApiError> {
    let mut fields = Vec::new();
    for term in text.split(',').filter(|term| !term.is_empty()) {
        let parsed = if let Some((path, value)) = term.split_once("!=") {
            (path, false, value)
        } else if let Some((path, value)) = term.split_once("==") {
            (path, true, value)
        } else if let Some((path, value)) = term.split_once('=') {
            (path, true, value)
        } else {
            return Err(ApiError::bad_request(format!(
                "invalid selector: '{term}'; can't understand '{term}'"
            )));
        };
        let (path, equal, value) = parsed;
        if !FIELDS.contains(&path) {
            return Err(ApiError::bad_request(format!(
                "field label not supported: {path}"
            )));
        }
        fields.push((path.to_owned(), equal, value.to_owned()));
    }
    Ok(fields)
}

/// `a=b,c!=d,e in (f,g),h notin (i),j,!k`. None if it cannot be understood.
fn parse_labels(text: &str) -> Option<Vec<Requirement>> {
    let mut requirements = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        // A comma inside parentheses does not end the term.
        let mut depth = 0;
        let end = rest
            .find(|character| {
                match character {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                character == ',' && depth == 0
            })
            .unwrap_or(rest.len());
        requirements.push(parse_label(rest[..end].trim())?);
        rest = rest.get(end + 1..).unwrap_or("").trim();
    }
    Some(requirements)
}

fn parse_label(term: &str) -> Option<Requirement> {
    let requirement = |key: &str, operator| {
        let key = key.trim();
        let legal =
            |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
        (!key.is_empty() && key.chars().all(legal)).then(|| Requirement {
            key: key.to_owned(),
            operator,
        })
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some(key) = term.strip_prefix('!') {
        return requirement(key, Operator::DoesNotExist);
    }
    if let Some((head, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        let (key, word) = head.trim().rsplit_once(' ')?;
        return match word {
            "in" => requirement(key, Operator::In(values)),
            "notin" => requirement(key, Operator::NotIn(values)),
            _ => None,
        };
    }
    if let Some((key, value)) = term.split_once("!=") {
        return requirement(key, Operator::NotIn(one(value)));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return requirement(key, Operator::In(one(value)));
    }
    requirement(term, Operator::Exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_of_objects_select_as_kubernetes_does() {
        let labels = json!({"app": "web", "zone": "3"});
        let check = |selector: Value, expect: bool| {
            assert_eq!(matches_selector(&selector, &labels), expect, "{selector}");
        };
        let term = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(Value::Null, false);
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(json!({"matchLabels": {"app": "web", "tier": "x"}}), false);
        check(term("app", "In", &["api", "web"]), true);
        check(term("app", "NotIn", &["web"]), false);
        check(term("none", "NotIn", &["web"]), true);
        check(term("app", "Exists", &[]), true);
        check(term("app", "DoesNotExist", &[]), false);
        check(term("zone", "Gt", &["2"]), true);
        check(term("zone", "Lt", &["2"]), false);
        check(term("app", "Gt", &["2"]), false);
        let selector = json!({
            "matchLabels": {"b": "1"},
            "matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}],
        });
        assert_eq!(selector_text(&selector), "a in (x,y),b=1");
    }

    #[test]
    fn selectors_select_as_kubernetes_does() {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "prod", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}
        });
        let check = |labels: &str, fields: &str, expect: Option<bool>| {
            let selected = Selector::parse(labels, fields)
                .ok()
                .map(|s| s.matches(&pod));
            assert_eq!(selected, expect, "{labels} {fields}");
        };
        check("", "", Some(true));
        check("app=web", "", Some(true));
        check("app==web,tier=front", "", Some(true));
        check("app!=web", "", Some(false));
        check("missing!=x", "", Some(true));
        check("app in (api, web),tier", "", Some(true));
        check("app notin (api,web)", "", Some(false));
        check("!app", "", Some(false));
        check("!missing", "", Some(true));
        check("a b", "", None);
        check("app within (x)", "", None);
        check("", "metadata.name=web,status.phase!=Pending", Some(true));
        check("", "spec.nodeName=n2", Some(false));
        check("", "spec.unschedulable=false", Some(true));
        check("", "spec.color=red", None);
        check("", "metadata.name", None);
    }
}
