//! Streams over connections that break at any byte, loudly and silently; and what must fail rather than be repaired.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::task::JoinSet;

use super::frame::{self, Progress, Violation};
use super::state::{KEPT, Next, State, WINDOW};
use super::*;

const PATIENCE: Duration = Duration::from_secs(120);
const FAST: Timing =
    Timing { ping_every: Duration::from_millis(50), dead_after: Duration::from_millis(400), silence: Duration::from_secs(60) };

struct Random(u64);

impl Random {
    /// splitmix64: the same cuts on every machine.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> usize {
        usize::try_from(self.next() % bound).unwrap()
    }
}

/// What a connection does once it has carried its bytes.
#[derive(Clone, Copy, PartialEq)]
enum Death {
    /// An error at both ends; what is under way is lost.
    Reset,
    /// An end of file at both ends, as politely as can be.
    Eof,
    /// Nothing at all.
    Silent,
}

/// One end of a connection that carries so many bytes, both directions together.
struct Mortal {
    inner: DuplexStream,
    left: Arc<AtomicI64>,
    death: Death,
}

impl Mortal {
    fn pair(bytes: usize, death: Death) -> (Self, Self) {
        let (a, b) = duplex(32 * 1024);
        let left = Arc::new(AtomicI64::new(i64::try_from(bytes).unwrap()));
        (Self { inner: a, left: Arc::clone(&left), death }, Self { inner: b, left, death })
    }

    fn is_dead(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }
}

impl AsyncRead for Mortal {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_dead() {
            return match self.death {
                Death::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Death::Eof => Poll::Ready(Ok(())),
                Death::Silent => Poll::Pending,
            };
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let left = usize::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(0);
        if left == 0 {
            return match self.death {
                Death::Silent => Poll::Ready(Ok(bytes.len())),
                _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[..bytes.len().min(left)]))?;
        if self.left.fetch_sub(i64::try_from(n).unwrap(), Ordering::Relaxed) <= i64::try_from(n).unwrap() {
            // Wakes the other end's reader, for it to see the death.
            let _ = Pin::new(&mut self.inner).poll_shutdown(cx);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dead() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A dialling and an accepting end; `make` gives one connection after another.
fn linked(
    timing: Timing,
    mut make: impl FnMut() -> (Connection, Connection) + Send + 'static,
) -> (ResumableStream, ResumableStream) {
    let (arrived, later) = mpsc::channel(1);
    let dial = move || -> Dialling {
        let (ours, theirs) = make();
        let arrived = arrived.clone();
        Box::pin(async move {
            // As the door does with a stream that is over.
            arrived.send(theirs).await.map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))?;
            Ok(ours)
        })
    };
    let (dialling, _) = start(Source::Dial(Box::new(dial)), timing);
    let (accepting, _) = start(Source::Accept { first: None, later }, timing);
    (dialling, accepting)
}

fn boxed((a, b): (Mortal, Mortal)) -> (Connection, Connection) {
    (Box::new(a), Box::new(b))
}

/// Sends and receives to both ends; gives the digests of what was sent and received.
async fn exchange(stream: ResumableStream, seed: u64, total: usize) -> ([u8; 32], [u8; 32], usize) {
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async {
        let (mut random, mut hash, mut left) = (Random(seed), Sha256::new(), total);
        while left > 0 {
            let chunk: Vec<u8> = (0..(1 + random.below(9000)).min(left)).map(|_| random.next() as u8).collect();
            left -= chunk.len();
            hash.update(&chunk);
            write.write_all(&chunk).await.expect("writing");
        }
        // Its last acknowledgement may have got lost with the other end's connection: what counts is what the other end has read.
        let _ = write.shutdown().await;
        hash.finalize().into()
    };
    let receiving = async {
        let (mut hash, mut received, mut buffer) = (Sha256::new(), 0, vec![0; 7000]);
        loop {
            let n = read.read(&mut buffer).await.expect("reading");
            if n == 0 {
                return (hash.finalize().into(), received);
            }
            hash.update(&buffer[..n]);
            received += n;
        }
    };
    let (sent, (got, received)) = tokio::join!(sending, receiving);
    (sent, got, received)
}

async fn survive(seed: u64, deaths: &'static [Death], cuts: Arc<AtomicUsize>) {
    let mut random = Random(seed);
    let (ours, theirs) = (random.below(150_000), random.below(150_000));
    let mut plan = Random(seed ^ 0xdead);
    let (dialling, accepting) = linked(FAST, move || {
        cuts.fetch_add(1, Ordering::Relaxed);
        let death = deaths[plan.below(deaths.len() as u64)];
        // Many inside greetings and frames' heads, some long enough to get on.
        let bytes = match plan.below(6) {
            0 => plan.below(60),
            1 | 2 => plan.below(6_000),
            _ => plan.below(60_000),
        };
        boxed(Mortal::pair(bytes, death))
    });
    let both = async { tokio::join!(exchange(dialling, seed ^ 1, ours), exchange(accepting, seed ^ 2, theirs)) };
    let ((a_sent, a_got, a_received), (b_sent, b_got, b_received)) =
        tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("seed {seed} is stuck"));
    assert_eq!((a_received, b_received), (theirs, ours), "seed {seed}: a false end");
    assert!(a_got == b_sent && b_got == a_sent, "seed {seed}: other bytes");
}

async fn survive_all(seeds: std::ops::Range<u64>, deaths: &'static [Death]) -> usize {
    let (mut runs, cuts) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for seed in seeds {
        if runs.len() >= 48 {
            runs.join_next().await.unwrap().unwrap();
        }
        runs.spawn(survive(seed, deaths, Arc::clone(&cuts)));
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
    cuts.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_arrives_once_and_in_order_over_thousands_of_broken_connections() {
    let cuts = survive_all(0..300, &[Death::Reset, Death::Eof]).await;
    assert!(cuts > 2_000, "only {cuts} connections were made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_die_without_a_word_are_found_and_replaced() {
    survive_all(1000..1012, &[Death::Silent, Death::Reset]).await;
}

#[tokio::test]
async fn an_end_of_file_of_a_connection_is_no_end_of_the_stream() {
    let mut made = 0;
    let (mut dialling, mut accepting) = linked(FAST, move || {
        made += 1;
        // The first ends right after "half" has gone over.
        boxed(Mortal::pair(if made == 1 { 2 * 25 + 13 + 4 } else { 1 << 30 }, Death::Eof))
    });
    dialling.write_all(b"half").await.unwrap();
    let mut half = [0; 4];
    accepting.read_exact(&mut half).await.unwrap();
    dialling.write_all(b"rest").await.unwrap();
    let mut rest = Vec::new();
    let (shut, read) = tokio::join!(dialling.shutdown(), accepting.read_to_end(&mut rest));
    shut.unwrap();
    read.unwrap();
    assert_eq!((&half[..], &rest[..]), (&b"half"[..], &b"rest"[..]));
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_given_up_and_not_ended() {
    let (mut dialling, accepting) = linked(FAST, || boxed(Mortal::pair(1 << 30, Death::Reset)));
    dialling.write_all(b"x").await.unwrap();
    let mut accepting = accepting;
    accepting.read_exact(&mut [0]).await.unwrap();
    drop(accepting);
    let error = dialling.read(&mut [0]).await.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::PermissionDenied), "{error}");
}

#[tokio::test]
async fn a_stream_whose_other_end_is_out_of_reach_fails_after_its_silence_and_takes_no_more_than_it_may_keep() {
    let timing = Timing { silence: Duration::from_millis(300), ..FAST };
    let nowhere = || -> Dialling { Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }) };
    let (mut stream, driver) = start(Source::Dial(Box::new(nowhere)), timing);
    let mut taken = 0;
    let error = loop {
        match stream.write(&[0; 100_000]).await {
            Ok(n) => taken += n,
            Err(error) => break error,
        }
    };
    assert_eq!(taken, KEPT);
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(stream.shutdown().await.is_err());
    driver.await.unwrap();
}

#[tokio::test]
async fn a_reader_who_does_not_read_stops_the_writer_and_not_the_pings() {
    let timing = Timing { dead_after: Duration::from_millis(200), ping_every: Duration::from_millis(20), ..FAST };
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let (mut dialling, mut accepting) = linked(timing, move || {
        count.fetch_add(1, Ordering::Relaxed);
        boxed(Mortal::pair(1 << 30, Death::Reset))
    });
    let total = KEPT + 2 * WINDOW;
    let writing = tokio::spawn(async move {
        dialling.write_all(&vec![7; total]).await.unwrap();
        dialling.shutdown().await.unwrap();
    });
    let mut first = [0; 1];
    accepting.read_exact(&mut first).await.unwrap();
    // Longer than a dead connection would be kept.
    tokio::time::sleep(timing.dead_after * 4).await;
    assert!(!writing.is_finished());
    let mut rest = Vec::new();
    accepting.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len() + 1, total);
    writing.await.unwrap();
}

#[tokio::test]
async fn garbage_on_a_connection_fails_the_stream() {
    for garbage in [&b"GET / HTTP/1.1\r\n"[..], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], &[1; 25], &[9; 9]] {
        let (ours, mut theirs) = duplex(1024);
        let (_later, later) = mpsc::channel(1);
        let (mut stream, _) = start(Source::Accept { first: Some(Box::new(ours)), later }, FAST);
        theirs.write_all(garbage).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

/// A state that has sent `sent` bytes on a connection, with its peer at the beginning.
fn speaking(sent: usize) -> State {
    let mut state = State::new();
    let mut out = Vec::new();
    state.begin(&mut out);
    state.greeted(Progress { received: 0, credit: WINDOW as u64 }).unwrap();
    state.put(&vec![1; sent]);
    while state.next(&mut out, false) == Next::Write {
        out.clear();
    }
    state
}

#[test]
fn positions_that_do_not_fit_are_violations() {
    let ack = |received, credit| Progress { received, credit };
    let window = WINDOW as u64;
    let mut state = speaking(10);
    state.acknowledged(ack(6, window)).unwrap();
    for (forged, why) in [
        (ack(5, window), "less than before"),
        (ack(11, window + 1), "more than was sent"),
        (ack(8, window - 1), "credit taken back"),
        (ack(8, window + 9), "more credit than a window"),
    ] {
        assert!(state.acknowledged(forged).is_err(), "{why}");
        assert!(state.greeted(forged).is_err(), "{why}");
    }
    assert!(state.data(1, b"x").is_err(), "a gap");
    state.data(0, b"xy").unwrap();
    assert!(state.data(0, b"xy").is_err(), "a repetition");
    assert!(state.data(2, &vec![0; WINDOW]).is_err(), "more than the credit");
    assert!(state.end(3).is_err(), "an end beyond");
    state.end(2).unwrap();
    assert!(state.end(3).is_err(), "a second end");
    assert_eq!(state.data(3, b"z"), Err(Violation("data at a position that is not the next one")), "data after the end");
}

#[test]
fn what_was_not_sent_yet_cannot_be_acknowledged_nor_an_end_that_was_not_said() {
    let mut state = speaking(0);
    state.put(b"abc");
    assert!(state.acknowledged(Progress { received: 3, credit: WINDOW as u64 }).is_err());
    let mut state = speaking(3);
    assert!(state.acknowledged(Progress { received: 4, credit: WINDOW as u64 }).is_err());
    state.close();
    assert_eq!(state.next(&mut Vec::new(), false), Next::Write);
    state.acknowledged(Progress { received: 4, credit: WINDOW as u64 }).unwrap();
    assert!(state.is_delivered());
}

#[test]
fn what_is_to_be_sent_again_cannot_be_acknowledged_before_it_was() {
    let mut state = speaking(100);
    // A new connection, whose other end stands at 20 and then says 100 at once.
    state.begin(&mut Vec::new());
    state.greeted(Progress { received: 20, credit: WINDOW as u64 }).unwrap();
    assert!(state.acknowledged(Progress { received: 100, credit: WINDOW as u64 }).is_err());
    let mut out = Vec::new();
    assert_eq!(state.next(&mut out, false), Next::Write);
    state.acknowledged(Progress { received: 100, credit: WINDOW as u64 }).unwrap();
    assert_eq!(state.next(&mut Vec::new(), false), Next::Wait { ack_owed: false });
}

#[tokio::test]
async fn every_frame_comes_back_as_it_was() {
    let mut bytes = Vec::new();
    let progress = Progress { received: 1 << 40, credit: u64::MAX };
    frame::put_hello(&mut bytes, progress);
    frame::put_data(&mut bytes, 7, [b"ab", b"c"]);
    frame::put_ack(&mut bytes, progress);
    frame::put_end(&mut bytes, 10);
    frame::put_abort(&mut bytes);
    let mut input = &bytes[..];
    let mut frames = Vec::new();
    while let Ok(frame) = frame::read(&mut input).await {
        frames.push(frame);
    }
    let data = frame::Frame::Data { position: 7, bytes: b"abc".to_vec() };
    let expected = [
        frame::Frame::Hello(progress),
        data,
        frame::Frame::Ack(progress),
        frame::Frame::End { position: 10 },
        frame::Frame::Abort,
    ];
    assert_eq!(frames, expected);
}
