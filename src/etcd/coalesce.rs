//! Fewer, larger writes to a connection.
//!
//! One batch of the sequencer, or one event, makes many streams of a connection ready, each in a task of its own.
//! The connection's task is woken by the first of them, and would send that one's frames in a packet, and the
//! next one's in another: system calls and packets are half of what a small request costs. So a flush of little
//! waits once until the tasks that are ready now have run. Nothing waits for anything that is not ready, and no
//! timer is involved.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A flush of so many bytes or more is worth a packet of its own.
const WORTH_SENDING_BYTES: usize = 16 << 10;
/// Bytes gathered at most; a write that does not fit goes past.
const BUFFER_BYTES: usize = 64 << 10;
/// A buffer that grew beyond this is given back once it is empty: most connections are idle.
const KEPT_BYTES: usize = 8 << 10;

/// A connection whose writes are gathered until it is flushed.
pub struct Coalescing<T> {
    inner: T,
    buffer: BytesMut,
    /// The present flush has given way already.
    gave_way: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Coalescing<T> {
    pub fn new(inner: T) -> Coalescing<T> {
        Coalescing {
            inner,
            buffer: BytesMut::new(),
            gave_way: false,
        }
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.buffer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(written);
        }
        if self.buffer.capacity() > KEPT_BYTES {
            self.buffer = BytesMut::new();
        } else {
            self.buffer.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn fits(&self, len: usize) -> bool {
        self.buffer.len().saturating_add(len) <= BUFFER_BYTES
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalescing<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Coalescing<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.fits(bytes.len()) {
            self.buffer.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        if self.fits(len) {
            for slice in slices {
                self.buffer.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(len));
        }
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() && !self.gave_way && self.buffer.len() < WORTH_SENDING_BYTES {
            self.gave_way = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(context))?;
        self.gave_way = false;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_whole_and_in_order() {
        for sizes in [
            &[1, 2, 3][..],
            &[10_000, 70_000, 5],
            &[BUFFER_BYTES, 1, BUFFER_BYTES + 1],
        ] {
            let (near, mut far) = tokio::io::duplex(1000);
            let mut near = Coalescing::new(near);
            let parts: Vec<Vec<u8>> = (1..)
                .zip(sizes)
                .map(|(byte, size)| vec![byte; *size])
                .collect();
            let expect = parts.concat();
            let reader = tokio::spawn(async move {
                let mut all = Vec::new();
                far.read_to_end(&mut all).await.map(|_| all)
            });
            for part in &parts {
                near.write_all(part).await.expect("written");
            }
            near.flush().await.expect("flushed");
            near.shutdown().await.expect("shut down");
            let arrived = reader.await.expect("no panic").expect("read");
            assert_eq!(arrived, expect, "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn a_small_flush_gives_way_once() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut near = Coalescing::new(near);
        near.write_all(b"a").await.expect("written");
        let mut gave_way = 0;
        std::future::poll_fn(|context| {
            let flushed = Pin::new(&mut near).poll_flush(context);
            gave_way += usize::from(flushed.is_pending());
            flushed
        })
        .await
        .expect("flushed");
        assert_eq!(gave_way, 1);
        let mut byte = [0];
        far.read_exact(&mut byte).await.expect("read");
        assert_eq!(byte, *b"a");
    }
}
