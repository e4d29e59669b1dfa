//! The file that points `kubectl` at a cluster.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::pki::Pair;

/// A kubeconfig in YAML. `name` names the cluster and the context; it may hold any text.
pub fn render(name: &str, server: &str, authority: &str, client: &Pair) -> String {
    // A JSON string is a YAML string, whatever it holds.
    let name = serde_json::Value::from(name).to_string();
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {name}\n\
         \x20 cluster:\n\
         \x20   certificate-authority-data: {authority}\n\
         \x20   server: {server}\n\
         users:\n\
         - name: admin\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {key}\n\
         contexts:\n\
         - name: {name}\n\
         \x20 context:\n\
         \x20   cluster: {name}\n\
         \x20   user: admin\n\
         current-context: {name}\n",
        authority = STANDARD.encode(authority),
        certificate = STANDARD.encode(&client.certificate),
        key = STANDARD.encode(&client.key),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_makes_a_kubeconfig_that_parses() {
        let pair = Pair {
            certificate: String::from("c"),
            key: String::from("k"),
        };
        for name in ["demo", "a: b", "\"quoted\"", "- x", "é\n", "null"] {
            let text = render(name, "https://127.0.0.1:6443/clusters/x", "ca", &pair);
            let parsed = kube::config::Kubeconfig::from_yaml(&text).expect(name);
            assert_eq!(parsed.current_context.as_deref(), Some(name));
            assert_eq!(parsed.clusters[0].name, name);
        }
    }
}
