//! Sets of fields, as managers of fields have them: paths through objects, and through lists whose elements are
//! told apart by keys.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// One step on the way to a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Field(String),
    /// The element of a list that these keys tell apart, as canonical JSON.
    Key(String),
    /// The element of a list of plain values, as JSON.
    Item(String),
}

pub type Path = Vec<Step>;
pub type Fields = BTreeSet<Path>;

/// Objects that are replaced as a whole, by the name of their field.
const ATOMIC: [&str; 11] = [
    "claimRef",
    "configMapKeyRef",
    "fieldRef",
    "involvedObject",
    "labelSelector",
    "namespaceSelector",
    "nodeSelector",
    "resourceFieldRef",
    "secretKeyRef",
    "selector",
    "targetRef",
];
/// Keys by which the elements of a list are told apart (`x-kubernetes-list-map-keys`); none for a list that is
/// replaced as a whole.
fn list_keys(field: &str, element: &Value) -> Option<&'static [&'static str]> {
    Some(match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets"
        | "resourceClaims" => &["name"],
        "ports" if !element["containerPort"].is_null() => &["containerPort", "protocol"],
        "ports" if !element["port"].is_null() => &["port", "protocol"],
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "conditions" | "addresses" => &["type"],
        "ownerReferences" => &["uid"],
        "hostAliases" | "podIPs" | "hostIPs" => &["ip"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        _ => return None,
    })
}

enum Shape<'a> {
    /// Fields that are managed one by one.
    Granular(&'a Map<String, Value>),
    /// Elements by their keys.
    Keyed(Vec<(String, &'a Value)>),
    Set(&'a [Value]),
    Atomic,
}

fn shape<'a>(field: &str, value: &'a Value) -> Shape<'a> {
    match value {
        Value::Object(map) if !ATOMIC.contains(&field) && !map.is_empty() => Shape::Granular(map),
        Value::Array(list) if field == "finalizers" => Shape::Set(list),
        Value::Array(list) if !list.is_empty() => {
            let keyed: Option<Vec<_>> = list
                .iter()
                .map(|element| Some((element_key(field, element)?, element)))
                .collect();
            keyed.map_or(Shape::Atomic, Shape::Keyed)
        }
        _ => Shape::Atomic,
    }
}

fn element_key(field: &str, element: &Value) -> Option<String> {
    let mut key = Map::new();
    for name in list_keys(field, element)? {
        let value = match &element[*name] {
            // The only key with a default.
            Value::Null if *name == "protocol" => json!("TCP"),
            Value::Null => return None,
            value => value.clone(),
        };
        key.insert((*name).to_owned(), value);
    }
    Some(Value::Object(key).to_string())
}

/// Paths of everything that the value says.
fn leaves(value: &Value) -> Fields {
    let mut found = Fields::new();
    collect("", value, &mut Vec::new(), &mut found);
    found
}

fn collect(field: &str, value: &Value, path: &mut Path, found: &mut Fields) {
    match shape(field, value) {
        Shape::Granular(map) => {
            for (name, value) in map {
                path.push(Step::Field(name.clone()));
                collect(name, value, path, found);
                path.pop();
            }
        }
        Shape::Keyed(elements) => {
            for (key, element) in elements {
                path.push(Step::Key(key));
                found.insert(path.clone());
                collect("", element, path, found);
                path.pop();
            }
        }
        Shape::Set(list) => {
            for element in list {
                path.push(Step::Item(element.to_string()));
                found.insert(path.clone());
                path.pop();
            }
        }
        Shape::Atomic => drop(found.insert(path.clone())),
    }
}

/// What is nobody's: it names the object, or the server sets it.
fn is_ignored(path: &[Step]) -> bool {
    let names: Vec<&str> = path
        .iter()
        .take(2)
        .map(|step| match step {
            Step::Field(name) => name.as_str(),
            _ => "",
        })
        .collect();
    match names.as_slice() {
        ["apiVersion" | "kind"] => true,
        ["metadata", field] => {
            !["labels", "annotations", "finalizers", "ownerReferences"].contains(field)
        }
        _ => false,
    }
}

pub fn managed_leaves(object: &Value) -> Fields {
    let mut fields = leaves(object);
    fields.retain(|path| !is_ignored(path));
    fields
}

fn position(list: &[Value], field: &str, step: &Step) -> Option<usize> {
    list.iter().position(|element| match step {
        Step::Key(key) => element_key(field, element).as_ref() == Some(key),
        Step::Item(item) => item.parse::<Value>().is_ok_and(|value| value == *element),
        Step::Field(_) => false,
    })
}

pub fn get<'a>(object: &'a Value, path: &[Step]) -> Option<&'a Value> {
    let (mut at, mut field) = (object, "");
    for step in path {
        match step {
            Step::Field(name) => {
                at = at.get(name)?;
                field = name;
            }
            step => {
                let list = at.as_array()?;
                at = &list[position(list, field, step)?];
                field = "";
            }
        }
    }
    Some(at)
}

/// Removes what is there, and objects that are left empty on the way.
pub fn remove(object: &mut Value, path: &[Step], field: &str) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    match first {
        Step::Field(name) => {
            let Some(map) = object.as_object_mut() else {
                return;
            };
            let Some(child) = map.get_mut(name) else {
                return;
            };
            let had = !is_empty(child);
            if !rest.is_empty() {
                remove(child, rest, name);
            }
            if rest.is_empty() || (had && is_empty(child)) {
                map.remove(name);
            }
        }
        step => {
            let Some(list) = object.as_array_mut() else {
                return;
            };
            let Some(index) = position(list, field, step) else {
                return;
            };
            if rest.is_empty() {
                list.remove(index);
            } else {
                remove(&mut list[index], rest, "");
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value == &json!({}) || value == &json!([])
}

pub fn merge(live: &mut Value, applied: &Value, field: &str) {
    match shape(field, applied) {
        Shape::Granular(map) => {
            if !live.is_object() {
                *live = json!({});
            }
            for (name, value) in map {
                merge(&mut live[name], value, name);
            }
        }
        Shape::Keyed(elements) => {
            if !live.is_array() {
                *live = json!([]);
            }
            let Some(list) = live.as_array_mut() else {
                return;
            };
            for (key, element) in elements {
                match position(list, field, &Step::Key(key)) {
                    Some(index) => merge(&mut list[index], element, ""),
                    None => list.push(element.clone()),
                }
            }
        }
        Shape::Set(elements) => {
            if !live.is_array() {
                *live = json!([]);
            }
            let Some(list) = live.as_array_mut() else {
                return;
            };
            for element in elements {
                if !list.contains(element) {
                    list.push(element.clone());
                }
            }
        }
        Shape::Atomic => *live = applied.clone(),
    }
}

/// As errors name a field: `.spec.containers[name="c"].image`.
pub fn written(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) => {
                text.push('.');
                text.push_str(name);
            }
            Step::Key(key) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                text.push_str(&format!("[{}]", keys.join(",")));
            }
            Step::Item(item) => text.push_str(&format!("[={item}]")),
        }
    }
    text
}

/// Whether the field is one by which an element of a list is told apart.
pub fn is_key(path: &[Step]) -> bool {
    let [.., Step::Key(key), Step::Field(name)] = path else {
        return false;
    };
    let keys: BTreeMap<String, Value> = serde_json::from_str(key).unwrap_or_default();
    keys.contains_key(name)
}
