//! Both directions' buffers and positions. Pure: it knows neither sockets nor time.

use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use super::frame::{self, MAX_DATA, Progress, Violation};

/// Sent bytes that are kept until the other end has them. Enough for every window of the multiplexer above in ordinary use; beyond it
/// writing waits.
pub const KEPT: usize = 8 * 1024 * 1024;
/// Received bytes that nobody has read yet.
pub const WINDOW: usize = 1024 * 1024;

/// Why a stream has failed: kept apart, since an `io::Error` can't be given twice.
pub type Failure = (io::ErrorKind, String);

/// What the writer of a connection does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The buffer has frames.
    Write,
    /// Nothing now; `ack_owed` when the other end isn't told yet of something that isn't urgent.
    Wait { ack_owed: bool },
    /// Everything is said and acknowledged.
    Over,
}

#[derive(Debug)]
pub struct State {
    outgoing: Outgoing,
    incoming: Incoming,
    pub failure: Option<Failure>,
    /// Nobody holds the stream any more.
    pub dropped: bool,
    abort_sent: bool,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
}

/// `kept` holds the bytes from `acked` on.
#[derive(Debug, Default)]
struct Outgoing {
    kept: VecDeque<u8>,
    acked: u64,
    /// The next position to send on this connection; `None` until the other end has said where it stands.
    next: Option<u64>,
    /// The highest position ever sent: nothing beyond it can be acknowledged.
    sent: u64,
    credit: u64,
    closed: bool,
    end_acked: bool,
}

#[derive(Debug, Default)]
struct Incoming {
    unread: VecDeque<u8>,
    /// Positions taken over, the end's included.
    received: u64,
    ended: bool,
    /// What the other end was told last.
    told: Option<Progress>,
    /// The highest credit ever given.
    granted: u64,
}

impl State {
    pub fn new() -> Self {
        Self {
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            failure: None,
            dropped: false,
            abort_sent: false,
            reader: None,
            writer: None,
        }
    }

    /// Takes what fits and gives its length.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(KEPT - self.outgoing.kept.len());
        self.outgoing.kept.extend(&bytes[..n]);
        n
    }

    pub fn close(&mut self) {
        self.outgoing.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.outgoing.closed
    }

    /// Everything written has arrived, and the end with it.
    pub fn is_delivered(&self) -> bool {
        self.outgoing.end_acked
    }

    pub fn has_ended(&self) -> bool {
        self.incoming.ended
    }

    /// The next received bytes, the first of two parts.
    pub fn unread(&self) -> &[u8] {
        self.incoming.unread.as_slices().0
    }

    pub fn consume(&mut self, n: usize) {
        self.incoming.unread.drain(..n);
    }

    /// Whether the other end should hear at once how far we are.
    pub fn must_tell(&self) -> bool {
        let (now, told) = (self.incoming.progress(), self.incoming.told);
        told.is_some_and(|told| {
            let step = (WINDOW / 4) as u64;
            now.received - told.received >= step || now.credit - told.credit >= step || (self.incoming.ended && now != told)
        })
    }

    /// A connection begins: gives its first frame.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        self.outgoing.next = None;
        frame::put_hello(out, self.incoming.tell());
    }

    /// The other end's first frame on a connection.
    pub fn greeted(&mut self, progress: Progress) -> Result<(), Violation> {
        self.acknowledged(progress)?;
        self.outgoing.next = Some(progress.received);
        Ok(())
    }

    pub fn acknowledged(&mut self, progress: Progress) -> Result<(), Violation> {
        let out = &mut self.outgoing;
        let end = out.end();
        let so_far = out.acked + u64::from(out.end_acked);
        // What an earlier connection carried is sent again once the other end has said that it stands before that.
        let said = out.next.unwrap_or(out.sent);
        if progress.received < so_far || progress.received > said {
            return Err(Violation("the other end acknowledges what was not sent, or less than before"));
        }
        if progress.credit < out.credit || progress.credit > progress.received.saturating_add(WINDOW as u64) {
            return Err(Violation("the other end takes back or overdraws its credit"));
        }
        out.credit = progress.credit;
        let data = progress.received.min(end);
        out.kept.drain(..usize::try_from(data - out.acked).unwrap_or(usize::MAX));
        out.acked = data;
        out.end_acked = progress.received > end;
        Ok(())
    }

    pub fn data(&mut self, position: u64, bytes: &[u8]) -> Result<(), Violation> {
        let incoming = &mut self.incoming;
        if incoming.ended || position != incoming.received {
            return Err(Violation("data at a position that is not the next one"));
        }
        let received = incoming.received + bytes.len() as u64;
        if received > incoming.granted {
            return Err(Violation("more data than there is credit for"));
        }
        incoming.received = received;
        // What nobody will read is not kept.
        if !self.dropped {
            incoming.unread.extend(bytes);
        }
        Ok(())
    }

    pub fn end(&mut self, position: u64) -> Result<(), Violation> {
        let incoming = &mut self.incoming;
        if incoming.ended || position != incoming.received {
            return Err(Violation("an end at a position that is not the next one"));
        }
        incoming.received += 1;
        incoming.ended = true;
        Ok(())
    }

    /// Nobody holds the stream, and nothing that was written before waits for its acknowledgement.
    pub fn gives_up(&self) -> bool {
        self.dropped && (!self.outgoing.closed || (self.outgoing.end_acked && !self.incoming.ended))
    }

    pub fn is_over(&self) -> bool {
        self.outgoing.end_acked && self.incoming.ended
    }

    pub fn drop_handle(&mut self) {
        self.dropped = true;
        self.incoming.unread = VecDeque::new();
    }

    /// Fills `out` with what is to be sent now. `tell` asks for an acknowledgement even where none is due.
    pub fn next(&mut self, out: &mut Vec<u8>, tell: bool) -> Next {
        let has_told_all = self.incoming.told == Some(self.incoming.progress());
        if self.gives_up() {
            if !self.abort_sent {
                self.abort_sent = true;
                frame::put_abort(out);
                return Next::Write;
            }
            return Next::Over;
        }
        if self.is_over() && has_told_all {
            return Next::Over;
        }
        if tell || self.must_tell() {
            frame::put_ack(out, self.incoming.tell());
        }
        self.outgoing.send(out);
        if out.is_empty() { Next::Wait { ack_owed: !has_told_all } } else { Next::Write }
    }

    pub fn fail(&mut self, error: &io::Error) {
        self.failure.get_or_insert_with(|| (error.kind(), error.to_string()));
    }

    pub fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Outgoing {
    fn end(&self) -> u64 {
        self.acked + self.kept.len() as u64
    }

    fn send(&mut self, out: &mut Vec<u8>) {
        let Some(next) = self.next else { return };
        let end = self.end();
        let until = end.min(self.credit).min(next.saturating_add(MAX_DATA as u64));
        if next < until {
            let (from, to) = ((next - self.acked) as usize, (until - self.acked) as usize);
            frame::put_data(out, next, range(&self.kept, from, to));
            self.advance(until);
        } else if self.closed && next == end {
            frame::put_end(out, end);
            self.advance(end + 1);
        }
    }

    fn advance(&mut self, to: u64) {
        self.next = Some(to);
        self.sent = self.sent.max(to);
    }
}

impl Incoming {
    fn progress(&self) -> Progress {
        let consumed = self.received - self.unread.len() as u64;
        // Once everything has come there's nothing to give credit for.
        let credit = if self.ended { self.granted } else { consumed + WINDOW as u64 };
        Progress { received: self.received, credit: credit.max(self.granted) }
    }

    fn tell(&mut self) -> Progress {
        let progress = self.progress();
        self.granted = progress.credit;
        self.told = Some(progress);
        progress
    }
}

fn range(kept: &VecDeque<u8>, from: usize, to: usize) -> [&[u8]; 2] {
    let (first, second) = kept.as_slices();
    let cut = |part: &[u8], at: usize| at.min(part.len());
    let behind = |at: usize| at.saturating_sub(first.len());
    [&first[cut(first, from)..cut(first, to)], &second[behind(from)..behind(to)]]
}
