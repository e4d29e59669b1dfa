//! Crashes: the end of the journal cut or changed at every byte, the process killed, the disk full.

use bytes::Bytes;
use fdb::{Database, EmbeddedOptions, Error, OpenError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

async fn open(directory: &Path) -> Result<Database, OpenError> {
    Database::open_embedded(directory, EmbeddedOptions::default()).await
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "jnl")
        {
            // Without the preallocated zeros: copying 64 MiB a thousand times takes its time.
            let mut journal = fs::read(entry.path()).unwrap();
            let length = journal
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            journal.truncate(length);
            fs::write(target, journal).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn journal(directory: &Path) -> PathBuf {
    let mut journals: Vec<PathBuf> = fs::read_dir(directory.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    assert_eq!(journals.len(), 1);
    journals.remove(0)
}

async fn commit(database: &Database, writes: &[(&'static str, &'static str)]) {
    let transaction = database.create_transaction();
    for (key, value) in writes {
        transaction.set(*key, *value);
    }
    transaction.commit().await.unwrap();
}

async fn everything(database: &Database) -> Vec<(Bytes, Bytes)> {
    let all = (Bytes::new(), Bytes::from_static(b"\xff"));
    database
        .create_transaction()
        .get_range(all.into())
        .await
        .unwrap()
        .kvs
}

/// A store with two commits, and where in the journal the second one begins and ends. Also the state before it and
/// after it.
struct TwoCommits {
    directory: tempfile::TempDir,
    begin: usize,
    end: usize,
    before: Vec<(Bytes, Bytes)>,
    after: Vec<(Bytes, Bytes)>,
}

async fn two_commits() -> TwoCommits {
    let original = tempfile::tempdir().unwrap();
    let database = open(original.path()).await.unwrap();
    commit(&database, &[("a", "1"), ("b", "1")]).await;
    let length = || {
        let journal = fs::read(journal(original.path())).unwrap();
        journal.iter().rposition(|byte| *byte != 0).unwrap() + 1
    };
    let begin = length();
    let before = everything(&database).await;
    commit(
        &database,
        &[
            ("b", "two"),
            ("c", "two"),
            ("d", "a value of some more bytes"),
        ],
    )
    .await;
    let after = everything(&database).await;
    let end = length();
    let directory = tempfile::tempdir().unwrap();
    copy(original.path(), directory.path());
    TwoCommits {
        directory,
        begin,
        end,
        before,
        after,
    }
}

/// Opens a copy whose journal was changed by `damage`, and tells what is found; and that it can be used.
async fn found(
    commits: &TwoCommits,
    damage: impl FnOnce(&mut Vec<u8>),
) -> Result<Vec<(Bytes, Bytes)>, OpenError> {
    let directory = tempfile::tempdir().unwrap();
    copy(commits.directory.path(), directory.path());
    let path = journal(directory.path());
    let mut bytes = fs::read(&path).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let database = open(directory.path()).await?;
    let found = everything(&database).await;
    commit(&database, &[("e", "after the crash")]).await;
    database.close().await;
    drop(database);
    let mut expect = found.clone();
    expect.push(("e".into(), "after the crash".into()));
    let database = open(directory.path()).await.unwrap();
    assert_eq!(
        everything(&database).await,
        expect,
        "what was committed after the crash is kept as well"
    );
    Ok(found)
}

#[tokio::test]
async fn a_journal_cut_at_any_byte_of_the_last_commit_keeps_the_one_before() {
    let commits = two_commits().await;
    assert!(commits.end - commits.begin > 100);
    for cut in commits.begin..=commits.end {
        let zeros = if cut % 2 == 0 { 0 } else { 5_000 }; // what the file had been extended by
        let found = found(&commits, |journal| {
            journal.truncate(cut);
            journal.resize(cut + zeros, 0);
        });
        let expect = if cut == commits.end {
            &commits.after
        } else {
            &commits.before
        };
        assert_eq!(&found.await.unwrap(), expect, "cut at {cut}");
    }
}

/// The disk stored later bytes of the last commit and not earlier ones.
#[tokio::test]
async fn a_hole_anywhere_in_the_last_commit_keeps_the_one_before() {
    let commits = two_commits().await;
    for at in (commits.begin..commits.end).step_by(3) {
        let hole = at..(at + 20).min(commits.end);
        let found = found(&commits, |journal| journal[hole].fill(0));
        assert_eq!(found.await.unwrap(), commits.before, "hole at {at}");
    }
}

/// A changed byte before the last commit is not a crash: the store must not silently drop what was acknowledged.
#[tokio::test]
async fn damage_before_the_last_commit_is_reported() {
    let commits = two_commits().await;
    for at in 0..commits.begin {
        let bit = 1 << (at % 8);
        let damaged = found(&commits, |journal| journal[at] ^= bit).await;
        assert!(
            matches!(damaged, Err(OpenError::Damaged { .. })),
            "byte {at}: {damaged:?}"
        );
    }
}

/// Damage in table files, wherever it is: what is read is what was written, or an error.
#[tokio::test]
async fn damage_in_tables_is_reported_and_never_served() {
    const TRIALS: u32 = 12;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    // More than a memtable holds, and incompressible, so that there are tables about as large as that.
    let values: Vec<Vec<u8>> = (0..700)
        .map(|_| {
            let mut value = vec![0; 60_000];
            random.fill(value.as_mut_slice());
            value
        })
        .collect();
    let original = tempfile::tempdir().unwrap();
    let database = open(original.path()).await.unwrap();
    for (n, value) in values.iter().enumerate() {
        let transaction = database.create_transaction();
        transaction.set(format!("{n:06}"), value.clone());
        transaction.commit().await.unwrap();
    }
    database.close().await;
    drop(database);
    let all: Vec<PathBuf> = files(original.path());
    let tables = all.iter().filter(|path| {
        // Journals have a name that tells.
        path.extension().is_none() && fs::metadata(path).unwrap().len() > 1_000_000
    });
    let tables: Vec<&PathBuf> = tables.collect();
    assert!(!tables.is_empty(), "{all:?}");
    let mut reported = 0;
    for _ in 0..TRIALS {
        let table = tables[random.random_range(0..tables.len())];
        let sound = fs::read(table).unwrap();
        let mut damaged = sound.clone();
        // One half of the damage is near the end, where a table says what is where.
        let from = if random.random() {
            0
        } else {
            damaged.len() - 3_000
        };
        let at = random.random_range(from..damaged.len());
        damaged[at] ^= 1 << random.random_range(0..8);
        fs::write(table, &damaged).unwrap();
        reported += u32::from(!reads_right(original.path(), &values).await);
        fs::write(table, &sound).unwrap();
    }
    assert!(reported > TRIALS / 2, "only {reported} were noticed");
    assert!(reads_right(original.path(), &values).await);
}

/// False if something was reported to be damaged; whatever was read was right.
async fn reads_right(directory: &Path, values: &[Vec<u8>]) -> bool {
    let Ok(database) = open(directory).await else {
        return false;
    };
    let mut right = true;
    for (n, value) in values.iter().enumerate() {
        let key = format!("{n:06}");
        let transaction = database.create_transaction();
        match transaction.get(key.as_bytes(), true).await {
            Ok(found) => assert!(
                found.as_ref() == Some(&Bytes::copy_from_slice(value)),
                "{key} is wrong"
            ),
            Err(_) => right = false,
        }
    }
    database.close().await;
    right
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Not a test by itself: what the tests below run as a process of its own. Commits counters until it is killed or
/// fails, and writes each acknowledged one to its standard output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Ok(directory) = std::env::var("FDB_CRASH_VICTIM") else {
        return;
    };
    let database = open(Path::new(&directory)).await.unwrap();
    let mut tasks = Vec::new();
    for task in 0..4u32 {
        let database = database.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0u64.. {
                // Two keys with one value, and ballast: a half commit would show.
                let transaction = database.create_transaction();
                for half in ["x", "y"] {
                    transaction.set(format!("{task}{half}"), n.to_string());
                }
                transaction.set(format!("{task}ballast"), vec![b'b'; 3_000]);
                let line = match transaction.commit().await {
                    Ok(_) => format!("\n{task} {n}\n"),
                    Err(failed) => format!("\n{task} failed {}\n", failed.error.code()),
                };
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                if line.contains("failed 1510") {
                    return;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// This test binary, running `victim` alone.
fn victim_command(directory: &Path, shell: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            &format!("{shell} exec \"$0\" --exact victim --nocapture --test-threads=1"),
        ])
        .arg(std::env::current_exe().unwrap())
        .env("FDB_CRASH_VICTIM", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// The last counter that each task reported.
fn acknowledged(lines: &[String]) -> [Option<u64>; 4] {
    let mut last = [None; 4];
    for line in lines {
        if let Some((task, n)) = line.split_once(' ')
            && let (Ok(task), Ok(n)) = (task.parse::<usize>(), n.parse())
        {
            last[task] = Some(n);
        }
    }
    last
}

async fn check_victim(directory: &Path, acknowledged: [Option<u64>; 4]) {
    let database = open(directory).await.unwrap();
    for (task, acknowledged) in acknowledged.into_iter().enumerate() {
        let read = async |half: &str| {
            let key = format!("{task}{half}");
            let value = database
                .create_transaction()
                .get(key.as_bytes(), false)
                .await
                .unwrap();
            value.map(|value| String::from_utf8_lossy(&value).parse::<u64>().unwrap())
        };
        let (x, y) = (read("x").await, read("y").await);
        assert_eq!(x, y, "half a commit of task {task}");
        assert!(
            x >= acknowledged,
            "task {task}: {acknowledged:?} was acknowledged, {x:?} is there"
        );
        // At most the one that was under way.
        assert!(x.map_or(0, |x| x + 1) <= acknowledged.map_or(0, |n| n + 1) + 1);
    }
}

#[tokio::test]
async fn a_killed_process_loses_no_acknowledged_commit() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let directory = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let mut child = victim_command(directory.path(), "").spawn().unwrap();
        let mut lines = Vec::new();
        let mut output = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let wanted = random.random_range(1..150);
        while acknowledgements(&lines) < wanted {
            lines.push(
                output
                    .next()
                    .unwrap_or_else(|| panic!("the victim died by itself: {lines:?}")),
            );
        }
        child.kill().unwrap(); // SIGKILL
        lines.extend(output);
        child.wait().unwrap();
        assert!(acknowledgements(&lines) >= wanted, "round {round}");
        check_victim(directory.path(), acknowledged(&lines)).await;
    }
}

fn acknowledgements(lines: &[String]) -> usize {
    lines
        .iter()
        .filter(|line| {
            line.split_once(' ')
                .is_some_and(|(task, n)| task.len() == 1 && n.parse::<u64>().is_ok())
        })
        .count()
}

/// No file may grow beyond a limit: the journal's writes fail as on a full disk.
#[tokio::test]
async fn a_full_disk_refuses_and_keeps_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    // First without the limit, because a new journal is preallocated beyond it; reopening cuts it to what is used.
    let database = open(directory.path()).await.unwrap();
    database.close().await;
    drop(database);
    let database = open(directory.path()).await.unwrap();
    database.close().await;
    drop(database);
    let output = victim_command(directory.path(), "trap '' XFSZ; ulimit -f 400;")
        .output()
        .unwrap();
    let lines: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(acknowledgements(&lines) > 10, "{lines:?}");
    let unknown = format!("failed {}", Error::COMMIT_UNKNOWN_RESULT.code());
    let refused = format!("failed {}", Error::IO_ERROR.code());
    assert!(
        lines.iter().any(|line| line.contains(&unknown)),
        "{lines:?}"
    );
    assert_eq!(
        lines.iter().filter(|line| line.contains(&refused)).count(),
        4,
        "{lines:?}"
    );
    check_victim(directory.path(), acknowledged(&lines)).await;
}
