//! Users, roles and permissions with the real etcdctl, side by side with a real etcd 3.5.

use crate::command::Said;
use crate::etcdctl::{Etcdctl, Running};
use crate::harness::CkeEtcd;
use crate::http::{self, Auth};
use crate::real_etcd::RealEtcd;

/// The same commands to two servers.
struct Both {
    theirs: Etcdctl,
    mine: Etcdctl,
}

/// What a client says without what names the server it talks to, or the moment.
fn comparable(said: &Said) -> (Option<i32>, String, Option<String>) {
    let error = said.stderr.lines().find(|line| line.starts_with("Error:"));
    let stdout = said
        .stdout
        .lines()
        .map(|line| line.split(" granted with TTL").next().unwrap_or(line))
        .filter(|line| !line.starts_with("lease "))
        .collect::<Vec<_>>()
        .join("\n");
    (said.code, stdout, error.map(str::to_owned))
}

impl Both {
    fn new(real: &RealEtcd, ours: &CkeEtcd) -> Both {
        Both {
            theirs: Etcdctl::new(&real.endpoint),
            mine: Etcdctl::new(&ours.endpoint()),
        }
    }

    #[track_caller]
    fn check(&self, line: &str) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let [theirs, mine] = [&self.theirs, &self.mine].map(|etcdctl| etcdctl.run(&arguments));
        assert_eq!(comparable(&mine), comparable(&theirs), "{line}");
    }
}

#[test]
fn every_command_says_what_etcd_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = RealEtcd::start(&directory.path().join("etcd"));
    let ours = CkeEtcd::start_with("http", &["--bcrypt-cost", "4"]);
    let both = Both::new(&real, &ours);
    for line in [
        "auth enable",
        "user add root:secret",
        "user add root:secret",
        "user grant-role root nothing",
        "user grant-role nobody root",
        "role add root",
        "user grant-role root root",
        "user add ada:lovelace",
        "user add guest --no-password",
        "user list",
        "user get ada",
        "user get nobody",
        "role add readers",
        "role add readers",
        "role add writers",
        "role list",
        "role get nothing",
        "role grant-permission readers read a c",
        "role grant-permission readers read exact",
        "role grant-permission writers readwrite b d",
        "role grant-permission writers write w --prefix=true",
        "role grant-permission nothing read a",
        "role get readers",
        "role get writers",
        "role revoke-permission readers nothing",
        "user grant-role ada readers",
        "user grant-role ada writers",
        "user revoke-role ada nothing",
        "put a 1",
        "put b 2",
        "put exact 3",
        "put secret 4",
        "auth status",
        "auth enable",
        "auth enable",
        "get a",
        "put a 2",
        "--user ada:wrong get a",
        "--user nobody:x get a",
        "--user guest:x get a",
        "--user ada:lovelace get a",
        "--user ada:lovelace get exact",
        "--user ada:lovelace get secret",
        "--user ada:lovelace get a d",
        "--user ada:lovelace get a e",
        "--user ada:lovelace get a --from-key",
        "--user ada:lovelace put b 3",
        "--user ada:lovelace put a 3",
        "--user ada:lovelace put exact 3",
        "--user ada:lovelace put w/x 3",
        "--user ada:lovelace put w/x 4 --prev-kv",
        "--user ada:lovelace get w/x",
        "--user ada:lovelace del b c",
        "--user ada:lovelace del w/x --prev-kv",
        "--user ada:lovelace del b e",
        "--user ada:lovelace user list",
        "--user ada:lovelace user get ada",
        "--user ada:lovelace user get root",
        "--user ada:lovelace role get readers",
        "--user ada:lovelace role get root",
        "--user ada:lovelace role list",
        "--user ada:lovelace auth disable",
        "--user ada:lovelace defrag",
        "--user root:secret get secret",
        "--user root:secret get  --from-key a",
        "--user root:secret user delete root",
        "--user root:secret role delete root",
        "--user root:secret user revoke-role root root",
        "--user root:secret user revoke-role ada writers",
        "--user ada:lovelace put b 4",
        "--user root:secret role revoke-permission readers a c",
        "--user ada:lovelace get a",
        "--user root:secret role delete readers",
        "--user root:secret user get ada",
        "--user root:secret user delete ada",
        "--user ada:lovelace get a",
        "--user root:secret auth disable",
        "get a",
        "auth status",
        "user list",
    ] {
        both.check(line);
    }
    ours.finish();
}

/// A server with root, and ada who may read and write `a` up to `m`.
fn guarded() -> (CkeEtcd, Etcdctl) {
    guarded_with(&[])
}

fn guarded_with(arguments: &[&str]) -> (CkeEtcd, Etcdctl) {
    let arguments = [&["--bcrypt-cost", "4"], arguments].concat();
    let ours = CkeEtcd::start_with("http", &arguments);
    let etcdctl = Etcdctl::new(&ours.endpoint());
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "user add ada:lovelace",
        "role add own",
        "role grant-permission own readwrite a m",
        "user grant-role ada own",
        "auth enable",
    ] {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        etcdctl.run(&arguments).code_is(0);
    }
    (ours, etcdctl)
}

const ROOT: [&str; 2] = ["--user", "root:secret"];
const ADA: [&str; 2] = ["--user", "ada:lovelace"];

fn run(etcdctl: &Etcdctl, who: [&str; 2], line: &str) -> Said {
    let arguments: Vec<&str> = who.into_iter().chain(line.split_whitespace()).collect();
    etcdctl.run(&arguments)
}

#[track_caller]
fn denied(said: Said) {
    assert_ne!(said.code, Some(0), "{said:?}");
    let stderr = said.stderr;
    assert!(stderr.contains("etcdserver: permission denied"), "{stderr}");
}

#[test]
fn transactions_leases_and_watches_are_guarded_too() {
    let (ours, etcdctl) = guarded();
    let txn = |text: &str| {
        let mut command = etcdctl.command(&["--user", "ada:lovelace", "txn"]);
        crate::command::run_with_input(&mut command, text)
    };
    txn("\nput b 1\nget c\n\n\n").ok();
    denied(txn("\nput z 1\n\n\n"));
    denied(txn("value(\"z\") = \"1\"\n\nget b\n\n\n"));
    denied(txn("\nget b\n\ndel z\n\n"));

    let granted = run(&etcdctl, ROOT, "lease grant 600").ok();
    let lease = granted.split_whitespace().nth(1).expect("an id").to_owned();
    run(&etcdctl, ROOT, &format!("put z 1 --lease={lease}")).ok();
    denied(run(&etcdctl, ADA, &format!("put b 1 --lease={lease}")));
    denied(run(&etcdctl, ADA, &format!("lease revoke {lease}")));
    denied(run(
        &etcdctl,
        ADA,
        &format!("lease timetolive {lease} --keys"),
    ));
    run(&etcdctl, ADA, &format!("lease timetolive {lease}")).ok();
    run(&etcdctl, ROOT, &format!("lease revoke {lease}")).ok();

    let watch = |range: &[&str]| -> Running {
        let arguments = [&ADA[..], &["watch"], range].concat();
        etcdctl.start(&arguments)
    };
    let own = watch(&["a", "c"]);
    // The watch may start after a put, so there are puts until it has seen one.
    let seen = (0..200).any(|number| {
        run(&etcdctl, ROOT, &format!("put b {number}")).ok();
        own.has_line()
    });
    assert!(seen);
    let mut refused = etcdctl.command(&["--user", "ada:lovelace", "watch", "z"]);
    let stderr = crate::command::run(&mut refused).stderr;
    assert!(stderr.contains("permission denied"), "{stderr}");
    ours.finish();
}

#[test]
fn users_and_what_they_may_survive_a_crash() {
    let (mut ours, etcdctl) = guarded();
    run(&etcdctl, ADA, "put b kept").ok();
    ours.crash();
    let stderr = etcdctl.run(&["get", "b"]).failed();
    assert!(
        stderr.contains("etcdserver: user name is empty"),
        "{stderr}"
    );
    assert_eq!(run(&etcdctl, ADA, "get b").ok(), "b\nkept\n");
    denied(run(&etcdctl, ADA, "get z"));
    // A new password is the only one from then on.
    let mut command = etcdctl.command(&[
        "--user",
        "root:secret",
        "user",
        "passwd",
        "ada",
        "--interactive=false",
    ]);
    crate::command::run_with_input(&mut command, "byron\n").code_is(0);
    let stderr = run(&etcdctl, ADA, "get b").stderr;
    assert!(stderr.contains("authentication failed"), "{stderr}");
    assert_eq!(
        run(&etcdctl, ["--user", "ada:byron"], "get b").ok(),
        "b\nkept\n"
    );
    ours.finish();
}

#[test]
fn tokens_work_over_json() {
    let (ours, _) = guarded();
    let endpoint = ours.endpoint();
    let post =
        |path: &str, auth: Auth, body: &str| http::send(&endpoint, "POST", path, auth, Some(body));
    let login = r#"{"name":"ada","password":"lovelace"}"#;
    let token = post("/v3/auth/authenticate", Auth::None, login).ok();
    let token = token["token"].as_str().expect("a token").to_owned();
    let put = r#"{"key":"Yg==","value":"MQ=="}"#;
    post("/v3/kv/put", Auth::Header(&token), put).ok();
    post("/v3/kv/put", Auth::Bearer(&token), put).ok();
    let foreign = r#"{"key":"eg==","value":"MQ=="}"#;
    assert_eq!(
        post("/v3/kv/put", Auth::Header(&token), foreign).status,
        403
    );
    assert_eq!(
        post("/v3/kv/put", Auth::Header("nonsense"), put).status,
        401
    );
    assert_eq!(post("/v3/kv/put", Auth::None, put).status, 400);
    ours.finish();
}

/// What an etcd 3.5.1 lets anybody do, and a 3.6 does not.
#[test]
fn nobody_gets_at_what_has_no_keys() {
    let (ours, etcdctl) = guarded();
    let granted = run(&etcdctl, ROOT, "lease grant 600").ok();
    let lease = granted.split_whitespace().nth(1).expect("an id").to_owned();
    run(&etcdctl, ROOT, "put b 1").ok();
    for line in [
        "compact 2".to_owned(),
        "member list".to_owned(),
        "lease grant 60".to_owned(),
        "lease list".to_owned(),
        format!("lease revoke {lease}"),
        format!("lease timetolive {lease}"),
        format!("lease keep-alive {lease} --once"),
    ] {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let said = etcdctl.run(&arguments);
        assert_ne!(said.code, Some(0), "{said:?}");
        assert!(said.stderr.contains("user name is empty"), "{said:?}");
    }
    denied(run(&etcdctl, ADA, "compact 2"));
    run(&etcdctl, ROOT, "compact 2").ok();
    run(&etcdctl, ADA, "member list").ok();
    let kept = format!("lease keep-alive {lease} --once");
    run(&etcdctl, ADA, &kept).ok();
    ours.finish();
}

#[test]
fn signed_tokens_outlive_a_crash_and_end_with_a_change_of_rights() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/jwt");
    let kind =
        format!("jwt,sign-method=RS256,priv-key={keys}/rsa.pem,pub-key={keys}/rsa.pub.pem,ttl=10m");
    let (mut ours, etcdctl) = guarded_with(&["--auth-token", &kind]);
    run(&etcdctl, ADA, "put b 1").ok();
    denied(run(&etcdctl, ADA, "put z 1"));
    let endpoint = ours.endpoint();
    let post =
        |path: &str, auth: Auth, body: &str| http::send(&endpoint, "POST", path, auth, Some(body));
    let login = || {
        let body = r#"{"name":"ada","password":"lovelace"}"#;
        let answer = post("/v3/auth/authenticate", Auth::None, body).ok();
        answer["token"].as_str().expect("a token").to_owned()
    };
    let token = login();
    assert_eq!(token.split('.').count(), 3, "{token}");
    let put = r#"{"key":"Yg==","value":"Mg=="}"#;
    ours.crash();
    post("/v3/kv/put", Auth::Bearer(&token), put).ok();
    let forged = format!("{}.", token.rsplit_once('.').expect("a signature").0);
    let refused = post("/v3/kv/put", Auth::Bearer(&forged), put);
    assert_eq!(refused.status, 401, "{refused:?}");
    run(&etcdctl, ROOT, "role add more").ok();
    let refused = post("/v3/kv/put", Auth::Bearer(&token), put);
    assert_eq!(refused.status, 400, "{refused:?}");
    let old = "etcdserver: revision of auth store is old";
    assert!(refused.body.contains(old), "{refused:?}");
    post("/v3/kv/put", Auth::Bearer(&login()), put).ok();
    assert_eq!(run(&etcdctl, ADA, "get b").ok(), "b\n2\n");
    ours.finish();
}
