//! Clients that ping too often are sent away, as grpc-go's servers do it.
//!
//! The HTTP/2 stack answers pings by itself and tells nobody. So they are counted below it, among the bytes that a
//! connection reads, and what forgives them among those it writes: frames have their kind in the head, and nothing else
//! is looked at. A client that goes too far gets GOAWAY with ENHANCE_YOUR_CALM and the words `too_many_pings`, upon
//! which etcd's clients ping less often, and the connection ends.
//!
//! grpc-go's rule: a ping is one too early if the last one is less than the shortest interval ago, or, while no request is
//! under way, less than two hours. Headers or data sent since the last ping forgive everything. The third early ping is
//! too many.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::{Clock, Timestamp};

/// What a client sends first over HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const ACK: u8 = 1;
/// Early pings that are borne.
const MAX_STRIKES: u32 = 2;
/// Shortest interval of pings while no request is under way.
const IDLE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
/// GOAWAY with the greatest stream id, ENHANCE_YOUR_CALM (11), and a reason of 14 bytes.
const GOAWAY: &[u8] = b"\0\0\x16\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\x0btoo_many_pings";

/// Finds the frames of one direction; they may be cut anywhere.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 9],
    head_len: usize,
    /// Bytes to come of the present frame's body.
    left: usize,
}

impl Frames {
    /// Calls `found` with kind and flags of each frame whose head ends in `bytes`.
    fn pass(&mut self, mut bytes: &[u8], mut found: impl FnMut(u8, u8)) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.head.len() - self.head_len).min(bytes.len());
            if self.left > 0 || taken == 0 {
                continue;
            }
            self.head[self.head_len..][..taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len == self.head.len() {
                let [a, b, c, kind, flags, ..] = self.head;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head_len = 0;
                found(kind, flags);
            }
        }
    }

    fn is_between(&self) -> bool {
        self.left == 0 && self.head_len == 0
    }
}

/// How a client has pinged so far.
#[derive(Debug, Default)]
struct Strikes {
    count: u32,
    last: Option<Timestamp>,
}

impl Strikes {
    /// Whether the client has gone too far with this ping. `forgiven`: headers or data were sent since the last one.
    fn ping(&mut self, now: Timestamp, interval: Duration, forgiven: bool) -> bool {
        let last = self.last.replace(now);
        if forgiven {
            self.count = 0;
        } else if last.is_some_and(|last| last.until(now) < interval) {
            self.count += 1;
        }
        self.count > MAX_STRIKES
    }
}

/// Requests under way of one connection.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    /// One more, until what is returned is dropped.
    pub fn begin(&self) -> Begun {
        self.0.fetch_add(1, Ordering::Relaxed);
        Begun(self.clone())
    }

    fn is_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Begun(UnderWay);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client may do.
#[derive(Clone)]
pub struct PingLimit {
    pub clock: Clock,
    /// Shortest time between pings while a request is under way.
    pub interval: Duration,
    pub under_way: UnderWay,
}

/// How far a client has come.
#[derive(Debug)]
enum Stage {
    /// So many bytes of the preface have come.
    Preface(usize),
    Http2,
    /// Something else: nothing is counted.
    Other,
    /// So many bytes of the farewell are written.
    SentAway(usize),
    Gone,
}

/// A connection whose client's pings are counted.
pub struct Pings<T> {
    inner: T,
    /// `None` for a client that may do as it likes.
    limit: Option<PingLimit>,
    stage: Stage,
    strikes: Strikes,
    received: Frames,
    sent: Frames,
    /// Headers or data were sent since the last ping.
    forgiven: bool,
}

impl<T> Pings<T> {
    pub fn new(inner: T, limit: Option<PingLimit>) -> Pings<T> {
        Pings {
            inner,
            limit,
            stage: Stage::Preface(0),
            strikes: Strikes::default(),
            received: Frames::default(),
            sent: Frames::default(),
            forgiven: false,
        }
    }

    fn received(&mut self, mut bytes: &[u8]) {
        let Some(limit) = &self.limit else {
            return;
        };
        if let Stage::Preface(seen) = self.stage {
            let rest = &PREFACE[seen..];
            let taken = rest.len().min(bytes.len());
            if rest[..taken] != bytes[..taken] {
                self.stage = Stage::Other;
                return;
            }
            bytes = &bytes[taken..];
            self.stage = match seen + taken {
                seen if seen < PREFACE.len() => Stage::Preface(seen),
                _ => Stage::Http2,
            };
        }
        if !matches!(self.stage, Stage::Http2) {
            return;
        }
        let (strikes, forgiven) = (&mut self.strikes, &mut self.forgiven);
        let mut too_many = false;
        self.received.pass(bytes, |kind, flags| {
            if kind == PING && flags & ACK == 0 {
                let interval = match limit.under_way.is_none() {
                    true => IDLE_INTERVAL,
                    false => limit.interval,
                };
                let forgiven = std::mem::take(forgiven);
                too_many |= strikes.ping(limit.clock.now(), interval, forgiven);
            }
        });
        if too_many {
            self.stage = Stage::SentAway(0);
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        if matches!(self.stage, Stage::Http2 | Stage::SentAway(_)) {
            let forgiven = &mut self.forgiven;
            self.sent
                .pass(bytes, |kind, _| *forgiven |= matches!(kind, DATA | HEADERS));
        }
    }

    fn is_counting(&self) -> bool {
        self.limit.is_some() && !matches!(self.stage, Stage::Other)
    }
}

impl<T: AsyncWrite + Unpin> Pings<T> {
    /// Says good-bye, once the frame that is being written is whole.
    fn poll_farewell(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Stage::SentAway(written) = self.stage {
            if written == 0 && !self.sent.is_between() {
                // Whoever writes the rest of the frame asks again.
                return Poll::Pending;
            }
            if written == GOAWAY.len() {
                ready!(Pin::new(&mut self.inner).poll_flush(context))?;
                self.stage = Stage::Gone;
                break;
            }
            let more = Pin::new(&mut self.inner).poll_write(context, &GOAWAY[written..]);
            match ready!(more)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => self.stage = Stage::SentAway(written + more),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether nothing follows the last whole frame but the farewell.
    fn has_ended(&self) -> bool {
        match self.stage {
            Stage::Gone => true,
            Stage::SentAway(_) => self.sent.is_between(),
            _ => false,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Pings<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.stage, Stage::SentAway(_) | Stage::Gone) {
            // Then the end, as if the client had left.
            return self.poll_farewell(context);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if self.is_counting() {
            self.received(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Pings<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.has_ended() {
            // The stack may answer the very ping; it learns by reading that it is over.
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, slices))?;
        if self.is_counting() {
            let mut left = written;
            for slice in slices {
                let taken = left.min(slice.len());
                self.sent(&slice[..taken]);
                left -= taken;
            }
            if matches!(self.stage, Stage::SentAway(_)) {
                context.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::clock::TimeScale;

    const ONE_PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0abcdefgh";
    const ONE_DATA: &[u8] = b"\0\0\x01\0\0\0\0\0\x01x";
    const SECONDS: Duration = Duration::from_secs(1);

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let all = [ONE_PING, ONE_DATA, b"\0\0\0\x04\x01\0\0\0\0", ONE_PING].concat();
        for size in 1..=all.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for part in all.chunks(size) {
                frames.pass(part, |kind, flags| found.push((kind, flags)));
            }
            assert_eq!(found, [(PING, 0), (DATA, 0), (4, ACK), (PING, 0)], "{size}");
            assert!(frames.is_between());
        }
    }

    #[test]
    fn the_third_early_ping_is_too_many() {
        // Milliseconds of pings, whether data was sent before, and which of them is too many.
        for (pings, expected) in [
            (
                &[(0, false), (1, false), (2, false), (3, false)][..],
                Some(3),
            ),
            (
                &[(0, false), (5000, false), (10_000, false), (15_000, false)],
                None,
            ),
            (
                &[
                    (0, false),
                    (1, false),
                    (2, false),
                    (3, true),
                    (4, false),
                    (5, false),
                    (6, false),
                ],
                Some(6),
            ),
            (
                &[(0, true), (4999, false), (9998, false), (14_997, false)],
                Some(3),
            ),
        ] {
            let mut strikes = Strikes::default();
            let mut pings = pings.iter();
            let too_many = pings
                .position(|(at, forgiven)| strikes.ping(Timestamp(*at), 5 * SECONDS, *forgiven));
            assert_eq!(too_many, expected);
        }
    }

    struct Fixture {
        near: Pings<DuplexStream>,
        far: DuplexStream,
        clock: Clock,
        under_way: UnderWay,
    }

    impl Fixture {
        async fn new(first: &[u8]) -> Fixture {
            let clock = Clock::new(TimeScale::Manual, Timestamp(0));
            let under_way = UnderWay::default();
            let (near, mut far) = tokio::io::duplex(10_000);
            let limit = PingLimit {
                clock: clock.clone(),
                interval: 5 * SECONDS,
                under_way: under_way.clone(),
            };
            far.write_all(first).await.expect("written");
            Fixture {
                near: Pings::new(near, Some(limit)),
                far,
                clock,
                under_way,
            }
        }

        /// Whether the server still listens after a ping.
        async fn ping(&mut self) -> bool {
            self.far.write_all(ONE_PING).await.expect("written");
            let mut buffer = [0; 1000];
            self.near.read(&mut buffer).await.expect("read");
            // The last one is read; what follows is the end.
            use futures::FutureExt as _;
            self.near.read(&mut buffer).now_or_never().is_none()
        }
    }

    #[tokio::test]
    async fn who_pings_too_often_is_told_so_and_left() {
        let mut fixture = Fixture::new(PREFACE).await;
        for expected in [true, true, true, false] {
            assert_eq!(fixture.ping().await, expected);
        }
        fixture.near.write_all(ONE_DATA).await.expect("for nobody");
        drop(fixture.near);
        let mut said = Vec::new();
        fixture.far.read_to_end(&mut said).await.expect("read");
        assert_eq!(said, GOAWAY);
    }

    #[tokio::test]
    async fn a_request_under_way_allows_pings_at_the_interval() {
        for (begun, expected) in [(true, true), (false, false)] {
            let mut fixture = Fixture::new(PREFACE).await;
            let begun = begun.then(|| fixture.under_way.begin());
            let mut stays = true;
            for _ in 0..6 {
                stays &= stays && fixture.ping().await;
                fixture.clock.advance(5 * SECONDS).await;
            }
            assert_eq!(stays, expected);
            drop(begun);
        }
    }

    #[tokio::test]
    async fn a_frame_is_not_cut_by_the_farewell() {
        let mut fixture = Fixture::new(PREFACE).await;
        for _ in 0..3 {
            assert!(fixture.ping().await);
        }
        let (head, rest) = ONE_PING.split_at(4);
        fixture.near.write_all(head).await.expect("written");
        assert!(fixture.ping().await, "the frame is not whole");
        fixture.near.write_all(rest).await.expect("written");
        let mut buffer = [0; 10];
        assert_eq!(fixture.near.read(&mut buffer).await.expect("read"), 0);
        drop(fixture.near);
        let mut said = Vec::new();
        fixture.far.read_to_end(&mut said).await.expect("read");
        assert_eq!(said, [ONE_PING, GOAWAY].concat());
    }

    #[tokio::test]
    async fn http_1_is_left_alone() {
        let mut fixture = Fixture::new(b"PRIVATE").await;
        for _ in 0..9 {
            assert!(fixture.ping().await);
        }
    }
}
