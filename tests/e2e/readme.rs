//! README.md's transcript, literally: every command in it is run, and must say what is written
//! there. `sleep` passes simulated time, at the default scale, by hand.
//!
//! Identifiers, dates, ages and ports are not compared; everything else is, up to white space.

use crate::clever::Clever;
use crate::command;
use crate::harness::{Cke, MANUAL};

/// Simulated seconds a real second, unless `--time-scale` says otherwise.
const DEFAULT_TIME_SCALE: u64 = 20;

#[test]
fn the_transcript() {
    let readme = include_str!("../../README.md");
    let steps = transcript(readme);
    assert!(steps.len() > 20, "README.md has no transcript");
    let cke = Cke::start(MANUAL);
    let clever = Clever::fresh(&cke);
    for (line, expect) in steps {
        if let Some(seconds) = line.strip_prefix("sleep ") {
            let seconds: u64 = seconds.parse().expect("seconds to sleep");
            cke.advance(seconds * DEFAULT_TIME_SCALE);
            continue;
        }
        let said = command::run(&mut clever.shell(&format!("({line}) 2>&1"), &cke.exports));
        assert_eq!(said.code, Some(0), "$ {line}\n{}", said.stdout);
        assert_eq!(comparable(&said.stdout), comparable(&expect), "$ {line}");
    }
    cke.finish();
}

/// Commands with what they say, of all blocks that are a `console`'s.
fn transcript(readme: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    for block in readme.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap_or("");
        for line in block.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push((command.to_owned(), String::new())),
                (None, Some((_, said))) => {
                    said.push_str(line);
                    said.push('\n');
                }
                (None, None) => panic!("no command before {line:?}"),
            }
        }
    }
    steps
}

/// Without what differs from run to run, and from column to column.
fn comparable(text: &str) -> String {
    let lines = text.trim_end().lines().map(|line| {
        let words: Vec<String> = line.split_whitespace().map(word).collect();
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn word(word: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((host, _)) = word.rsplit_once(':').filter(|(host, rest)| {
        host.ends_with("127.0.0.1") && rest.starts_with(|c: char| c.is_ascii_digit())
    }) {
        let end = if word.ends_with(',') { "," } else { "" };
        return format!("{host}:PORT{end}");
    }
    let bare = word.trim_matches('\'');
    let date = bare.trim_end_matches('Z').split(['-', ':']);
    if bare.contains(['-', ':']) && date.clone().count() > 1 && date.clone().all(digits) {
        return word.replace(bare, "DATE");
    }
    let age = bare.split(['d', 'h', 'm', 's']);
    if bare.ends_with(['d', 'h', 'm', 's'])
        && bare.starts_with(|c: char| c.is_ascii_digit())
        && age.clone().all(|part| part.is_empty() || digits(part))
    {
        return String::from("AGE");
    }
    identifiers(word)
}

/// ULIDs and the member id in hexadecimal have one length each.
fn identifiers(word: &str) -> String {
    let mut out = String::new();
    for part in word.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let run = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let has_digit = run.bytes().any(|byte| byte.is_ascii_digit());
        let identifier = has_digit && matches!(run.len(), 15 | 16 | 26);
        out.push_str(if identifier { "ID" } else { run });
        out.push_str(&part[run.len()..]);
    }
    out
}

#[test]
fn only_what_differs_from_run_to_run_is_left_out() {
    let check = |text: &str, expect: &str| assert_eq!(comparable(text), expect);
    check("a  b\nc \n\n", "a b\nc");
    check(
        "│ ID │ 'kubernetes_01M858T9MBHD0WC29CPGP3CZ8F' │",
        "│ ID │ 'kubernetes_ID' │",
    );
    check("'2026-11-23 22:42:10Z'", "'DATE DATE'");
    check(
        "workers-node0 Ready 5m12s v1.36.0",
        "workers-node0 Ready AGE v1.36.0",
    );
    check("22321567801d6943, started", "ID, started");
    check(
        "http://127.0.0.1:2379, false",
        "http://127.0.0.1:PORT, false",
    );
    check(
        "'192.0.2.1, 192.0.2.2' '2/2' rf=1 1.36",
        "'192.0.2.1, 192.0.2.2' '2/2' rf=1 1.36",
    );
}
