//! etcd's watch guarantees (contract, section 1) against the log.
//!
//! What a watch may be told is determined: the log from its first revision on, as far as it matches.
//! So its events must be a beginning of that: in order, each once, none left out, none altered. An
//! answer that is no fragment ends with the end of a revision. A progress notification at r needs
//! that everything up to r has been told. The watch that takes over after a disconnection is
//! checked by itself, from the revision after the last one it was told of.

use std::iter::Peekable;

use super::log::Log;
use super::{Compactions, Rule, Violation};
use crate::history::{
    Asked, Change, Heard, History, Nanos, Said, WatchEvent, WatchRecord, show_kv,
};

pub fn check(
    history: &History,
    log: &Log,
    compactions: &Compactions,
    violations: &mut Vec<Violation>,
) {
    for watch in &history.watches {
        if let Err(violation) = check_watch(watch, log, compactions) {
            violations.push(Violation {
                detail: format!("{watch}\n    {}", violation.detail),
                ..violation
            });
        }
    }
}

/// The log's part for the watch, from `start` on.
fn expected<'a>(
    log: &'a Log,
    asked: &'a Asked,
    start: i64,
) -> Peekable<impl Iterator<Item = &'a Change>> {
    let wanted = |change: &&Change| {
        let filtered = match change.kv {
            Some(_) => asked.no_put,
            None => asked.no_delete,
        };
        !filtered && asked.keys.contains(&change.key)
    };
    (start..=log.last())
        .flat_map(|revision| log.changes(revision))
        .filter(wanted)
        .peekable()
}

fn broken(rule: Rule, heard: &Heard, why: impl std::fmt::Display) -> Violation {
    Violation::new(rule, format!("{heard}\n    {why}"))
}

fn check_watch(watch: &WatchRecord, log: &Log, compactions: &Compactions) -> Result<(), Violation> {
    let asked = &watch.asked;
    let mut heard = watch.heard.iter();
    let Some(created) = heard.next() else {
        return Ok(());
    };
    if !matches!(created.said, Said::Created) {
        return Err(broken(
            Rule::WatchEvents,
            created,
            "it had not been created",
        ));
    }
    let start = match asked.start_revision {
        0 => created.revision + 1,
        start => start,
    };
    let mut expected = expected(log, asked, start);
    // The last revision told of, and whether more of it was announced.
    let mut told = start - 1;
    let mut open = false;
    for heard in heard {
        match &heard.said {
            Said::Created => return Err(broken(Rule::WatchEvents, heard, "created twice")),
            Said::Events { events, fragment } => {
                for event in events {
                    check_event(event, expected.next(), log, compactions, asked, heard)?;
                    told = event.change.revision;
                }
                if start < compactions.certain(watch.at) {
                    return Err(broken(
                        Rule::WatchCompaction,
                        heard,
                        "it begins below what was compacted",
                    ));
                }
                open = *fragment;
                let goes_on = expected.peek().is_some_and(|next| next.revision == told);
                if *fragment && !asked.fragment {
                    return Err(broken(
                        Rule::WatchAtomic,
                        heard,
                        "it did not ask for fragments",
                    ));
                }
                if goes_on != *fragment && !*fragment {
                    return Err(broken(
                        Rule::WatchAtomic,
                        heard,
                        "the rest of the revision is missing",
                    ));
                }
                if heard.revision < told {
                    return Err(broken(
                        Rule::WatchEvents,
                        heard,
                        "its header is older than its events",
                    ));
                }
            }
            Said::Progress => check_progress(heard, asked, expected.peek(), open)?,
            Said::Canceled {
                compact_revision,
                reason,
            } => {
                let compacted = *compact_revision;
                let known = compacted > 0 && compacted <= compactions.possible(heard.at);
                if !known || compacted <= told + 1 {
                    let why = format!("it was at {told}: {reason}");
                    return Err(broken(Rule::WatchCompaction, heard, why));
                }
                return Ok(());
            }
        }
    }
    if let (Some(complete_to), Some(missing)) = (watch.complete_to, expected.peek())
        && missing.revision <= complete_to
    {
        let detail = format!("it was never told of {missing}");
        return Err(Violation::new(Rule::WatchEvents, detail));
    }
    Ok(())
}

fn check_event(
    event: &WatchEvent,
    expected: Option<&Change>,
    log: &Log,
    compactions: &Compactions,
    asked: &Asked,
    heard: &Heard,
) -> Result<(), Violation> {
    let change = &event.change;
    if expected != Some(change) {
        let expected = expected.map_or_else(|| String::from("nothing"), Change::to_string);
        let why = format!("{change} came, {expected} was next");
        return Err(broken(Rule::WatchEvents, heard, why));
    }
    if let Some(kv) = &change.kv
        && (kv.create_revision == kv.mod_revision) != (kv.version == 1)
    {
        return Err(broken(Rule::WatchEvents, heard, "created or not?"));
    }
    let before = log.get(&change.key, change.revision - 1);
    let right = match (&event.previous, asked.prev_kv) {
        (None, false) => true,
        (Some(_), false) => false,
        // The revision before is no longer readable once this one has been compacted.
        (None, true) => before.is_none() || is_compacted(change.revision, compactions, heard.at),
        (Some(previous), true) => before == Some(previous),
    };
    if right {
        return Ok(());
    }
    let show = |kv: Option<&_>| kv.map_or_else(|| String::from("nothing"), show_kv);
    let (previous, before) = (show(event.previous.as_ref()), show(before));
    let why = format!("{change} replaced {before}, and not {previous}");
    Err(broken(Rule::WatchPrevious, heard, why))
}

fn is_compacted(revision: i64, compactions: &Compactions, at: Nanos) -> bool {
    revision <= compactions.possible(at)
}

fn check_progress(
    heard: &Heard,
    asked: &Asked,
    next: Option<&&Change>,
    open: bool,
) -> Result<(), Violation> {
    if open {
        return Err(broken(
            Rule::WatchProgress,
            heard,
            "in the middle of a revision",
        ));
    }
    if asked.start_revision > heard.revision {
        let why = "its first revision has not come";
        return Err(broken(Rule::WatchProgress, heard, why));
    }
    match next {
        Some(next) if next.revision <= heard.revision => {
            let why = format!("{next} had not been told of");
            Err(broken(Rule::WatchProgress, heard, why))
        }
        _ => Ok(()),
    }
}
