//! Maintenance and membership with the real etcdctl, and side by side with a real etcd 3.5.

use serde_json::Value;

use crate::command;
use crate::etcdctl::Etcdctl;
use crate::harness::CkeEtcd;
use crate::http::Auth;
use crate::real_etcd::{RealEtcd, free_port};

/// Puts, overwrites, deletes, leases, transactions: revisions 2 and on.
fn work(etcdctl: &Etcdctl) {
    for number in 0..40 {
        let key = format!("key/{:02}", number % 13);
        etcdctl.ok(&["put", &key, &format!("value {number}")]);
        if number % 5 == 0 {
            etcdctl.ok(&["del", &key]);
        }
    }
    etcdctl.ok(&["put", "large", &"x".repeat(20_000)]);
    etcdctl.ok_with_input(
        &["txn"],
        "mod(\"key/01\") > \"0\"\n\nput t1 1\nput t2 2\ndel key/02\n\n\n",
    );
}

fn hash_kv(etcdctl: &Etcdctl, revision: i64) -> (Value, Value) {
    let revision = revision.to_string();
    let said = etcdctl.ok(&["endpoint", "hashkv", "--rev", &revision, "-w", "json"]);
    let json: Value = serde_json::from_str(&said).expect("JSON");
    let found = &json[0]["HashKV"];
    (found["hash"].clone(), found["compact_revision"].clone())
}

#[test]
fn hashes_are_etcds() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = RealEtcd::start(&directory.path().join("etcd"));
    let ours = CkeEtcd::start();
    let clients = [&real.endpoint, &ours.endpoint()].map(|endpoint| Etcdctl::new(endpoint));
    let [theirs, mine] = &clients;
    for etcdctl in &clients {
        work(etcdctl);
    }
    let check = |revision| {
        assert_eq!(
            hash_kv(theirs, revision),
            hash_kv(mine, revision),
            "{revision}"
        );
    };
    for revision in [0, 2, 20, 45] {
        check(revision);
    }
    for compacted in [10, 30] {
        for etcdctl in &clients {
            etcdctl.ok(&["compaction", &compacted.to_string(), "--physical"]);
        }
        // etcd 3.5 refuses the compacted revision itself, which 3.6 does not.
        for revision in [0, 31, 45] {
            check(revision);
        }
    }
    ours.finish();
}

#[test]
fn a_snapshot_is_one_that_etcd_restores() {
    let ours = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&ours.endpoint());
    work(&etcdctl);
    etcdctl.ok(&["compaction", "15", "--physical"]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("snapshot.db");
    let file = file.to_string_lossy();
    etcdctl.ok(&["snapshot", "save", &file]);
    let said = etcdctl.ok(&["snapshot", "status", &file, "-w", "json"]);
    let status: Value = serde_json::from_str(&said).expect("JSON");
    let now: Value = serde_json::from_str(&etcdctl.ok(&["get", "x", "-w", "json"])).expect("JSON");
    assert_eq!(status["revision"], now["header"]["revision"]);

    let restored = directory.path().join("restored");
    let restored_text = restored.to_string_lossy();
    let peer = format!("http://127.0.0.1:{}", free_port());
    let cluster = format!("default={peer}");
    let restore = [
        "snapshot",
        "restore",
        &file,
        "--data-dir",
        &restored_text,
        "--name",
        "default",
        "--initial-cluster",
        &cluster,
        "--initial-advertise-peer-urls",
        &peer,
    ];
    etcdctl.ok(&restore);
    let real = RealEtcd::start(&restored);
    let there = Etcdctl::new(&real.endpoint);
    let everything = ["get", "", "--from-key", "-w", "json"];
    let kvs = |etcdctl: &Etcdctl, arguments: &[&str]| -> Value {
        let said = etcdctl.ok(arguments);
        serde_json::from_str::<Value>(&said).expect("JSON")["kvs"].clone()
    };
    assert_eq!(kvs(&there, &everything), kvs(&etcdctl, &everything));
    let earlier = ["get", "", "--from-key", "--rev", "20", "-w", "json"];
    assert_eq!(kvs(&there, &earlier), kvs(&etcdctl, &earlier));
    ours.finish();
}

/// Two at a time, while somebody writes: each is whole.
#[test]
fn snapshots_do_not_disturb_one_another() {
    let ours = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&ours.endpoint());
    work(&etcdctl);
    let directory = tempfile::tempdir().expect("a directory");
    let files = ["one", "two"].map(|name| directory.path().join(name));
    std::thread::scope(|scope| {
        let saving = files.each_ref().map(|file| {
            let etcdctl = &etcdctl;
            scope.spawn(move || etcdctl.ok(&["snapshot", "save", &file.to_string_lossy()]))
        });
        for number in 0..10 {
            etcdctl.ok(&["put", "meanwhile", &number.to_string()]);
        }
        for saved in saving {
            saved.join().expect("saved");
        }
    });
    for file in &files {
        let file = file.to_string_lossy();
        let status = etcdctl.ok(&["snapshot", "status", &file, "-w", "json"]);
        let status: Value = serde_json::from_str(&status).expect("JSON");
        assert!(status["totalKey"].as_i64() > Some(40), "{status}");
    }
    ours.finish();
}

#[test]
fn without_room_nothing_is_written_until_there_is_some() {
    let mut ours = CkeEtcd::start_with("http", &["--quota-backend-bytes", "100000"]);
    let etcdctl = Etcdctl::new(&ours.endpoint());
    let value = "x".repeat(20_000);
    for number in 0..4 {
        etcdctl.ok(&["put", "key", &format!("{number}{value}")]);
    }
    let full = "etcdserver: mvcc: database space exceeded";
    let check_full = || {
        let stderr = etcdctl.run(&["put", "key", &value]).failed();
        assert!(stderr.contains(full), "{stderr}");
    };
    check_full();
    let alarms = etcdctl.ok(&["alarm", "list"]);
    assert!(alarms.contains("alarm:NOSPACE"), "{alarms}");
    let stderr = etcdctl.run(&["lease", "grant", "10"]).failed();
    assert!(stderr.contains(full), "{stderr}");
    let stderr = etcdctl.run(&["endpoint", "health"]);
    assert_eq!(stderr.code, Some(1), "{stderr:?}");
    let health = |query: &str| {
        crate::http::send(
            &ours.endpoint(),
            "GET",
            &format!("/health{query}"),
            Auth::None,
            None,
        )
    };
    let sick = health("");
    assert_eq!(sick.status, 503);
    assert_eq!(sick.body, r#"{"health":"false","reason":"ALARM NOSPACE"}"#);
    assert_eq!(health("?exclude=NOSPACE").status, 200);
    // Reading and deleting go on, and an alarm outlives a crash.
    ours.crash();
    assert_eq!(etcdctl.ok(&["get", "key", "--keys-only"]).trim(), "key");
    check_full();
    etcdctl.ok(&["del", "key"]);
    etcdctl.ok(&["compaction", "6", "--physical"]);
    etcdctl.ok(&["defrag"]);
    check_full();
    let disarmed = etcdctl.ok(&["alarm", "disarm"]);
    assert!(disarmed.contains("alarm:NOSPACE"), "{disarmed}");
    assert_eq!(etcdctl.ok(&["put", "key", &value]), "OK\n");
    assert_eq!(etcdctl.ok(&["alarm", "list"]), "");
    ours.finish();
}

#[test]
fn history_is_compacted_by_itself() {
    let ours = CkeEtcd::start_with(
        "http",
        &[
            "--auto-compaction-retention",
            "1s",
            "--auto-compaction-mode",
            "periodic",
        ],
    );
    let etcdctl = Etcdctl::new(&ours.endpoint());
    let compacted = (0..2_000).any(|number| {
        etcdctl.ok(&["put", "key", &number.to_string()]);
        let said = etcdctl.run(&["get", "key", "--rev", "2"]);
        said.code == Some(1) && said.stderr.contains("required revision has been compacted")
    });
    assert!(compacted);
    ours.finish();
}

#[test]
fn there_is_one_member_and_it_leads() {
    let ours = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&ours.endpoint());
    let refused = |arguments: &[&str], expect: &str| {
        let stderr = etcdctl.run(arguments).failed();
        assert!(stderr.contains(expect), "{arguments:?}: {stderr}");
    };
    let members = etcdctl.ok(&["member", "list"]);
    let id = members.split(',').next().expect("an id").to_owned();
    let not_enough = "etcdserver: re-configuration failed due to not enough started members";
    let peer = "--peer-urls=http://127.0.0.1:1";
    refused(&["member", "add", "other", peer], not_enough);
    refused(&["member", "remove", &id], not_enough);
    refused(&["member", "remove", "1"], "etcdserver: member not found");
    refused(
        &["member", "update", "1", peer],
        "etcdserver: member not found",
    );
    refused(
        &["member", "promote", &id],
        "etcdserver: can only promote a learner member",
    );
    // It wants its endpoints as a flag, and only so.
    let endpoint = ours.endpoint();
    let move_leader = |id: &str| {
        let mut command = etcdctl.command(&["--endpoints", &endpoint, "move-leader", id]);
        command::run(command.env_remove("ETCDCTL_ENDPOINTS"))
    };
    let stderr = move_leader("1").failed();
    let expect = "etcdserver: bad leader transferee";
    assert!(stderr.contains(expect), "{stderr}");
    let said = move_leader(&id).ok();
    assert!(said.contains("Leadership transferred"), "{said}");
    ours.finish();
}
