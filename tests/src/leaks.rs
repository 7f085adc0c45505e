//! Searching for secrets where they must not be: processes, files, databases.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use crate::server::files_below;

const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The spellings in which a secret is searched for.
#[derive(Clone, Default)]
pub struct Needles(Vec<Vec<u8>>);

impl std::fmt::Debug for Needles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} needles", self.0.len())
    }
}

impl Needles {
    /// As it is, as JSON has it, in base64 alone and as git's user of generic forges, and each line of a key.
    pub fn of<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Vec::new();
        for secret in secrets.into_iter().map(str::trim) {
            all.push(secret.to_owned());
            all.push(serde_json::json!(secret).to_string().trim_matches('"').to_owned());
            for text in [secret.to_owned(), format!("git:{secret}")] {
                all.push(STANDARD.encode(text).trim_end_matches('=').to_owned());
            }
            all.extend(secret.lines().filter(|line| line.len() > 16 && !line.starts_with("-----")).map(str::to_owned));
        }
        all.sort();
        all.dedup();
        Self(all.into_iter().map(String::into_bytes).collect())
    }

    pub fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|needle| memmem::find(bytes, needle).is_some())
    }

    /// The files below a folder that hold a secret. Those that vanish meanwhile are passed over.
    pub fn files(&self, folder: &Path) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for path in files_below(folder).unwrap_or_default() {
            let Ok(bytes) = std::fs::read(&path) else { continue };
            if self.are_in(&bytes) {
                found.push(path.display().to_string());
            }
        }
        Ok(found)
    }

    /// The columns of a database that hold a secret, compressed or not.
    pub fn database(&self, path: &Path) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        cells(path, |name, bytes| {
            if self.are_in(bytes) {
                found.insert(name.to_owned());
            }
        })?;
        Ok(found.into_iter().collect())
    }
}

/// Calls `see` with the content of every cell, decompressed, and the name of its column.
pub fn cells(path: &Path, mut see: impl FnMut(&str, &[u8])) -> Result<()> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut tables = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let tables = tables.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    for table in tables {
        let mut rows = database.prepare(&format!("SELECT * FROM \"{table}\""))?;
        let names: Vec<String> = rows.column_names().map(|name| format!("{table}.{name}")).collect();
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            for (index, name) in names.iter().enumerate() {
                if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = row.get_ref(index)? {
                    match bytes.starts_with(ZSTD_MAGIC) {
                        true => see(name, &zstd::stream::decode_all(bytes).with_context(|| format!("{name} is damaged"))?),
                        false => see(name, bytes),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Looks at the arguments and environment of every process of the machine, again and again (Linux).
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What a [`Watch`] has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Command lines with their arguments, a space between them.
    pub commands: BTreeSet<String>,
    /// Programs whose arguments or environment held a secret.
    pub leaks: BTreeSet<String>,
}

impl Seen {
    /// Whether a process with all these words in its command line was there.
    pub fn command(&self, words: &[&str]) -> bool {
        self.commands.iter().any(|command| words.iter().all(|word| command.contains(word)))
    }
}

impl Watch {
    pub fn start(needles: Needles) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !asked.load(Ordering::Relaxed) {
                look(&needles, &mut seen);
                // Short against the life of any process, long enough to leave the machine to the others.
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the watch has ended badly")
    }
}

fn look(needles: &Needles, seen: &mut Seen) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        let Ok(command) = std::fs::read(path.join("cmdline")) else { continue };
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        let text = String::from_utf8_lossy(&command).replace('\0', " ");
        if needles.are_in(&command) || needles.are_in(&environment) {
            seen.leaks.insert(text.split(' ').next().unwrap_or_default().to_owned());
        }
        seen.commands.insert(text);
    }
}
