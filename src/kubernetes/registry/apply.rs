//! Server-side apply: who manages which fields, and what an applied configuration does to an object.
//!
//! ```text
//! a applies {replicas: 2, image: x}           a manages replicas and image
//! b updates {replicas: 3}                     b manages replicas, a the image
//! a applies {replicas: 2, image: x}           conflict with b; forced: replicas is 2, and a's again
//! a applies {image: x}                        what a alone managed and no longer names is removed
//! ```
//!
//! An object that was never applied has no record of its managers: its fields are then those of a manager
//! `before-first-apply`, as in Kubernetes; but for what `kubectl apply` has put into its annotation, which is the
//! applier's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::field_set::{Fields, Path, Step, get, is_key, managed_leaves, merge, remove, written};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BEFORE: &str = "before-first-apply";

/// What one manager manages.
#[derive(Clone, Debug, PartialEq)]
struct Manager {
    name: String,
    /// By apply; otherwise by writing.
    applies: bool,
    subresource: String,
    api_version: String,
    time: String,
    fields: Fields,
}

impl Manager {
    fn decode(entry: &Value) -> Manager {
        let text = |field: &str| entry[field].as_str().unwrap_or("").to_owned();
        let mut fields = Fields::new();
        decode_fields(&entry["fieldsV1"], &mut Vec::new(), &mut fields);
        Manager {
            name: text("manager"),
            applies: entry["operation"] == "Apply",
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            time: text("time"),
            fields,
        }
    }

    fn encode(&self) -> Value {
        let mut tree = json!({});
        for path in &self.fields {
            let mut at = &mut tree;
            for step in path {
                at = &mut at[match step {
                    Step::Field(name) => format!("f:{name}"),
                    Step::Key(key) => format!("k:{key}"),
                    Step::Item(item) => format!("v:{item}"),
                }];
                if at.is_null() {
                    *at = json!({});
                }
            }
            if matches!(path.last(), Some(Step::Key(_))) {
                at["."] = json!({});
            }
        }
        let operation = if self.applies { "Apply" } else { "Update" };
        let mut entry = json!({
            "manager": self.name, "operation": operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": tree,
        });
        if !self.time.is_empty() {
            entry["time"] = json!(self.time);
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }

    fn is(&self, name: &str, applies: bool, subresource: &str) -> bool {
        self.name == name && self.applies == applies && self.subresource == subresource
    }
}

impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if !self.applies {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// As kube-apiserver tells of conflicts.
pub fn told(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        );
    }
    let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for conflict in conflicts {
        let fields = by_manager.entry(&conflict.manager).or_default();
        fields.push(&conflict.field);
    }
    let mut lines = Vec::new();
    for (manager, fields) in by_manager {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(fields.into_iter().map(|field| format!("- {field}")));
    }
    let count = conflicts.len();
    format!("Apply failed with {count} conflicts: {}", lines.join("\n"))
}

fn decode_fields(tree: &Value, path: &mut Path, fields: &mut Fields) {
    let Some(map) = tree.as_object() else { return };
    if map.is_empty() && !path.is_empty() {
        fields.insert(path.clone());
    }
    for (name, below) in map {
        let step = match name.split_once(':') {
            Some(("f", name)) => Step::Field(name.to_owned()),
            Some(("k", key)) => Step::Key(key.to_owned()),
            Some(("v", item)) => Step::Item(item.to_owned()),
            _ => {
                fields.insert(path.clone());
                continue;
            }
        };
        path.push(step);
        decode_fields(below, path, fields);
        path.pop();
    }
}

fn decode(object: &Value) -> Vec<Manager> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().map(Manager::decode).collect()
}

fn encode(managers: &[Manager]) -> Value {
    let kept = managers.iter().filter(|it| !it.fields.is_empty());
    kept.map(Manager::encode).collect()
}

/// Who writes what, and when.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub time: &'a str,
}

/// A field that somebody else manages, and has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As errors name it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// Such as `.spec.replicas`.
    pub field: String,
}

/// The object as `config` makes it, its managers included, or the conflicts. `live` is the object as it is,
/// null if it is not.
pub fn apply(
    live: &Value,
    config: &Value,
    write: Write<'_>,
    force: bool,
) -> Result<Value, Vec<Conflict>> {
    let mut managers = decode(live);
    if managers.is_empty() && !live.is_null() {
        managers.extend(before_first(live, write));
    }
    let fields = managed_leaves(config);
    let mine = |it: &Manager| it.is(write.manager, true, write.subresource);
    let differs = |path: &Path| get(live, path) != get(config, path);
    let mut conflicts = Vec::new();
    for other in managers.iter_mut().filter(|it| !mine(it)) {
        let taken: Vec<Path> = other.fields.intersection(&fields).cloned().collect();
        for path in taken {
            // An element of a list is the same, whatever is in it.
            if matches!(path.last(), Some(Step::Key(_))) || !differs(&path) {
                continue;
            }
            if force {
                other.fields.remove(&path);
            } else {
                conflicts.push(Conflict {
                    manager: other.to_string(),
                    field: written(&path),
                });
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut next = live.clone();
    merge(&mut next, config, "");
    let before = managers.iter().find(|it| mine(it));
    let before = before.map(|it| it.fields.clone()).unwrap_or_default();
    // In their order an element comes before what is in it: it goes as a whole, or keeps what it is known by.
    let dropped = before.difference(&fields).filter(|path| !is_key(path));
    for path in dropped {
        let others = managers.iter().filter(|it| !mine(it));
        let kept = others
            .flat_map(|it| &it.fields)
            .chain(&fields)
            .any(|other| other.starts_with(path));
        if !kept {
            remove(&mut next, path, "");
        }
    }
    // What is applied once more as it is leaves the object as it is.
    let same = managers.iter().find(|it| mine(it) && it.fields == fields);
    let time = same.map_or_else(|| write.time.to_owned(), |it| it.time.clone());
    managers.retain(|it| !mine(it));
    managers.push(Manager {
        name: write.manager.to_owned(),
        applies: true,
        subresource: write.subresource.to_owned(),
        api_version: write.api_version.to_owned(),
        time,
        fields,
    });
    next["metadata"]["managedFields"] = encode(&managers);
    Ok(next)
}

/// Who manages an object that was never applied.
fn before_first(live: &Value, write: Write<'_>) -> Option<Manager> {
    let mut fields = managed_leaves(live);
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    if let Some(config) = text.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        for path in managed_leaves(&config) {
            fields.remove(&path);
        }
        let own = ["metadata", "annotations", LAST_APPLIED];
        let own: Path = own.iter().map(|it| Step::Field((*it).to_owned())).collect();
        fields.remove(&own);
    }
    fields.retain(|path| path.first() != Some(&Step::Field(String::from("status"))));
    (!fields.is_empty()).then(|| Manager {
        name: BEFORE.to_owned(),
        applies: false,
        subresource: String::new(),
        api_version: write.api_version.to_owned(),
        time: write.time.to_owned(),
        fields,
    })
}

/// The managers of an object that is written and was applied before: what changed is the writer's.
pub fn updated(before: &Value, after: &Value, write: Write<'_>) -> Option<Value> {
    let mut managers = decode(before);
    if managers.is_empty() {
        return None;
    }
    let (old, new) = (managed_leaves(before), managed_leaves(after));
    let changed: Fields = new
        .iter()
        .filter(|path| !old.contains(*path) || get(before, path) != get(after, path))
        .filter(|path| !matches!(path.last(), Some(Step::Key(_))) || !old.contains(*path))
        .cloned()
        .collect();
    for manager in &mut managers {
        manager
            .fields
            .retain(|path| new.contains(path) && !changed.contains(path));
    }
    if !changed.is_empty() {
        match managers
            .iter_mut()
            .find(|it| it.is(write.manager, false, write.subresource))
        {
            Some(own) => {
                own.fields.extend(changed);
                own.time = write.time.to_owned();
            }
            None => managers.push(Manager {
                name: write.manager.to_owned(),
                applies: false,
                subresource: write.subresource.to_owned(),
                api_version: write.api_version.to_owned(),
                time: write.time.to_owned(),
                fields: changed,
            }),
        }
    }
    Some(encode(&managers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(manager: &str) -> Write<'_> {
        Write {
            manager,
            api_version: "apps/v1",
            subresource: "",
            time: "now",
        }
    }

    fn config(replicas: i64, image: &str) -> Value {
        json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
            "replicas": replicas,
            "containers": [{"name": "c", "image": image,
                "ports": [{"containerPort": 80}]}]}})
    }

    #[test]
    fn an_applier_manages_what_it_names_and_others_conflict() {
        let made = apply(&Value::Null, &config(2, "x"), write("a"), false).expect("made");
        assert_eq!(made["spec"]["replicas"], 2);
        let entry = &made["metadata"]["managedFields"][0];
        assert_eq!(
            entry["fieldsV1"],
            json!({
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:replicas": {}, "f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:image": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                        {".": {}, "f:containerPort": {}}}}}},
            })
        );
        // The same again, by another: shared.
        let shared = apply(&made, &config(2, "x"), write("b"), false).expect("no conflict");
        let entries = shared["metadata"]["managedFields"].as_array();
        assert_eq!(entries.map(Vec::len), Some(2));
        // Another value is a conflict, unless it is forced.
        let conflicts = apply(&made, &config(3, "y"), write("b"), false).expect_err("conflicts");
        let fields: Vec<&str> = conflicts.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(
            fields,
            [".spec.containers[name=\"c\"].image", ".spec.replicas"]
        );
        assert_eq!(conflicts[0].manager, "\"a\"");
        assert_eq!(
            told(&conflicts),
            "Apply failed with 2 conflicts: conflicts with \"a\":\n- \
             .spec.containers[name=\"c\"].image\n- .spec.replicas"
        );
        let forced = apply(&made, &config(3, "y"), write("b"), true).expect("forced");
        assert_eq!(forced["spec"]["replicas"], 3);
        let again = apply(&forced, &config(2, "x"), write("a"), false);
        assert_eq!(again.expect_err("conflicts").len(), 2);
    }

    #[test]
    fn what_is_no_longer_named_goes_unless_somebody_else_manages_it() {
        let made = apply(&Value::Null, &config(2, "x"), write("a"), false).expect("made");
        let mut less = config(2, "x");
        less["spec"] = json!({"containers": [{"name": "d", "image": "z"}]});
        let next = apply(&made, &less, write("a"), false).expect("applied");
        assert_eq!(
            next["spec"],
            json!({"containers": [{"name": "d", "image": "z"}]})
        );
        let shared = apply(&made, &config(2, "x"), write("b"), false).expect("shared");
        let next = apply(&shared, &less, write("a"), false).expect("applied");
        assert_eq!(next["spec"]["replicas"], 2);
        let containers = next["spec"]["containers"].as_array();
        assert_eq!(containers.map(Vec::len), Some(2));
    }

    #[test]
    fn a_write_takes_over_what_it_changes() {
        let made = apply(&Value::Null, &config(2, "x"), write("a"), false).expect("made");
        let mut scaled = made.clone();
        scaled["spec"]["replicas"] = json!(5);
        scaled["metadata"]["managedFields"] =
            updated(&made, &scaled, write("kubectl")).expect("managers");
        let conflicts = apply(&scaled, &config(2, "x"), write("a"), false).expect_err("a conflict");
        assert_eq!(conflicts.len(), 1);
        assert_eq!(
            told(&conflicts),
            "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
        );
        let mut without = config(2, "x");
        remove(
            &mut without,
            &[
                Step::Field(String::from("spec")),
                Step::Field(String::from("replicas")),
            ],
            "",
        );
        let next = apply(&scaled, &without, write("a"), false).expect("no conflict");
        assert_eq!(next["spec"]["replicas"], 5);
        // Nobody keeps a record of what was never applied.
        assert_eq!(updated(&config(1, "x"), &config(2, "x"), write("a")), None);
    }

    #[test]
    fn what_was_there_before_the_first_apply_is_somebodys() {
        let mut live = config(2, "x");
        live["status"] = json!({"replicas": 2});
        let conflicts = apply(&live, &config(3, "x"), write("a"), false).expect_err("a conflict");
        assert!(conflicts[0].manager.contains(BEFORE));
        // But what kubectl applied from its own side is the applier's.
        live["metadata"]["annotations"][LAST_APPLIED] = json!(config(2, "x").to_string());
        let next = apply(&live, &config(3, "x"), write("a"), false).expect("no conflict");
        assert_eq!(next["spec"]["replicas"], 3);
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let fields = managed_leaves(&json!({
            "metadata": {"name": "x", "uid": "1", "finalizers": ["a", "b"], "labels": {}},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "args": ["1", "2"], "none": null},
        }));
        let manager = Manager {
            name: String::from("a"),
            applies: true,
            subresource: String::from("status"),
            api_version: String::from("v1"),
            time: String::from("now"),
            fields,
        };
        assert_eq!(Manager::decode(&manager.encode()), manager);
        let names: Vec<String> = manager.fields.iter().map(|path| written(path)).collect();
        assert_eq!(
            names,
            [
                ".metadata.finalizers[=\"a\"]",
                ".metadata.finalizers[=\"b\"]",
                ".metadata.labels",
                ".spec.args",
                ".spec.none",
                ".spec.selector",
            ]
        );
    }
}
