//! The command line of `cke`.

use crate::command;
use crate::harness::{Cke, FAST, cke, on_foundationdb};

/// One clear line, and a non-zero exit.
#[track_caller]
fn check_refused(arguments: &[&str], expect: &str) {
    let said = command::run(cke().args(arguments));
    assert!(said.code.is_some_and(|code| code != 0), "{said:#?}");
    assert!(said.stderr.contains(expect), "{said:#?}");
    assert!(!said.stderr.contains("panicked"), "{said:#?}");
}

#[test]
fn a_port_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().to_string_lossy().into_owned();
    let free = "127.0.0.1:0";
    for taken in ["--listen-http", "--listen-kubernetes", "--listen-etcd"] {
        let mut arguments = vec!["serve", "--data-dir", &data];
        for option in ["--listen-http", "--listen-kubernetes", "--listen-etcd"] {
            arguments.extend([option, if option == taken { &address } else { free }]);
        }
        check_refused(&arguments, &address);
    }
    let url = format!("http://{address}");
    check_refused(
        &["etcd", "--data-dir", &data, "--listen-client-urls", &url],
        &address,
    );
}

#[test]
fn etcds_configuration_file_is_instead_of_flags() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (file, data) = (path("etcd.yaml"), path("data"));
    let check = |written: String, expect: &str| {
        std::fs::write(&file, written).expect("a file");
        let flags = ["--listen-client-urls", "http://127.0.0.1:0"];
        check_refused(
            &[&["etcd", "--config-file", &file], &flags[..]].concat(),
            expect,
        );
    };
    let url = format!("data-dir: {data}\nlisten-client-urls: http://{address}\n");
    check(url, &address);
    check(String::from("max-txn-ops: many\n"), "--max-txn-ops");
    check(String::from("name: [\n"), &file);
    let missing = path("missing.yaml");
    check_refused(&["etcd", "--config-file", &missing], &missing);
}

#[test]
fn an_unusable_data_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let below = file.join("data").to_string_lossy().into_owned();
    let free = "127.0.0.1:0";
    check_refused(
        &[
            "serve",
            "--data-dir",
            &below,
            "--listen-http",
            free,
            "--listen-kubernetes",
            free,
            "--listen-etcd",
            free,
        ],
        &below,
    );
}

/// Two servers on one data directory would destroy it.
#[test]
fn a_data_directory_in_use() {
    if on_foundationdb() {
        println!("not run on FoundationDB: several servers may share a store there");
        return;
    }
    let first = Cke::start(FAST);
    let data = first
        .directory()
        .join("data")
        .to_string_lossy()
        .into_owned();
    let free = "127.0.0.1:0";
    check_refused(
        &[
            "serve",
            "--data-dir",
            &data,
            "--listen-http",
            free,
            "--listen-kubernetes",
            free,
            "--listen-etcd",
            free,
        ],
        &data,
    );
    first.finish();
}

#[test]
fn bad_options() {
    check_refused(
        &["serve", "--time-scale", "fast"],
        "neither `manual` nor a factor",
    );
    check_refused(&["serve", "--listen-http", "nowhere"], "nowhere");
    check_refused(&["serve", "--no-such-option"], "--no-such-option");
    check_refused(
        &["serve", "--config", "/does/not/exist.toml"],
        "/does/not/exist.toml",
    );
    check_refused(
        &["etcd", "--listen-client-urls", "127.0.0.1:2379"],
        "http://",
    );
    check_refused(&["price", "--topology", "FOO"], "FOO");
    check_refused(
        &["health", "https://127.0.0.1:2379/readyz"],
        "http://HOST:PORT/PATH",
    );
    check_refused(&["etcd", "--store", "s3://bucket"], "expected embedded:DIR");
}

/// One line says how to get a build that has it.
#[cfg(not(feature = "foundationdb"))]
#[test]
fn a_build_without_foundationdb() {
    let url = "http://127.0.0.1:0";
    check_refused(
        &[
            "etcd",
            "--listen-client-urls",
            url,
            "--store",
            "fdb:///etc/foundationdb/fdb.cluster",
        ],
        "cargo build --release --features foundationdb",
    );
}

#[cfg(feature = "foundationdb")]
#[test]
fn a_cluster_file_that_is_not_there() {
    let url = "http://127.0.0.1:0";
    let store = "fdb:///does/not/exist/fdb.cluster";
    check_refused(
        &["etcd", "--listen-client-urls", url, "--store", store],
        "/does/not/exist/fdb.cluster",
    );
}

#[test]
fn a_bad_account_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("cke.toml");
    std::fs::write(
        &file,
        "[[users]]\nname = 'A'\nemail = 'a@b'\nid = 'user_7'\n",
    )
    .expect("a file");
    let data = directory.path().join("data").to_string_lossy().into_owned();
    let free = "127.0.0.1:0";
    check_refused(
        &[
            "serve",
            "--config",
            &file.to_string_lossy(),
            "--data-dir",
            &data,
            "--listen-http",
            free,
            "--listen-kubernetes",
            free,
            "--listen-etcd",
            free,
        ],
        "user_7",
    );
}

#[test]
fn versions_and_prices() {
    let said = command::run(cke().arg("version")).ok();
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    // The specification's worked example: five components in 2XS.
    let said = command::run(cke().args([
        "price",
        "--topology",
        "DISTRIBUTED",
        "--flavor",
        "2XS",
        "--replication-factor",
        "1",
    ]))
    .ok();
    assert!(said.contains("180.00"), "{said}");
}
