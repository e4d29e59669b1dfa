//! What is under way at the present instant, and whose turn it is.
//!
//! Whoever has something to do holds an [`Activity`]. Queues, whose work never ends for good, have a
//! [`Place`] instead, which counts while something waits in it. While the clock is manual, the queues of
//! all layers take turns: one round of one queue at a time, the queue that took its place first going first,
//! and no round begins while anybody else is active. So every round begins when all that led to it is done, and
//! what it sees does not depend on which of two threads was faster.
//!
//! Worked example (places 1 and 2): a request records a cluster, and holds an activity meanwhile. Both queues get
//! a key, in whatever order. When the request is done, 1 has its turn, and gets another key by what it does; then it
//! has its turn again; then 2. When neither has a key any more, the instant is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Work {
    state: Mutex<State>,
    /// Told whenever nothing is left to do.
    quiet: Notify,
    observers: Mutex<Vec<QuietObserver>>,
}

/// Called whenever nothing is left to do. Must not wait, nor begin anything. `false` says that it wants to hear no
/// more.
pub type QuietObserver = Box<dyn Fn() -> bool + Send + Sync>;

#[derive(Default)]
struct State {
    activities: usize,
    places_given: u64,
    /// Queues with something to do, and how they are told of their turn.
    busy: BTreeMap<u64, Arc<Notify>>,
    /// A turn is under way.
    turn: bool,
}

impl State {
    fn is_quiet(&self) -> bool {
        self.activities == 0 && self.busy.is_empty()
    }

    /// The first queue, if it may begin a round.
    fn next(&self) -> Option<(u64, &Notify)> {
        let (number, ready) = self.busy.first_key_value()?;
        (self.activities == 0 && !self.turn).then_some((*number, ready.as_ref()))
    }
}

impl Work {
    /// Changes what is under way, and tells whom that concerns.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let was_quiet = state.is_quiet();
        let outcome = change(&mut state);
        if let Some((_, ready)) = state.next() {
            ready.notify_one();
        }
        let is_quiet = state.is_quiet();
        drop(state);
        if is_quiet && !was_quiet {
            self.observers.lock().retain(|observer| observer());
            self.quiet.notify_waiters();
        }
        outcome
    }

    pub fn observe(&self, observer: QuietObserver) {
        self.observers.lock().push(observer);
    }

    /// Has every queue look whether it may begin a round.
    pub fn tell_all(&self) {
        for ready in self.state.lock().busy.values() {
            ready.notify_one();
        }
    }

    pub fn begin(&self) {
        self.state.lock().activities += 1;
    }

    pub fn end(&self) {
        self.change(|state| state.activities -= 1);
    }

    pub fn is_quiet(&self) -> bool {
        self.state.lock().is_quiet()
    }

    /// Whether a queue's round is under way.
    pub fn has_turn(&self) -> bool {
        self.state.lock().turn
    }

    /// Resolves when nothing is under way.
    pub async fn quiet(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.is_quiet() {
                return;
            }
            quiet.await;
        }
    }

    /// Resolves when nothing is under way, or was for a moment.
    pub async fn next_quiet(&self) {
        let quiet = self.quiet.notified();
        tokio::pin!(quiet);
        quiet.as_mut().enable();
        if !self.is_quiet() {
            quiet.await;
        }
    }

    /// The next place in line.
    pub fn place(self: &Arc<Self>) -> Place {
        let number = {
            let mut state = self.state.lock();
            state.places_given += 1;
            state.places_given
        };
        Place {
            work: Arc::clone(self),
            number,
            ready: Arc::default(),
        }
    }
}

/// A queue's place in the order of turns.
pub struct Place {
    work: Arc<Work>,
    number: u64,
    ready: Arc<Notify>,
}

impl Place {
    /// The queue has something to do: a manual clock stands still.
    pub fn enter(&self) {
        let ready = Arc::clone(&self.ready);
        self.work
            .change(|state| state.busy.insert(self.number, ready));
    }

    /// The queue has nothing to do.
    pub fn leave(&self) {
        self.work.change(|state| state.busy.remove(&self.number));
    }

    /// Told when the queue may have its turn.
    pub fn ready(&self) -> &Notify {
        &self.ready
    }

    /// The turn, if it is this queue's. Every other one waits as long as it is held.
    pub fn turn(&self) -> Option<Turn> {
        let mut state = self.work.state.lock();
        let (number, _) = state.next()?;
        if number != self.number {
            return None;
        }
        state.turn = true;
        Some(Turn {
            work: Arc::clone(&self.work),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Held during a round.
pub struct Turn {
    work: Arc<Work>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.work.change(|state| state.turn = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example.
    #[test]
    fn queues_take_turns_in_the_order_of_their_places() {
        let work = Arc::new(Work::default());
        let (first, second) = (work.place(), work.place());
        let turns = || [first.turn().is_some(), second.turn().is_some()];
        work.begin();
        second.enter();
        first.enter();
        assert_eq!(turns(), [false, false], "the request is not done");
        work.end();
        let turn = first.turn();
        assert!(turn.is_some() && work.has_turn());
        assert_eq!(turns(), [false, false], "one at a time");
        drop(turn);
        assert_eq!(turns(), [true, false], "it has another key");
        first.leave();
        assert_eq!(turns(), [false, true]);
        second.leave();
        assert!(work.is_quiet());
        assert_eq!(turns(), [false, false]);
    }

    #[tokio::test]
    async fn whose_turn_it_is_is_told_so() {
        let work = Arc::new(Work::default());
        let (first, second) = (work.place(), work.place());
        second.enter();
        second.ready().notified().await;
        let turn = second.turn();
        first.enter();
        drop(turn);
        first.ready().notified().await;
        assert!(second.turn().is_none());
        let quiet = work.quiet();
        tokio::pin!(quiet);
        assert!(futures::poll!(quiet.as_mut()).is_pending());
        drop(first);
        assert!(second.turn().is_some());
        second.leave();
        quiet.await;
    }
}
