//! What admission does to pods for their service account.

use serde_json::{Value, json};

/// A pod that names no credentials for registries has those of the account that it runs as (admission plugin
/// ServiceAccount).
pub fn admit(pod: &mut Value, account: Option<&Value>) {
    let own = &pod["spec"]["imagePullSecrets"];
    if !own.is_null() && *own != json!([]) {
        return;
    }
    match account.map(|account| &account["imagePullSecrets"]) {
        Some(secrets @ Value::Array(list)) if !list.is_empty() => {
            pod["spec"]["imagePullSecrets"] = secrets.clone();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_the_pods_own_or_its_accounts() {
        let check = |own: Value, account: Option<Value>, expect: Value| {
            let mut pod = json!({"spec": {"imagePullSecrets": own}});
            let account = account.map(|secrets| json!({"imagePullSecrets": secrets}));
            admit(&mut pod, account.as_ref());
            assert_eq!(pod["spec"]["imagePullSecrets"], expect);
        };
        let named = |name: &str| json!([{"name": name}]);
        check(Value::Null, None, Value::Null);
        check(Value::Null, Some(Value::Null), Value::Null);
        check(Value::Null, Some(json!([])), Value::Null);
        check(Value::Null, Some(named("a")), named("a"));
        check(json!([]), Some(named("a")), named("a"));
        check(named("b"), Some(named("a")), named("b"));
    }
}
