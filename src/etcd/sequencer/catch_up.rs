//! Taking over what other servers have written.

use std::collections::HashSet;
use std::sync::Arc;

use super::Sequencer;
use crate::clock::Timestamp;
use crate::etcd::encoding::Head;
use crate::etcd::event::{Event, RevisionEvents};
use crate::etcd::keyspace::{self, Loaded};
use crate::etcd::lease::LeaseBook;
use crate::etcd::record::{Revision, SharedRecord};
use crate::etcd::store::{Intents, Note, StoreError, Tail};
use crate::etcd::view::View as _;

/// Bytes of records that are gathered at most. Whoever is further behind reads the whole keyspace again.
const GATHERED_BYTES: usize = 64 << 20;

/// What others have written since, complete.
struct News {
    head: Head,
    version: i64,
    records: Vec<SharedRecord>,
    notes: Option<Vec<Note>>,
    line: Intents,
}

impl Sequencer {
    /// Takes over what the log says between this keyspace's revision and the head: another server
    /// has written, or a commit of ours that we knew nothing of is in.
    pub(super) async fn catch_up(&mut self) -> Result<(), StoreError> {
        #[cfg(test)]
        let follow = self.keyspace.follow.clone();
        #[cfg(test)]
        let _held = match &follow {
            Some(follow) => Some(follow.held.lock().await),
            None => None,
        };
        match self.gather().await? {
            Some(news) => self.take_over(news).await?,
            None => self.reload().await?,
        }
        if let Some(follow) = &self.keyspace.follow {
            follow.applied(self.head);
        }
        Ok(())
    }

    /// Reads the news. `None` if history is gone that this keyspace has not seen, or if it is too much.
    async fn gather(&self) -> Result<Option<News>, StoreError> {
        let (revision, compacted) = {
            let state = self.keyspace.state.read();
            (state.revision, state.compacted)
        };
        let mut records: Vec<SharedRecord> = Vec::new();
        let mut gathered = 0;
        let mut from = Revision {
            main: revision + 1,
            sub: 0,
        };
        loop {
            let Tail {
                head,
                version,
                records: page,
                next,
                notes,
                line,
            } = self.keyspace.store.tail(from, self.head.changes).await?;
            // Compaction removes records only after the head says so: what was read before is whole.
            if head.compacted > compacted.max(revision) {
                return Ok(None);
            }
            gathered += page.iter().map(|record| record.stored_len()).sum::<usize>();
            records.extend(page.into_iter().map(Arc::new));
            match next {
                None => {
                    return Ok(Some(News {
                        head,
                        version,
                        records,
                        notes,
                        line,
                    }));
                }
                Some(_) if gathered > GATHERED_BYTES => return Ok(None),
                Some(next) => from = next,
            }
        }
    }

    async fn take_over(&mut self, news: News) -> Result<(), StoreError> {
        let News {
            head,
            version,
            records,
            notes,
            line,
        } = news;
        let all = [Note::Alarms, Note::Auth];
        let changed = notes.as_deref().unwrap_or(&all);
        let alarms = match changed.contains(&Note::Alarms) {
            true => Some(self.keyspace.store.alarms().await?),
            false => None,
        };
        let auth = match changed.contains(&Note::Auth) {
            true => Some(Arc::new(self.keyspace.store.auth().await?)),
            false => None,
        };
        let granted = match notes {
            None => Some(self.keyspace.store.leases().await?),
            Some(_) => None,
        };
        let now = self.keyspace.clock.now();
        if let Some(granted) = granted {
            let mut leases = self.keyspace.leases.lock();
            let found: HashSet<i64> = granted.iter().map(|(id, _)| *id).collect();
            let gone = leases.ids().into_iter().filter(|id| !found.contains(id));
            gone.for_each(|id| leases.revoke(id));
            for (id, granted) in granted {
                if !leases.contains(id) {
                    leases.restore(id, granted, now);
                }
            }
        }
        let mut notes = notes.unwrap_or_default().into_iter().peekable();
        for revision in records.chunk_by(|a, b| a.revision.main == b.revision.main) {
            let main = revision[0].revision.main;
            let events = {
                let state = self.keyspace.state.read();
                let previous = |record: &SharedRecord| state.get(&record.key, main - 1);
                let event = |record: &SharedRecord| Event::new(record.clone(), previous(record));
                revision.iter().map(event).collect()
            };
            let events = [Arc::new(RevisionEvents::new(main, events))];
            self.apply_events(&events);
            {
                let mut leases = self.keyspace.leases.lock();
                while let Some(note) = notes.next_if(|note| comes_before(note, main)) {
                    apply_note(&mut leases, note, now);
                }
                leases.apply(&events[0]);
            }
            let hub = &self.keyspace.hub;
            hub.wake(hub.notify(&events));
        }
        {
            let mut leases = self.keyspace.leases.lock();
            notes.for_each(|note| apply_note(&mut leases, note, now));
        }
        {
            let mut state = self.keyspace.state.write();
            // A compacted log may lack the newest revisions' records.
            state.revision = state.revision.max(head.revision);
            if let Some(alarms) = alarms {
                state.alarms = alarms;
            }
            if let Some(auth) = auth {
                state.auth = auth;
            }
        }
        self.apply_compaction(head.compacted, false);
        self.keyspace.hub.advance(head.revision);
        self.head = head;
        if self.keyspace.store.is_shared() {
            self.known_at = Some(version);
            self.turns.observe(line, self.keyspace.store.server());
        }
        Ok(())
    }

    /// Reads the keyspace anew. Its watchers lag, and are told that what they wait for is compacted if it is.
    async fn reload(&mut self) -> Result<(), StoreError> {
        let keyspace = Arc::clone(&self.keyspace);
        tracing::info!(keyspace = %keyspace.name, "reading the keyspace anew: it was compacted meanwhile");
        let Loaded {
            head,
            state,
            leases,
            values,
        } = keyspace::load(&keyspace.store, &keyspace.clock, &keyspace.cached_bytes).await?;
        let old = std::mem::replace(&mut *keyspace.state.write(), state);
        keyspace.cached_bytes.sub(old.cached_bytes());
        *keyspace.leases.lock() = leases;
        self.values = values;
        self.head = head;
        self.known_at = None;
        keyspace.hub.skip(head.revision);
        Ok(())
    }
}

/// Whether it happened before revision `main`.
fn comes_before(note: &Note, main: i64) -> bool {
    match note {
        Note::Grant { after, .. } | Note::Revoke { after, .. } => *after < main,
        Note::Alarms | Note::Auth => true,
    }
}

fn apply_note(leases: &mut LeaseBook, note: Note, now: Timestamp) {
    match note {
        // One that was read already counts on.
        Note::Grant { id, ttl, .. } if !leases.contains(id) => leases.grant(id, ttl, now),
        Note::Revoke { id, .. } => leases.revoke(id),
        Note::Grant { .. } | Note::Alarms | Note::Auth => {}
    }
}
