//! A run's output on its way to the runner. While the runner reads, it goes through a small memory and a flood is held back. When the
//! runner takes nothing for a moment (its connection is gone), output goes on into a file, so that the command does too.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::mux::MuxStream;
use crate::placing;

/// Waiting records in memory.
const MEMORY: usize = 1024 * 1024;
/// And in the file. When both are full the command's writes block, as with any pipe.
const DISK: u64 = 64 * 1024 * 1024;
/// How long the runner takes nothing until the file is used. A reader who is only slow never makes us write to disk.
const STALLED_AFTER: Duration = Duration::from_secs(1);
const CHUNK: usize = 64 * 1024;

/// Records go in at one end by [`Spool::push`]; [`Spool::drain`] carries them to the stream.
#[derive(Debug)]
pub struct Spool {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
    folder: PathBuf,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// When the runner last took something.
    taken: Instant,
    closed: bool,
    broken: bool,
}

impl Spool {
    /// `folder` is where the file is made, should it be needed; it has no name there.
    pub fn new(folder: PathBuf) -> Self {
        let state = State { queue: Queue::new(MEMORY, DISK), taken: Instant::now(), closed: false, broken: false };
        Self { state: Mutex::new(state), filled: Notify::new(), emptied: Notify::new(), folder }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record over as soon as there's room. One caller at a time: order is theirs to keep.
    ///
    /// # Errors
    /// When the stream is broken.
    pub async fn push(&self, record: &[u8]) -> io::Result<()> {
        loop {
            let stalled_at = {
                let mut state = self.lock();
                if state.broken {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if state.queue.push(record)? {
                    break;
                }
                state.taken + STALLED_AFTER
            };
            tokio::select! {
                () = self.emptied.notified() => {}
                () = sleep_until(stalled_at) => if !self.spill() {
                    self.emptied.notified().await;
                },
            }
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Whether the file is now there to be used: it isn't where none can be made, nor where it's full.
    fn spill(&self) -> bool {
        self.lock().queue.spill(|| placing::unlinked(&self.folder))
    }

    /// Nothing is pushed any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    /// Carries everything to the stream, and ends that once the spool is closed and empty.
    pub async fn drain(&self, mut stream: MuxStream) -> io::Result<()> {
        let end = self.carry(&mut stream).await;
        if end.is_err() {
            self.lock().broken = true;
            self.emptied.notify_one();
        }
        end
    }

    async fn carry(&self, stream: &mut MuxStream) -> io::Result<()> {
        loop {
            let (chunk, closed) = {
                let mut state = self.lock();
                (state.queue.pop(CHUNK)?, state.closed)
            };
            if chunk.is_empty() {
                if closed {
                    return stream.shutdown().await;
                }
                self.filled.notified().await;
                continue;
            }
            stream.write_all(&chunk).await?;
            stream.flush().await?;
            self.lock().taken = Instant::now();
            self.emptied.notify_one();
        }
    }
}

/// First in, first out: the older part in memory, the younger in a file that is used as a ring.
#[derive(Debug)]
struct Queue {
    memory: VecDeque<u8>,
    most_memory: usize,
    file: Option<File>,
    start: u64,
    length: u64,
    most_disk: u64,
    /// The file is in use, until it's empty again.
    spilling: bool,
}

impl Queue {
    fn new(most_memory: usize, most_disk: u64) -> Self {
        Self { memory: VecDeque::new(), most_memory, file: None, start: 0, length: 0, most_disk, spilling: false }
    }

    /// `false` without room.
    fn push(&mut self, record: &[u8]) -> io::Result<bool> {
        if self.length == 0 && self.memory.len() + record.len() <= self.most_memory {
            self.memory.extend(record);
            return Ok(true);
        }
        let size = record.len() as u64;
        let Some(file) = self.file.as_ref().filter(|_| self.spilling && self.length + size <= self.most_disk) else {
            return Ok(false);
        };
        let at = (self.start + self.length) % self.most_disk;
        let until_wrap = usize::try_from((self.most_disk - at).min(size)).unwrap_or(record.len());
        let (first, second) = record.split_at(until_wrap);
        let written = file.write_all_at(first, at).and_then(|()| file.write_all_at(second, 0));
        if written.is_err() {
            // A full disk: as if the file were full. What it holds already stays readable.
            return Ok(false);
        }
        self.length += size;
        Ok(true)
    }

    fn spill(&mut self, make: impl FnOnce() -> io::Result<File>) -> bool {
        if self.file.is_none() {
            self.file = make().ok();
        }
        let begins = !self.spilling && self.file.is_some();
        self.spilling |= begins;
        begins
    }

    /// The oldest bytes, `most` of them at most; none when it's empty.
    fn pop(&mut self, most: usize) -> io::Result<Vec<u8>> {
        if self.memory.is_empty() && self.length > 0 {
            let size = (most as u64).min(self.length).min(self.most_disk - self.start);
            let mut chunk = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            let file = self.file.as_ref().ok_or_else(|| io::Error::other("the spool's file is gone"))?;
            file.read_exact_at(&mut chunk, self.start)?;
            self.start = (self.start + size) % self.most_disk;
            self.length -= size;
            self.spilling &= self.length > 0;
            return Ok(chunk);
        }
        let n = most.min(self.memory.len());
        Ok(self.memory.drain(..n).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order_through_memory_and_a_ring_that_wraps() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::new(100, 1000);
        let (mut pushed, mut popped, mut refused, mut wrapped) = (0_u64, 0_u64, 0, 0);
        for step in 0_u64..20_000 {
            let size = (step * 7919) % 90 + 1;
            let record: Vec<u8> = (pushed..pushed + size).map(|n| (n % 251) as u8).collect();
            if queue.push(&record).unwrap() {
                pushed += size;
            } else {
                refused += 1;
                if !queue.spill(|| placing::unlinked(folder.path())) {
                    for _ in 0..step % 9 {
                        let before = queue.start;
                        let chunk = queue.pop(64).unwrap();
                        wrapped += u32::from(queue.start < before);
                        for byte in chunk {
                            assert_eq!(u64::from(byte), popped % 251);
                            popped += 1;
                        }
                    }
                }
            }
            assert!(queue.memory.len() <= 100 && queue.length <= 1000);
        }
        while let Some(byte) = queue.pop(1).unwrap().first() {
            assert_eq!(u64::from(*byte), popped % 251);
            popped += 1;
        }
        assert_eq!(pushed, popped);
        assert!(refused > 100 && wrapped > 10, "{refused} refused, {wrapped} wrapped");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has a name");
    }

    #[test]
    fn without_a_file_it_only_has_its_memory() {
        let mut queue = Queue::new(4, 100);
        assert!(queue.push(b"abcd").unwrap());
        assert!(!queue.spill(|| Err(io::ErrorKind::StorageFull.into())));
        assert!(!queue.push(b"e").unwrap());
        assert_eq!(queue.pop(100).unwrap(), b"abcd");
        assert!(queue.push(b"e").unwrap());
    }
}
