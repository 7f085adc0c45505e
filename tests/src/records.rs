//! What a server has stored, read beside it: for tests of what is kept, not of what is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rusqlite::Connection;
use rusqlite::types::Value as Cell;
use serde_json::Value;

use crate::aws::Aws;
use crate::server::{Server, files_below};

/// The stores of a server, running or not, whichever they are.
#[derive(Clone, Debug)]
pub struct Records {
    data: PathBuf,
    aws: Option<Aws>,
}

/// Every row and every blob of one job, byte for byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub rows: BTreeMap<String, String>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Records {
    pub fn of(server: &Server) -> Self {
        Self { data: server.data(), aws: server.aws().cloned() }
    }

    /// The record of a job.
    pub async fn job(&self, id: &str) -> Result<Value> {
        if let Some(aws) = &self.aws {
            return aws.record(id).await;
        }
        let sql = "SELECT record FROM jobs WHERE id = ?1";
        let text: String = self.database()?.query_row(sql, [id], |row| row.get(0))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A job's events, oldest first.
    pub async fn events(&self, id: &str) -> Result<Vec<Value>> {
        if let Some(aws) = &self.aws {
            return aws.events(id).await;
        }
        let database = self.database()?;
        let mut statement = database.prepare("SELECT record FROM events WHERE job = ?1 ORDER BY version")?;
        let rows = statement.query_map([id], |row| row.get::<_, String>(0))?;
        rows.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
    }

    /// Names of the records that were set aside.
    pub async fn set_aside(&self) -> Result<Vec<String>> {
        if let Some(aws) = &self.aws {
            return aws.set_aside().await;
        }
        let database = self.database()?;
        let mut statement = database.prepare("SELECT name FROM set_aside ORDER BY name")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Writes over the record of a job, as a bad disk or a bad program would.
    pub async fn spoil(&self, id: &str, record: &str) -> Result<()> {
        if let Some(aws) = &self.aws {
            return aws.spoil(id, record).await;
        }
        let changed = self.database()?.execute("UPDATE jobs SET record = ?2 WHERE id = ?1", [id, record])?;
        (changed == 1).then_some(()).context("there is no such job")
    }

    /// Makes a stored secret a reference to a secrets manager, where the API itself would refuse one: on the embedded default.
    pub fn refer(&self, secret: &str, reference: &str) -> Result<()> {
        let sql = "UPDATE accounts SET record = json_set(record, '$.value', json_object('reference', ?2)) WHERE kind = 'secret' AND name = ?1";
        let changed = self.database()?.execute(sql, [secret, reference])?;
        (changed == 1).then_some(()).context("there is no such secret")
    }

    /// Everything of one job that has ended.
    pub async fn stored(&self, id: &str) -> Result<Stored> {
        if let Some(aws) = &self.aws {
            return aws.stored(id).await;
        }
        let mut rows = BTreeMap::new();
        for (table, column) in [("jobs", "id"), ("events", "job"), ("log_chunks", "job")] {
            let found = self.rows(&format!("SELECT * FROM {table} WHERE {column} = ?1 ORDER BY 1, 2, 3"), id)?;
            rows.extend(found.iter().enumerate().map(|(number, row)| (format!("{table} {number}"), format!("{row:?}"))));
        }
        let folder = self.data.join("blobs/jobs").join(id);
        let blobs = files_below(&folder)?.into_iter().map(|path| Ok((path.display().to_string(), std::fs::read(path)?)));
        Ok(Stored { rows, blobs: blobs.collect::<Result<_>>()? })
    }

    /// The files of the data folder, and on the AWS backend those of a dump of table and bucket into `dump`.
    pub async fn files(&self, dump: &Path) -> Result<Vec<PathBuf>> {
        let mut files = files_below(&self.data)?;
        if let Some(aws) = &self.aws {
            aws.dump(dump).await?;
            files.extend(files_below(dump)?);
        }
        Ok(files)
    }

    /// The folder of one attempt's job runner.
    pub fn attempt(&self, id: &str, fence: u64) -> PathBuf {
        self.data.join("runs").join(format!("{id}-{fence}"))
    }

    fn database(&self) -> Result<Connection> {
        let database = Connection::open(self.data.join("ckrv.db"))?;
        database.busy_timeout(std::time::Duration::from_secs(10))?;
        Ok(database)
    }

    fn rows(&self, sql: &str, id: &str) -> Result<Vec<Vec<Cell>>> {
        let database = self.database()?;
        let mut statement = database.prepare(sql)?;
        let columns = statement.column_count();
        let rows = statement.query_map([id], |row| (0..columns).map(|column| row.get(column)).collect())?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
