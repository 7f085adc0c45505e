//! The task behind a stream: takes one connection after another and speaks on it for as long as it holds.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::frame::{self, Fault, Frame, MAX_DATA, Violation};
use super::state::Next;
use super::{Connection, Shared, Source, Timing};

/// What isn't urgent to acknowledge may wait this long for company.
const ACK_AFTER: Duration = Duration::from_millis(40);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Before dialling again where the last connection came about, but broke before it was of use.
const PAUSE_WHEN_THERE: Duration = Duration::from_millis(50);

/// Why a connection is no longer used.
enum Left {
    Broken,
    Replaced(Connection),
    /// The stream is over, for good or ill.
    Over,
    Failed(io::Error),
}

struct Driver {
    shared: Arc<Shared>,
    timing: Timing,
    heard: Instant,
    pause: Duration,
    /// What went wrong last, for the message that the stream fails with.
    last: Option<String>,
}

pub async fn drive(shared: Arc<Shared>, mut source: Source, timing: Timing) {
    let mut driver = Driver { shared, timing, heard: Instant::now(), pause: FIRST_PAUSE, last: None };
    let end = driver.attend(&mut source).await;
    let mut state = driver.shared.lock();
    if let Err(error) = end {
        state.fail(&error);
    }
    state.wake();
}

impl Driver {
    async fn attend(&mut self, source: &mut Source) -> io::Result<()> {
        let mut newer = None;
        loop {
            let connection = match newer.take() {
                Some(connection) => connection,
                None => match self.next_connection(source).await? {
                    Some(connection) => connection,
                    None => return Ok(()),
                },
            };
            match self.carry(connection, source).await {
                Left::Broken => {}
                Left::Replaced(connection) => newer = Some(connection),
                Left::Over => return Ok(()),
                Left::Failed(error) => return Err(error),
            }
        }
    }

    /// `None` when nobody wants one any more.
    async fn next_connection(&mut self, source: &mut Source) -> io::Result<Option<Connection>> {
        let (shared, until) = (Arc::clone(&self.shared), self.heard + self.timing.silence);
        tokio::select! {
            biased;
            () = unwanted(&shared) => Ok(None),
            connection = self.obtain(source) => connection.map(Some),
            () = sleep_until(until) => Err(self.too_silent()),
        }
    }

    fn too_silent(&self) -> io::Error {
        let last = self.last.as_deref().unwrap_or("no connection came");
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the other end was out of reach for {} s: {last}", self.timing.silence.as_secs()),
        )
    }

    async fn obtain(&mut self, source: &mut Source) -> io::Result<Connection> {
        let dial = match source {
            Source::Accept { first, later } => {
                if let Some(first) = first.take() {
                    return Ok(first);
                }
                let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "no further connection is awaited");
                return later.recv().await.ok_or_else(gone);
            }
            Source::Dial(dial) => dial,
        };
        loop {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            match dial().await {
                Ok(connection) => {
                    self.pause = self.pause.min(PAUSE_WHEN_THERE);
                    return Ok(connection);
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                Err(error) => self.last = Some(error.to_string()),
            }
        }
    }

    async fn carry(&mut self, connection: Connection, source: &mut Source) -> Left {
        let shared = Arc::clone(&self.shared);
        match self.speak_and_hear(connection, source).await {
            Ok(left) => left,
            Err(Fault::Violation(Violation(what))) => Left::Failed(io::Error::new(io::ErrorKind::InvalidData, what)),
            Err(_) if shared.lock().is_over() => Left::Over,
            Err(Fault::Aborted) => {
                Left::Failed(io::Error::new(io::ErrorKind::ConnectionAborted, "the other end gave the stream up"))
            }
            Err(Fault::Broken(error)) => {
                self.last = Some(error.to_string());
                Left::Broken
            }
        }
    }

    async fn speak_and_hear(&mut self, connection: Connection, source: &mut Source) -> Result<Left, Fault> {
        let (read, write) = tokio::io::split(connection);
        let (shared, timing) = (Arc::clone(&self.shared), self.timing);
        // Before anything is heard: the other end's greeting may be there already, and says from where to go on.
        let mut greeting = Vec::with_capacity(MAX_DATA + 64);
        shared.lock().begin(&mut greeting);
        let speaking = speak(write, greeting, &shared, timing.ping_every);
        let hearing = self.hear(BufReader::with_capacity(4 * MAX_DATA, read));
        tokio::pin!(speaking, hearing);
        tokio::select! {
            connection = newest(source) => Ok(Left::Replaced(connection)),
            Err(fault) = &mut hearing => Err(fault),
            said = &mut speaking => {
                said?;
                // The other end closes when it has read the last of it; whether it ever does changes nothing.
                let _ = timeout(timing.dead_after, hearing).await;
                Ok(Left::Over)
            }
        }
    }

    /// Takes what comes, until the connection breaks.
    async fn hear(&mut self, mut input: BufReader<ReadHalf<Connection>>) -> Result<Infallible, Fault> {
        let mut greeted = false;
        loop {
            let frame = timeout(self.timing.dead_after, frame::read(&mut input)).await;
            let frame = frame.map_err(|_elapsed| io::Error::new(io::ErrorKind::TimedOut, "the connection went silent"))??;
            self.heard = Instant::now();
            let mut state = self.shared.lock();
            match frame {
                Frame::Hello(progress) if !greeted => {
                    greeted = true;
                    state.greeted(progress)?;
                    self.pause = FIRST_PAUSE;
                }
                _ if !greeted => return Err(Violation("a connection without a greeting").into()),
                Frame::Hello(_) => return Err(Violation("a second greeting").into()),
                Frame::Ack(progress) => state.acknowledged(progress)?,
                Frame::Data { position, bytes } => state.data(position, &bytes)?,
                Frame::End { position } => state.end(position)?,
                Frame::Abort => return Err(Fault::Aborted),
            }
            state.wake();
            drop(state);
            self.shared.changed.notify_one();
        }
    }
}

/// Says what is in the buffer, then what there is to say, until everything is said.
async fn speak(mut out: WriteHalf<Connection>, mut buffer: Vec<u8>, shared: &Shared, ping_every: Duration) -> io::Result<()> {
    write(&mut out, &mut buffer).await?;
    let mut spoke = Instant::now();
    let mut tell = false;
    loop {
        let next = shared.lock().next(&mut buffer, std::mem::take(&mut tell));
        match next {
            Next::Write => {
                write(&mut out, &mut buffer).await?;
                spoke = Instant::now();
            }
            Next::Wait { ack_owed } => {
                out.flush().await?;
                let patience = if ack_owed { ACK_AFTER.min(ping_every) } else { ping_every };
                tokio::select! {
                    () = shared.changed.notified() => {}
                    () = sleep_until(spoke + patience) => tell = true,
                }
            }
            Next::Over => {
                // What was said last may be an acknowledgement that the other end needs; a connection that breaks here is its loss only.
                let _ = out.flush().await;
                let _ = out.shutdown().await;
                return Ok(());
            }
        }
    }
}

async fn write(out: &mut (impl AsyncWrite + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    out.write_all(buffer).await?;
    buffer.clear();
    Ok(())
}

/// A connection that is to replace the present one; of several, the last.
async fn newest(source: &mut Source) -> Connection {
    let arrivals: &mut mpsc::Receiver<Connection> = match source {
        Source::Accept { later, .. } => later,
        Source::Dial(_) => return std::future::pending().await,
    };
    match arrivals.recv().await {
        Some(mut connection) => {
            while let Ok(later) = arrivals.try_recv() {
                connection = later;
            }
            connection
        }
        None => std::future::pending().await,
    }
}

async fn unwanted(shared: &Shared) {
    loop {
        let changed = shared.changed.notified();
        {
            let state = shared.lock();
            if state.gives_up() || (state.dropped && state.is_over()) {
                return;
            }
        }
        changed.await;
    }
}
