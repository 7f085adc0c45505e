//! What a server has stored, read beside it: for tests of what is kept, not of what is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rusqlite::Connection;
use rusqlite::types::Value as Cell;
use serde_json::Value;

use crate::server::files_below;

/// The data folder of a server, running or not.
#[derive(Debug)]
pub struct Records {
    data: PathBuf,
    database: Connection,
}

/// Every row and every blob of one job, byte for byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub rows: BTreeMap<&'static str, Vec<Vec<Cell>>>,
    pub blobs: BTreeMap<PathBuf, Vec<u8>>,
}

impl Records {
    pub fn open(data: &Path) -> Result<Self> {
        let database = Connection::open(data.join("ckrv.db"))?;
        database.busy_timeout(std::time::Duration::from_secs(10))?;
        Ok(Self { data: data.to_owned(), database })
    }

    /// The record of a job.
    pub fn job(&self, id: &str) -> Result<Value> {
        let text: String = self.database.query_row("SELECT record FROM jobs WHERE id = ?1", [id], |row| row.get(0))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A job's events, oldest first.
    pub fn events(&self, id: &str) -> Result<Vec<Value>> {
        let mut statement = self.database.prepare("SELECT record FROM events WHERE job = ?1 ORDER BY version")?;
        let rows = statement.query_map([id], |row| row.get::<_, String>(0))?;
        rows.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
    }

    /// Names of the records that were set aside.
    pub fn set_aside(&self) -> Result<Vec<String>> {
        let mut statement = self.database.prepare("SELECT name FROM set_aside ORDER BY name")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Writes over the record of a job, as a bad disk or a bad program would.
    pub fn spoil(&self, id: &str, record: &str) -> Result<()> {
        let changed = self.database.execute("UPDATE jobs SET record = ?2 WHERE id = ?1", [id, record])?;
        (changed == 1).then_some(()).context("there is no such job")
    }

    /// Makes a stored secret a reference to a secrets manager.
    pub fn refer(&self, secret: &str, reference: &str) -> Result<()> {
        let sql = "UPDATE accounts SET record = json_set(record, '$.value', json_object('reference', ?2)) WHERE kind = 'secret' AND name = ?1";
        let changed = self.database.execute(sql, [secret, reference])?;
        (changed == 1).then_some(()).context("there is no such secret")
    }

    /// Everything of one job.
    pub fn stored(&self, id: &str) -> Result<Stored> {
        let mut rows = BTreeMap::new();
        for (table, column) in [("jobs", "id"), ("events", "job"), ("log_chunks", "job")] {
            rows.insert(table, self.rows(&format!("SELECT * FROM {table} WHERE {column} = ?1 ORDER BY 1, 2, 3"), id)?);
        }
        let folder = self.data.join("blobs/jobs").join(id);
        let blobs = files_below(&folder)?.into_iter().map(|path| Ok((path.clone(), std::fs::read(path)?)));
        Ok(Stored { rows, blobs: blobs.collect::<Result<_>>()? })
    }

    fn rows(&self, sql: &str, id: &str) -> Result<Vec<Vec<Cell>>> {
        let mut statement = self.database.prepare(sql)?;
        let columns = statement.column_count();
        let rows = statement.query_map([id], |row| (0..columns).map(|column| row.get(column)).collect())?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The folder of one attempt's job runner.
    pub fn attempt(&self, id: &str, fence: u64) -> PathBuf {
        self.data.join("runs").join(format!("{id}-{fence}"))
    }
}
