//! How many replacements are under way at once, over all clusters: a datacenter that is lost takes a third of
//! everything with it, and to ask the cloud for all of that at once would help nobody.
//!
//! What is under way is counted from the records, so a start finds it as it was. A round that would begin
//! more than there is room for leaves its key here, and is taken again when there is room; who waits is known
//! to this process alone, as every key is looked at after a start.
//!
//! Worked example (a limit of 2, and three groups that each lost a node): `a` and `b` begin, `c` waits. The
//! successor in `a` serves and takes over: the record says so, there is room for one, and `c` is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::replacement::Replica;

/// Replacements at once: of ten thousand VMs, a third is healed within half an hour.
pub const MAX_REPLACEMENTS: usize = 256;

type Wake = Box<dyn Fn(&str) + Send + Sync>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Turns {
    state: Arc<Mutex<State>>,
}

struct State {
    limit: usize,
    /// How many are under way, by the key of the record.
    under_way: BTreeMap<String, usize>,
    /// Given to rounds that are not recorded yet.
    given: usize,
    waiting: BTreeSet<String>,
    wake: Option<Wake>,
}

/// What a round may begin; given back when it is dropped, which is after the round's change is in view.
pub struct Turn {
    turns: Turns,
    pub replacements: usize,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.replacements > 0 {
            self.turns.state.lock().given -= self.replacements;
            self.turns.wake();
        }
    }
}

impl State {
    fn room(&self) -> usize {
        let under_way: usize = self.under_way.values().sum();
        self.limit.saturating_sub(under_way + self.given)
    }
}

impl Turns {
    pub fn new(limit: usize) -> Turns {
        Turns {
            state: Arc::new(Mutex::new(State {
                limit,
                under_way: BTreeMap::new(),
                given: 0,
                waiting: BTreeSet::new(),
                wake: None,
            })),
        }
    }

    /// Has keys that waited looked at by `wake`, from now on.
    pub fn on_room(&self, wake: Wake) {
        self.state.lock().wake = Some(wake);
    }

    /// A turn for at most `wanted` replacements, or fewer, or none.
    pub fn ask(&self, wanted: usize) -> Turn {
        let mut state = self.state.lock();
        let replacements = wanted.min(state.room());
        state.given += replacements;
        Turn {
            turns: self.clone(),
            replacements,
        }
    }

    /// Has the round of `key` taken again when there is room.
    pub fn wait(&self, key: &str) {
        self.state.lock().waiting.insert(key.to_owned());
        self.wake();
    }

    /// What is recorded: so many are under way.
    pub fn record(&self, key: &str, count: usize) {
        {
            let mut state = self.state.lock();
            let before = match count {
                0 => state.under_way.remove(key),
                count => state.under_way.insert(key.to_owned(), count),
            };
            if before.unwrap_or(0) <= count {
                return;
            }
        }
        self.wake();
    }

    fn wake(&self) {
        let mut state = self.state.lock();
        for _ in 0..state.room() {
            let Some(key) = state.waiting.pop_first() else {
                return;
            };
            if let Some(wake) = &state.wake {
                wake(&key);
            }
        }
    }
}

/// How many of a pool are on their way to take another's place. One that found no room waits for others to
/// go, and must not keep them from it.
pub fn under_way<'a, R: Replica + 'a>(pool: impl IntoIterator<Item = &'a R>) -> usize {
    let is_under_way = |replica: &&R| {
        let life = replica.life();
        life.replaces.is_some() && life.retry_at.is_none()
    };
    pool.into_iter().filter(is_under_way).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(limit: usize) -> (Turns, Arc<Mutex<Vec<String>>>) {
        let (turns, woken) = (Turns::new(limit), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&woken);
        turns.on_room(Box::new(move |key| log.lock().push(key.to_owned())));
        (turns, woken)
    }

    /// The worked example.
    #[test]
    fn so_many_begin_and_the_next_when_one_ends() {
        let (turns, woken) = turns(2);
        for key in ["a", "b"] {
            let turn = turns.ask(1);
            assert_eq!(turn.replacements, 1);
            turns.record(key, 1);
        }
        let turn = turns.ask(1);
        assert_eq!(turn.replacements, 0);
        turns.wait("c");
        drop(turn);
        assert!(woken.lock().is_empty());
        turns.record("a", 0);
        assert_eq!(*woken.lock(), ["c"]);
        assert_eq!(turns.ask(5).replacements, 1);
    }

    #[test]
    fn who_needs_no_turn_after_all_leaves_it_to_the_next() {
        let (turns, woken) = turns(1);
        let first = turns.ask(1);
        turns.wait("b");
        turns.wait("c");
        assert!(woken.lock().is_empty());
        drop(first);
        assert_eq!(*woken.lock(), ["b"]);
        drop(turns.ask(1));
        assert_eq!(*woken.lock(), ["b", "c"]);
    }

    #[test]
    fn a_start_counts_what_is_recorded() {
        let (turns, _) = turns(3);
        turns.record("a", 2);
        turns.record("b", 2);
        assert_eq!(
            turns.ask(1).replacements,
            0,
            "more than the limit are under way"
        );
        turns.record("a", 0);
        assert_eq!(turns.ask(9).replacements, 1);
    }
}
