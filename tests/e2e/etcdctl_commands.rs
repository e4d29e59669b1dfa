//! etcdctl's subcommands that are programs of their own: locks, elections, mirrors, checks, and those one types into.

use std::time::{Duration, Instant};

use crate::etcdctl::Etcdctl;
use crate::harness::CkeEtcd;
use crate::http::{self, Auth};
use crate::real_etcd::RealEtcd;

/// Waits until `etcdctl get` prints something.
#[track_caller]
fn until(etcdctl: &Etcdctl, arguments: &[&str], expected: &str) {
    let begun = Instant::now();
    loop {
        let found = etcdctl.ok(arguments);
        if found == expected {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_lock_is_held_by_one_at_a_time() {
    let server = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&server.endpoint());
    let first = etcdctl.start(&["lock", "door", "--ttl", "1"]);
    let key = first.line();
    assert!(key.starts_with("door/"), "{key}");
    let second = etcdctl.start(&["lock", "door", "--ttl", "60"]);
    let contenders = || etcdctl.ok(&["get", "door", "--prefix", "--keys-only"]);
    while contenders().matches("door/").count() < 2 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!second.has_line());
    // It is killed, so its lease runs out.
    drop(first);
    let next = second.line();
    assert!(next.starts_with("door/") && next != key, "{next}");
    drop(second);
    // With a command, the lock is given back when that ends.
    for _ in 0..2 {
        let said = etcdctl.ok(&["lock", "other", "echo", "inside"]);
        assert_eq!(said, "inside\n");
    }
    server.finish();
}

#[test]
fn an_election_has_one_leader_and_says_who() {
    let server = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&server.endpoint());
    let leader = etcdctl.start(&["elect", "chair", "ada"]);
    let key = leader.line();
    assert!(key.starts_with("chair/"), "{key}");
    assert_eq!(leader.line(), "ada");
    let observer = etcdctl.start(&["elect", "--listen", "chair"]);
    assert_eq!(observer.lines(2), [key.clone(), "ada".to_owned()]);
    let other = etcdctl.start(&["elect", "chair", "bob"]);
    // In the order of their leases, which are random.
    let candidates = || etcdctl.ok(&["get", "chair", "--prefix", "--print-value-only"]);
    while !candidates().contains("bob") {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!other.has_line());
    // As if the leader had resigned.
    etcdctl.ok(&["del", &key]);
    let next = other.line();
    assert_eq!(other.line(), "bob");
    assert_eq!(observer.lines(2), [next, "bob".to_owned()]);
    server.finish();
}

/// From a real etcd to ours, and from ours to a real one.
#[test]
fn mirrors_both_ways() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = RealEtcd::start(&directory.path().join("etcd"));
    let ours = CkeEtcd::start();
    let (theirs, mine) = (Etcdctl::new(&real.endpoint), Etcdctl::new(&ours.endpoint()));
    for (from, to, target, name) in [
        (&theirs, &mine, ours.endpoint(), "a"),
        (&mine, &theirs, real.endpoint.clone(), "b"),
    ] {
        from.ok(&["put", &format!("{name}/old"), "1"]);
        from.ok(&["put", &format!("{name}/gone"), "1"]);
        let target = target.trim_start_matches("http://");
        let prefix = format!("{name}/");
        let mirror = from.start(&["make-mirror", "--prefix", &prefix, target]);
        let all = ["get", &prefix, "--prefix"];
        until(to, &all, &format!("{name}/gone\n1\n{name}/old\n1\n"));
        from.ok(&["put", &format!("{name}/new"), "2"]);
        from.ok(&["del", &format!("{name}/gone")]);
        until(to, &all, &format!("{name}/new\n2\n{name}/old\n1\n"));
        drop(mirror);
    }
    ours.finish();
}

#[test]
fn checks_pass() {
    let server = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&server.endpoint());
    let said = etcdctl.run(&["check", "datascale", "--load=s"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let all = format!("{}{}", said.stdout, said.stderr);
    assert!(
        all.contains("PASS: Approximate system memory used"),
        "{all}"
    );
    // It has removed its keys.
    assert_eq!(etcdctl.ok(&["get", "", "--prefix", "--keys-only"]), "");
    server.finish();
}

#[test]
fn what_is_typed_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = RealEtcd::start(&directory.path().join("etcd"));
    let ours = CkeEtcd::start();
    let both = [Etcdctl::new(&real.endpoint), Etcdctl::new(&ours.endpoint())];
    let said = both.each_ref().map(|etcdctl| {
        etcdctl.ok(&["put", "key", "1"]);
        let swap = "value(\"key\") = \"1\"\n\nput key 2\nget key\n\nput key 3\n\n";
        let mut said = vec![
            etcdctl.ok_with_input(&["txn", "-i"], swap),
            etcdctl.ok_with_input(&["txn"], swap),
            etcdctl.ok_with_input(&["put", "typed"], "from stdin"),
            etcdctl.ok(&["get", "typed"]),
        ];
        let mut watch = etcdctl.start(&["watch", "-i"]);
        watch.type_line("watch key");
        watch.type_line("watch z zz");
        // Both are there once each has told of something.
        let put = |key: &str| etcdctl.ok(&["put", key, "seen"]);
        while !watch.has_line() {
            put("key");
            std::thread::sleep(Duration::from_millis(50));
        }
        put("zebra");
        let mut lines = std::iter::repeat_with(|| watch.line());
        said.extend(lines.by_ref().find(|line| line == "zebra"));
        said.push(watch.line());
        said
    });
    assert_eq!(said[1], said[0]);
    ours.finish();
}

/// A user's name chooses the keyspace, before there are any users there and after.
#[test]
fn keyspaces_by_user() {
    let rules = "alice=blue,root-blue=blue,bob=green";
    let server = CkeEtcd::start_with("http", &["--bcrypt-cost", "4", "--keyspace-by-user", rules]);
    let endpoint = server.endpoint();
    let of = |user: &str| Etcdctl::with(&endpoint, vec![format!("--user={user}")]);
    let nobody = Etcdctl::new(&endpoint);
    nobody.ok(&["put", "key", "default"]);
    of("alice:x").ok(&["put", "key", "blue"]);
    of("bob:x").ok(&["put", "key", "green"]);
    of("carol:x").ok(&["put", "more", "default"]);
    assert_eq!(
        nobody.ok(&["get", "", "--prefix"]),
        "key\ndefault\nmore\ndefault\n"
    );
    // The keyspace has users of its own.
    let blue = of("alice:secret");
    for line in [
        "user add root:top",
        "user grant-role root root",
        "user add alice:secret",
        "role add all",
        "role grant-permission all readwrite --prefix k",
        "user grant-role alice all",
        "auth enable",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        blue.ok(&arguments);
    }
    assert_eq!(blue.ok(&["get", "key"]), "key\nblue\n");
    let refused = of("alice:wrong").run(&["get", "key"]);
    assert!(
        refused.stderr.contains("authentication failed"),
        "{refused:?}"
    );
    // Neither a token nor a name opens another keyspace.
    assert_eq!(nobody.ok(&["get", "key"]), "key\ndefault\n");
    assert_eq!(of("bob:x").ok(&["get", "key"]), "key\ngreen\n");
    let json = |path: &str, token: Option<&str>, body: &str| {
        let auth = token.map_or(Auth::None, Auth::Header);
        http::send(&endpoint, "POST", path, auth, Some(body)).json()
    };
    let answer = json(
        "/v3/auth/authenticate",
        None,
        r#"{"name":"alice","password":"secret"}"#,
    );
    let token = answer["token"].as_str().expect("a token").to_owned();
    let get = r#"{"key":"a2V5"}"#;
    assert_eq!(
        json("/v3/kv/range", Some(&token), get)["kvs"][0]["value"],
        "Ymx1ZQ=="
    );
    assert_eq!(
        json("/v3/kv/range", None, get)["kvs"][0]["value"],
        "ZGVmYXVsdA=="
    );
    let (_, inner) = token.split_once(':').expect("two parts");
    for wrong in [
        format!("Z3JlZW4:{inner}"),
        format!("cmVk:{inner}"),
        format!("{token}x"),
    ] {
        let answer = json("/v3/kv/range", Some(&wrong), get);
        // Green asks for no token; nobody has the keyspace red.
        let green = wrong.starts_with("Z3JlZW4");
        assert_eq!(answer["kvs"].is_array(), green, "{wrong}: {answer}");
        if !green {
            assert_eq!(
                answer["message"], "etcdserver: invalid auth token",
                "{wrong}"
            );
        }
    }
    server.finish();
}
