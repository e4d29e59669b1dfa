//! Compaction by itself, in etcd's two modes.

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::Duration;

use super::batch::Command;
use super::error::Error;
use super::keyspace::Keyspace;
use crate::clock::Timestamp;

/// How often the revision mode looks.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// The periodic mode compacts at most this often, and notes a revision ten times as often.
const LONGEST_PERIOD: Duration = Duration::from_secs(3600);
const NOTES_PER_PERIOD: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Keeps the history of so long.
    Periodic(Duration),
    /// Keeps so many revisions.
    Revision(i64),
}

impl AutoCompaction {
    /// How long to wait between two steps.
    fn interval(self) -> Duration {
        match self {
            AutoCompaction::Periodic(retention) => retention.min(LONGEST_PERIOD) / NOTES_PER_PERIOD,
            AutoCompaction::Revision(_) => REVISION_INTERVAL,
        }
    }
}

/// What there was when.
#[derive(Default)]
struct Notes {
    oldest_first: VecDeque<(Timestamp, i64)>,
    last_compaction: Option<Timestamp>,
}

impl Notes {
    /// Notes the revision; says what to compact at, if it is time.
    fn step(&mut self, mode: AutoCompaction, now: Timestamp, revision: i64) -> Option<i64> {
        match mode {
            AutoCompaction::Revision(keep) => Some(revision - keep).filter(|at| *at > 0),
            AutoCompaction::Periodic(retention) => {
                self.oldest_first.push_back((now, revision));
                let mut at = None;
                while let Some((noted, revision)) = self.oldest_first.front()
                    && noted.saturating_add(retention) <= now
                {
                    at = Some((*noted, *revision));
                    self.oldest_first.pop_front();
                }
                // What was noted longest ago but within the retention stays for the next step.
                let (noted, revision) = at?;
                let pause = retention.min(LONGEST_PERIOD);
                let due = self
                    .last_compaction
                    .is_none_or(|last| last.saturating_add(pause) <= now);
                if !due {
                    self.oldest_first.push_front((noted, revision));
                    return None;
                }
                self.last_compaction = Some(now);
                Some(revision)
            }
        }
    }
}

/// Compacts the keyspace until it is closed. Does not keep it in memory.
pub async fn run(keyspace: Weak<Keyspace>, mode: AutoCompaction) {
    let mut notes = Notes::default();
    let found = keyspace.upgrade();
    let found = found.map(|keyspace| (keyspace.clock.clone(), keyspace.closed.clone()));
    let Some((clock, closed)) = found else { return };
    loop {
        let activity = tokio::select! {
            () = closed.cancelled() => return,
            activity = clock.sleep(mode.interval()) => activity,
        };
        let Some(keyspace) = keyspace.upgrade() else {
            return;
        };
        if let Some(at) = notes.step(mode, clock.now(), keyspace.revision()) {
            match keyspace.submit(Command::Compact(at)).await {
                Ok(_) => tracing::info!(keyspace = %keyspace.name, at, "compacted"),
                // Nothing was written since, or somebody else was faster.
                Err(Error::Compacted) => {}
                Err(error) => {
                    tracing::warn!(keyspace = %keyspace.name, at, %error, "cannot compact");
                }
            }
        }
        drop(activity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps at the mode's interval, 10 revisions each: where it compacts.
    fn steps(mode: AutoCompaction, count: u32) -> Vec<(u32, i64)> {
        let mut notes = Notes::default();
        (1..=count)
            .filter_map(|step| {
                let now = Timestamp(0).saturating_add(mode.interval() * step);
                let at = notes.step(mode, now, i64::from(step) * 10)?;
                Some((step, at))
            })
            .collect()
    }

    #[test]
    fn so_much_history_is_kept() {
        assert_eq!(
            steps(AutoCompaction::Revision(25), 5),
            [(3, 5), (4, 15), (5, 25)]
        );
        // Half an hour, in steps of three minutes: once half an hour has passed, then each half hour.
        let half_hour = AutoCompaction::Periodic(Duration::from_secs(1800));
        assert_eq!(steps(half_hour, 35), [(11, 10), (21, 110), (31, 210)]);
        // Three hours, in steps of six minutes: each hour, what was three hours ago.
        let hours = AutoCompaction::Periodic(Duration::from_secs(3 * 3600));
        assert_eq!(steps(hours, 52), [(31, 10), (41, 110), (51, 210)]);
    }
}
