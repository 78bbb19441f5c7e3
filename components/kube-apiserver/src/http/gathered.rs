//! What one connection has to say at a moment leaves in one write.
//!
//! HTTP/2 flushes after every frame of more than a few bytes, and each flush is a TLS record and a system call. A watch event that goes to
//! many watchers of one client, or the answers to requests that came together, are many such frames at once. Here a flush only notes
//! what is to be written; whoever drives the connection writes it when the connection has nothing more to do ([`Handle::poll_flush`]).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait for the connection to become idle, at most; more are written at once, and then wait for the peer.
const LIMIT: usize = 64 << 10;
/// A buffer that grew beyond this is given back when it is empty.
const KEPT: usize = 4 << 10;
/// A write of this size is worth a system call of its own, and no copy.
const LARGE: usize = 16 << 10;

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    pending: Vec<u8>,
    /// How much of `pending` was written.
    written: usize,
    /// The stream was written to since it was flushed.
    dirty: bool,
    /// Nobody flushes for the writer any more.
    direct: bool,
}

/// The stream as the HTTP connection sees it.
#[derive(Debug)]
pub struct Gathered<S>(Arc<Mutex<Inner<S>>>);

/// The stream as the one who drives the connection sees it.
#[derive(Debug)]
pub struct Handle<S>(Arc<Mutex<Inner<S>>>);

/// Makes a stream gather what is written to it.
pub fn gather<S>(stream: S) -> (Gathered<S>, Handle<S>) {
    let inner = Arc::new(Mutex::new(Inner { stream, pending: Vec::new(), written: 0, dirty: false, direct: false }));
    (Gathered(Arc::clone(&inner)), Handle(inner))
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn waiting(&self) -> usize {
        self.pending.len() - self.written
    }

    /// Hands everything that waits to the stream.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            self.dirty = true;
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.written = 0;
        if self.pending.capacity() > KEPT {
            self.pending = Vec::new();
        } else {
            self.pending.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        if self.dirty {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = parts.iter().map(|p| p.len()).sum();
        if self.direct || total >= LARGE || self.waiting() + total > LIMIT {
            ready!(self.drain(cx))?;
            self.dirty = true;
            return Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        }
        for part in parts {
            self.pending.extend_from_slice(part);
        }
        Poll::Ready(Ok(total))
    }
}

impl<S: AsyncWrite + Unpin> Handle<S> {
    /// Writes what waits. To be called whenever the connection was polled, with its context.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().flush(cx)
    }

    /// From now on every write and flush is the stream's own: the connection ended, or another protocol goes on with the stream.
    pub fn let_go(&self) {
        self.0.lock().direct = true;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.lock().write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        // What went to the stream itself is large: the writer is held up as if nothing stood between.
        if inner.direct || inner.pending.is_empty() { inner.flush(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts writes, and takes so many bytes at most until it is told of more room.
    #[derive(Debug, Default)]
    struct Peer {
        got: Vec<u8>,
        writes: usize,
        room: usize,
    }

    impl AsyncWrite for Peer {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let n = buf.len().min(self.room);
            if n == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.room -= n;
            self.writes += 1;
            self.got.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn peer(room: usize) -> (Gathered<Peer>, Handle<Peer>) {
        gather(Peer { room, ..Peer::default() })
    }

    #[tokio::test]
    async fn many_flushed_writes_are_one() {
        let (mut g, h) = peer(usize::MAX);
        for _ in 0..100 {
            g.write_all(b"0123456789").await.unwrap();
            g.flush().await.unwrap();
        }
        assert_eq!(h.0.lock().stream.writes, 0);
        poll_fn(|cx| h.poll_flush(cx)).await.unwrap();
        let inner = h.0.lock();
        assert_eq!((inner.stream.writes, inner.stream.got.len(), inner.pending.capacity()), (1, 1000, inner.pending.capacity().min(KEPT)));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_stays_in_order() {
        let (mut g, h) = peer(0);
        let bytes: Vec<u8> = (0..LIMIT + LARGE).map(|i| (i % 251) as u8).collect();
        for piece in bytes[..LIMIT].chunks(1000) {
            g.write_all(piece).await.unwrap();
        }
        let blocked = poll_fn(|cx| Poll::Ready(Pin::new(&mut g).poll_write(cx, &bytes[LIMIT..]).is_pending())).await;
        assert!(blocked, "a peer that takes nothing holds the writer up");
        h.0.lock().stream.room = LIMIT - 7;
        let blocked = poll_fn(|cx| Poll::Ready(h.poll_flush(cx).is_pending())).await;
        assert!(blocked && h.0.lock().waiting() == 7);
        h.0.lock().stream.room = usize::MAX;
        g.write_all(&bytes[LIMIT..]).await.unwrap();
        g.shutdown().await.unwrap();
        assert!(h.0.lock().stream.got == bytes);
    }

    #[tokio::test]
    async fn a_stream_that_was_let_go_writes_by_itself() {
        let (mut g, h) = peer(usize::MAX);
        g.write_all(b"before ").await.unwrap();
        h.let_go();
        g.write_all(b"after").await.unwrap();
        assert_eq!(h.0.lock().stream.got, b"before after");
    }

    #[tokio::test]
    async fn reading_is_the_streams_own() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut g, _h) = gather(near);
        far.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        g.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    }
}
