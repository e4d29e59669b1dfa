//! Logging in, profiles, API tokens.

use std::process::Stdio;

use serde_json::json;

use crate::clever::Clever;
use crate::etcdctl::Running;
use crate::harness::{Cke, FAST, SEED_USER};
use crate::http::{self, Auth};

#[test]
fn login_with_a_token_saves_a_profile() {
    let cke = Cke::start(FAST);
    let url = cke.api().to_owned();
    let clever = Clever::new(&cke)
        .without("CLEVER_TOKEN")
        .without("CLEVER_SECRET")
        .without("API_HOST")
        .without("AUTH_BRIDGE_HOST")
        .without("CONSOLE_URL");
    let login = |secret: &'static str| {
        clever.run(&[
            "login",
            "--token",
            "cke-seed-token",
            "--secret",
            secret,
            "--api-host",
            &url,
            "--auth-bridge-host",
            &url,
            "--console-url",
            &url,
        ])
    };
    let stderr = login("wrong").failed();
    assert!(stderr.contains("not logged in"), "{stderr}");
    login("cke-seed-secret").ok();
    // The saved profile says where the API is.
    let profile = clever.ok(&["profile"]);
    assert!(profile.contains("dev@example.test"), "{profile}");
    let clusters = clever.ok(&["k8s", "list", "--org", "acme"]);
    assert!(clusters.contains("No cluster found"), "{clusters}");
    cke.finish();
}

/// The CLI opens our page and waits for what its button grants.
#[test]
fn interactive_login() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke)
        .without("CLEVER_TOKEN")
        .without("CLEVER_SECRET");
    let child = clever
        .command(&["login"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("clever starts");
    let login = Running::new(child);
    let opening = login.line();
    let url = opening
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap_or_else(|| panic!("no address in {opening:?}"));
    let target = url.strip_prefix(cke.api()).expect("a URL of this server");
    let page = http::send(cke.api(), "GET", target, Auth::None, None);
    assert_eq!(page.status, 200, "{page:#?}");
    assert!(page.body.contains(SEED_USER), "{page:#?}");
    let (_, cli_token) = target.split_once("cli_token=").expect("a token");

    // Nothing is granted by looking.
    let poll = format!("/v2/self/cli_tokens?cli_token={cli_token}");
    let answer = http::send(cke.api(), "GET", &poll, Auth::None, None);
    assert_eq!(answer.status, 404, "{answer:#?}");

    let address = cke.api().strip_prefix("http://").expect("an http URL");
    let form = format!("cli_token={cli_token}&user={SEED_USER}");
    let request = format!(
        "POST /cli-oauth HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let granted = http::parse(&http::exchange(address, request.as_bytes()));
    assert_eq!(granted.status, 200, "{granted:#?}");
    let success = login.line();
    assert!(success.contains("Login successful as default"), "{success}");

    let profile = clever.ok(&["profile"]);
    assert!(profile.contains("dev@example.test"), "{profile}");
    let answer = http::send(cke.api(), "GET", &poll, Auth::None, None);
    assert_eq!(answer.status, 404, "a login is collected once: {answer:#?}");
    cke.finish();
}

#[test]
fn api_tokens_survive_a_crash_until_they_are_revoked() {
    let mut cke = Cke::start(FAST);
    let creation = |password: &str| {
        json!({"email": "dev@example.test", "password": password, "name": "ci",
            "description": "", "expirationDate": "2100-01-01T00:00:00.000Z"})
        .to_string()
    };
    let refused = http::send(
        cke.api(),
        "POST",
        "/api-tokens",
        Auth::None,
        Some(&creation("no")),
    );
    assert_eq!(refused.status, 401, "{refused:#?}");
    assert_eq!(refused.json()["code"], "invalid-credential");
    let created = http::send(
        cke.api(),
        "POST",
        "/api-tokens",
        Auth::None,
        Some(&creation("cke")),
    )
    .ok();
    let token = created["apiToken"].as_str().expect("a token").to_owned();
    let id = created["apiTokenId"].as_str().expect("an id");
    cke.restart();
    let answer = http::send(cke.api(), "GET", "/v2/self", Auth::Bearer(&token), None);
    assert_eq!(answer.ok()["id"], SEED_USER);

    let clever = Clever::new(&cke);
    let listed = clever.ok(&["tokens"]);
    assert!(listed.contains(id) && listed.contains("ACTIVE"), "{listed}");
    assert!(!listed.contains(&token), "{listed}");
    clever.ok(&["tokens", "revoke", id]);
    let answer = http::send(cke.api(), "GET", "/v2/self", Auth::Bearer(&token), None);
    assert_eq!(answer.status, 401, "{answer:#?}");
    cke.finish();
}
