//! `cke etcd` with the real etcdctl 3.5.

use serde_json::Value;

use crate::command;
use crate::etcdctl::Etcdctl;
use crate::harness::{Cke, CkeEtcd, FAST};

fn seeded() -> (CkeEtcd, Etcdctl) {
    let server = CkeEtcd::start();
    let etcdctl = Etcdctl::new(&server.endpoint());
    for (key, value) in [("a", "1"), ("b", "2"), ("ba", "3"), ("bb", "4"), ("c", "5")] {
        assert_eq!(etcdctl.ok(&["put", key, value]), "OK\n");
    }
    (server, etcdctl)
}

#[test]
fn get_in_every_way() {
    let (server, etcdctl) = seeded();
    etcdctl.ok(&["put", "a", "6"]);
    let check = |arguments: &[&str], expect: &str| {
        let arguments: Vec<&str> = ["get"].iter().chain(arguments).copied().collect();
        let said = etcdctl.ok(&arguments);
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words.join(" "), expect, "{arguments:?}");
    };
    check(&["a"], "a 6");
    check(&["nothing"], "");
    check(&["a", "--print-value-only"], "6");
    check(&["b", "--prefix"], "b 2 ba 3 bb 4");
    check(&["a", "bb"], "a 6 b 2 ba 3");
    check(&["ba", "--from-key"], "ba 3 bb 4 c 5");
    check(&["", "--prefix", "--keys-only"], "a b ba bb c");
    check(&["", "--prefix", "--limit", "2"], "a 6 b 2");
    check(
        &["", "--prefix", "--count-only", "--write-out", "fields"],
        &fields(&etcdctl),
    );
    check(
        &["b", "--prefix", "--order", "DESCEND", "--sort-by", "VALUE"],
        "bb 4 ba 3 b 2",
    );
    check(
        &[
            "",
            "--prefix",
            "--order",
            "DESCEND",
            "--sort-by",
            "MODIFY",
            "--limit",
            "1",
        ],
        "a 6",
    );
    // Revision 1 is the empty store's; the five puts made 2 to 6.
    check(&["a", "--rev", "2"], "a 1");
    check(&["", "--prefix", "--rev", "3"], "a 1 b 2");
    check(&["a", "--consistency", "s"], "a 6");

    let json: Value = serde_json::from_str(&etcdctl.ok(&["get", "a", "-w", "json"])).expect("JSON");
    let kv = &json["kvs"][0];
    assert_eq!(json["header"]["revision"], 7);
    assert_eq!(kv["create_revision"], 2);
    assert_eq!(kv["mod_revision"], 7);
    assert_eq!(kv["version"], 2);
    let stderr = etcdctl.run(&["get", "a", "--rev", "100"]).failed();
    assert!(
        stderr.contains("etcdserver: mvcc: required revision is a future revision"),
        "{stderr}"
    );
    server.finish();
}

/// What `--count-only -w fields` prints, with this server's ids.
fn fields(etcdctl: &Etcdctl) -> String {
    let json: Value = serde_json::from_str(&etcdctl.ok(&["get", "a", "-w", "json"])).expect("JSON");
    let header = &json["header"];
    format!(
        "\"ClusterID\" : {} \"MemberID\" : {} \"Revision\" : 7 \"RaftTerm\" : {} \"More\" : false \"Count\" : 5",
        header["cluster_id"], header["member_id"], header["raft_term"]
    )
}

#[test]
fn deletions_and_transactions() {
    let (server, etcdctl) = seeded();
    assert_eq!(
        etcdctl.ok(&["del", "b", "--prefix", "--prev-kv"]),
        "3\nb\n2\nba\n3\nbb\n4\n"
    );
    assert_eq!(etcdctl.ok(&["del", "b", "--prefix"]), "0\n");
    assert_eq!(etcdctl.ok(&["put", "a", "7", "--prev-kv"]), "OK\na\n1\n");

    let txn = |input: &str| etcdctl.ok_with_input(&["txn"], input);
    let compare = "value(\"a\") = \"7\"\nversion(\"a\") = \"2\"\ncreate(\"none\") = \"0\"\nmod(\"c\") < \"7\"\n\n";
    let said = txn(&format!(
        "{compare}put d 8\nget d\ndel c\n\nput wrong 1\n\n"
    ));
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["SUCCESS", "OK", "d", "8", "1"]);
    let said = txn("value(\"a\") = \"no\"\n\nput wrong 1\n\nget a\n\n");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["FAILURE", "a", "7"]);
    let keys = etcdctl.ok(&["get", "", "--prefix", "--keys-only"]);
    let keys: Vec<&str> = keys.split_whitespace().collect();
    assert_eq!(keys, ["a", "d"]);

    let refused =
        command::run_with_input(&mut etcdctl.command(&["txn"]), "\nput x 1\nput x 2\n\n\n");
    let stderr = refused.failed();
    assert!(
        stderr.contains("etcdserver: duplicate key given in txn request"),
        "{stderr}"
    );
    server.finish();
}

#[test]
fn watches() {
    let (server, etcdctl) = seeded();
    let past = etcdctl.start(&["watch", "b", "--prefix", "--rev", "2"]);
    assert_eq!(
        past.lines(9),
        ["PUT", "b", "2", "PUT", "ba", "3", "PUT", "bb", "4"]
    );
    // The past watch has caught up: what comes now, it sees as well.
    let previous = etcdctl.start(&["watch", "b", "--prefix", "--rev", "7", "--prev-kv"]);
    etcdctl.ok(&["put", "b", "20"]);
    etcdctl.ok(&["put", "a", "10"]);
    etcdctl.ok(&["del", "ba"]);
    assert_eq!(past.lines(6), ["PUT", "b", "20", "DELETE", "ba", ""]);
    assert_eq!(
        previous.lines(10),
        ["PUT", "b", "2", "b", "20", "DELETE", "ba", "3", "ba", ""]
    );
    let mut progress = etcdctl.start(&["watch", "-i"]);
    progress.type_line("watch --rev 2 a");
    assert_eq!(progress.lines(6), ["PUT", "a", "1", "PUT", "a", "10"]);
    progress.type_line("progress");
    assert_eq!(progress.line(), "progress notify: 9");
    server.finish();
}

#[test]
fn leases() {
    let (server, etcdctl) = seeded();
    let granted = etcdctl.ok(&["lease", "grant", "60"]);
    let words: Vec<&str> = granted.split_whitespace().collect();
    let id = words[1];
    assert_eq!(words[2..], ["granted", "with", "TTL(60s)"]);
    etcdctl.ok(&["put", "held", "1", "--lease", id]);
    let said = etcdctl.ok(&["lease", "timetolive", id, "--keys"]);
    assert!(
        said.contains("granted with TTL(60s)") && said.contains("attached keys([held])"),
        "{said}"
    );
    let listed = etcdctl.ok(&["lease", "list"]);
    assert!(listed.contains(id), "{listed}");
    let kept = etcdctl.ok(&["lease", "keep-alive", "--once", id]);
    assert_eq!(kept, format!("lease {id} keepalived with TTL(60)\n"));
    assert_eq!(
        etcdctl.ok(&["lease", "revoke", id]),
        format!("lease {id} revoked\n")
    );
    assert_eq!(etcdctl.ok(&["get", "held"]), "");
    let stderr = etcdctl.run(&["lease", "revoke", id]).failed();
    assert!(
        stderr.contains("etcdserver: requested lease not found"),
        "{stderr}"
    );
    let said = etcdctl.ok(&["lease", "timetolive", id]);
    assert!(said.contains("already expired"), "{said}");

    // A lease that nobody renews takes its keys along.
    let granted = etcdctl.ok(&["lease", "grant", "1"]);
    let id = granted.split_whitespace().nth(1).expect("an id");
    let watch = etcdctl.start(&["watch", "brief", "--rev", "2"]);
    etcdctl.ok(&["put", "brief", "1", "--lease", id]);
    assert_eq!(watch.lines(3), ["PUT", "brief", "1"]);
    assert_eq!(watch.lines(2), ["DELETE", "brief"]);
    server.finish();
}

#[test]
fn compaction() {
    let (server, etcdctl) = seeded();
    etcdctl.ok(&["put", "a", "6"]);
    assert_eq!(etcdctl.ok(&["compaction", "6"]), "compacted revision 6\n");
    let stderr = etcdctl.run(&["get", "a", "--rev", "3"]).failed();
    assert!(
        stderr.contains("etcdserver: mvcc: required revision has been compacted"),
        "{stderr}"
    );
    assert_eq!(etcdctl.ok(&["get", "a", "--rev", "6"]), "a\n1\n");
    let stderr = etcdctl.run(&["compaction", "6"]).failed();
    assert!(
        stderr.contains("etcdserver: mvcc: required revision has been compacted"),
        "{stderr}"
    );
    let stderr = etcdctl.run(&["compaction", "99"]).failed();
    assert!(
        stderr.contains("etcdserver: mvcc: required revision is a future revision"),
        "{stderr}"
    );
    server.finish();
}

#[test]
fn endpoint_and_members() {
    let (server, etcdctl) = seeded();
    // etcdctl says it on standard error in the simple format.
    let said = etcdctl.run(&["endpoint", "health"]).code_is(0);
    let text = format!("{}{}", said.stdout, said.stderr);
    assert!(
        text.contains("is healthy: successfully committed proposal"),
        "{text}"
    );
    let status: Value =
        serde_json::from_str(&etcdctl.ok(&["endpoint", "status", "-w", "json"])).expect("JSON");
    let status = &status[0]["Status"];
    assert_eq!(status["header"]["revision"], 6);
    assert_eq!(status["leader"], status["header"]["member_id"]);
    assert!(
        status["version"]
            .as_str()
            .is_some_and(|it| it.starts_with("3.6.")),
        "{status}"
    );
    let members = etcdctl.ok(&["member", "list"]);
    assert!(
        members.contains("started") && members.contains(&server.endpoint()),
        "{members}"
    );
    server.finish();
}

#[test]
fn acknowledged_writes_survive_kill_minus_nine() {
    let (mut server, etcdctl) = seeded();
    for round in 0..5 {
        let value = format!("{round}");
        etcdctl.ok(&["put", "round", &value]);
        server.crash();
        assert_eq!(
            etcdctl.ok(&["get", "round", "--print-value-only"]),
            format!("{value}\n")
        );
    }
    let json: Value =
        serde_json::from_str(&etcdctl.ok(&["get", "round", "-w", "json"])).expect("JSON");
    assert_eq!(json["header"]["revision"], 11);
    server.finish();
}

/// The platform's etcd serves outsiders too, in a keyspace of their own.
#[test]
fn the_platforms_etcd_is_open_to_clients() {
    let cke = Cke::start(FAST);
    cke.create_active("demo");
    let etcdctl = Etcdctl::new(&cke.exports["CKE_ETCD"]);
    assert_eq!(etcdctl.ok(&["get", "", "--prefix"]), "");
    etcdctl.ok(&["put", "mine", "1"]);
    assert_eq!(etcdctl.ok(&["get", "", "--prefix"]), "mine\n1\n");
    cke.finish();
}
