//! What happens to the server while it works: kills, pauses, full disks, all at random moments.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::history::Recorder;
use crate::instance::{Group, Instance};

/// The server works undisturbed for so long at most.
const CALM: Duration = Duration::from_millis(1_500);
/// Longest pause by SIGSTOP.
const PAUSE: Duration = Duration::from_millis(700);
/// How long it may take until the disk is full, and how long a full disk is left as it is.
const FULL: Duration = Duration::from_millis(1_200);

struct Nemesis<'a> {
    group: &'a mut Group,
    /// Which server is struck.
    struck: usize,
    recorder: &'a Recorder,
    random: ChaCha8Rng,
    lose_writes: bool,
}

/// Disturbs the servers, one at a time, until `until`, and leaves them running and in good health.
pub async fn run(
    group: &mut Group,
    recorder: &Recorder,
    seed: u64,
    until: Instant,
    lose_writes: bool,
) {
    let mut nemesis = Nemesis {
        group,
        struck: 0,
        recorder,
        random: ChaCha8Rng::seed_from_u64(seed),
        lose_writes,
    };
    loop {
        let calm = CALM.mul_f64(nemesis.random.random());
        tokio::time::sleep_until(until.min(Instant::now() + calm)).await;
        if Instant::now() >= until {
            return;
        }
        nemesis.strike().await;
    }
}

impl Nemesis<'_> {
    async fn strike(&mut self) {
        if self.lose_writes {
            return self.kill_on_an_old_disk().await;
        }
        self.struck = self.random.random_range(0..self.group.instances.len());
        let (program, disk) = (self.instance().is_program(), self.instance().has_disk());
        let cluster = self.group.cluster.as_ref();
        let cluster = cluster.is_some_and(|cluster| cluster.can_be_killed());
        match self.random.random_range(0..10) {
            0..3 if program => self.pause().await,
            3 if program => self.kill_during_start().await,
            4 if cluster => self.pause_cluster().await,
            5 | 6 if cluster => self.kill_cluster().await,
            4 | 5 if program && disk => self.fill_the_programs_disk().await,
            4..7 if !program && disk => {
                self.recorder.incident("the disk is full");
                self.instance().fill_disk();
                self.sleep_up_to(FULL).await;
                self.kill().await;
            }
            _ => self.kill().await,
        }
    }

    fn instance(&mut self) -> &mut Instance {
        &mut self.group.instances[self.struck]
    }

    async fn kill_cluster(&mut self) {
        let pause = PAUSE.mul_f64(self.random.random());
        if let Some(cluster) = &mut self.group.cluster {
            self.recorder.incident("fdbserver killed");
            cluster.kill(pause).await;
            self.recorder.incident("fdbserver started");
        }
    }

    async fn pause_cluster(&mut self) {
        let pause = PAUSE.mul_f64(self.random.random());
        if let Some(cluster) = &self.group.cluster {
            self.recorder.incident("fdbserver stopped");
            cluster.signal("-STOP").await;
            tokio::time::sleep(pause).await;
            cluster.signal("-CONT").await;
            self.recorder.incident("fdbserver continued");
        }
    }

    async fn sleep_up_to(&mut self, longest: Duration) {
        tokio::time::sleep(longest.mul_f64(self.random.random())).await;
    }

    async fn restart(&mut self) {
        self.instance().start().await;
        self.recorder
            .incident(format!("server {} started", self.struck));
    }

    async fn kill(&mut self) {
        self.recorder
            .incident(format!("server {} killed", self.struck));
        self.instance().kill().await;
        self.restart().await;
    }

    async fn pause(&mut self) {
        self.recorder
            .incident(format!("server {} stopped", self.struck));
        self.instance().signal("-STOP").await;
        self.sleep_up_to(PAUSE).await;
        if self.random.random_ratio(1, 5) {
            return self.kill().await;
        }
        self.instance().signal("-CONT").await;
        self.recorder
            .incident(format!("server {} continued", self.struck));
    }

    /// Killed while it recovers from having been killed.
    async fn kill_during_start(&mut self) {
        self.recorder
            .incident("killed, and killed again while it starts");
        self.instance().kill().await;
        for _ in 0..self.random.random_range(1..4) {
            let mut child = self.instance().spawn(None);
            self.sleep_up_to(Duration::from_millis(150)).await;
            child.kill().await.expect("it can be killed");
        }
        self.restart().await;
    }

    async fn fill_the_programs_disk(&mut self) {
        self.instance().kill().await;
        let left = self.random.random_range(0..60_000);
        self.recorder
            .incident(format!("killed, and a disk with {left} bytes left"));
        if self.instance().start_on_full_disk(left).await {
            self.sleep_up_to(FULL).await;
            self.instance().kill().await;
        }
        self.restart().await;
    }

    /// The planted bug: what is on the disk after the crash is what was there some time before.
    async fn kill_on_an_old_disk(&mut self) {
        let old = tempfile::tempdir().expect("a temporary directory");
        self.instance().signal("-STOP").await;
        self.instance().save_disk(old.path());
        self.instance().signal("-CONT").await;
        self.sleep_up_to(CALM).await;
        self.recorder.incident("killed, and writes lost");
        self.instance().kill().await;
        self.instance().restore_disk(old.path());
        self.restart().await;
    }
}
