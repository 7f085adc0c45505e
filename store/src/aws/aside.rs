//! Items that can't be read: named once, left where they are, and taken out of the queue so that they don't come up again and again.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use aws_sdk_dynamodb::types::AttributeValue;
use ckrv_core::id::JobId;
use jiff::Timestamp;

use super::edit::{Edit, Sent};
use super::meta::{Bad, PACKED, meta_key};
use super::table::{QPK, QSK, Table, key, string, text_of};
use crate::error::StoreError;
use crate::job_store::SetAside;

const PARTITION: &str = "ASIDE";
const NAME: &str = "name";
const REASON: &str = "reason";
const AT: &str = "at";
/// More than this many broken records are one fault, not many.
const REMEMBERED: usize = 10_000;

/// What this process has noted already.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<HashSet<String>>);

impl Aside {
    fn is_new(&self, name: &str) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.len() < REMEMBERED && noted.insert(name.to_owned())
    }

    /// Notes an item. Best effort: what reads on must not fail because of it.
    pub(super) async fn note(&self, table: &Table, bad: &Bad) {
        if !self.is_new(&bad.name) {
            return;
        }
        tracing::error!(name = bad.name, reason = bad.reason, "a record can't be read and was set aside; the rest is served");
        let mut item = key(PARTITION, &bad.name);
        item.extend(
            [(NAME, &bad.name), (REASON, &bad.reason), (AT, &Timestamp::now().to_string())]
                .map(|(n, v)| (n.to_owned(), string(v))),
        );
        let put = table.client.put_item().table_name(&table.name).set_item(Some(item));
        if let Err(error) = put.send().await {
            let error = super::failure::failure("noting a record that can't be read", &error);
            tracing::warn!(error = crate::chain(&error), name = bad.name, "an unreadable record could not be noted");
        }
    }

    /// Takes a job that can't be read out of the queue, unless somebody has changed it since.
    pub(super) async fn unqueue(&self, table: &Table, id: JobId, packed: Option<AttributeValue>) -> Result<(), StoreError> {
        let mut edit = Edit::default();
        edit.remove(QPK);
        edit.remove(QSK);
        let name = edit.name(PACKED);
        match packed {
            Some(packed) => {
                let value = edit.value(packed);
                edit.condition(format!("{name} = {value}"));
            }
            None => edit.condition(format!("attribute_not_exists({name})")),
        }
        match table.write("setting a job aside", vec![edit.write(table, meta_key(id))?], "").await? {
            Sent::Done | Sent::Refused(_) => Ok(()),
            Sent::Unsure(error) => Err(error),
        }
    }
}

pub(super) async fn all(table: &Table) -> Result<Vec<SetAside>, StoreError> {
    let items = table.all("listing what was set aside", PARTITION, "").await?;
    let text = |item, name| text_of(item, name).unwrap_or_default().to_owned();
    Ok(items.iter().map(|item| SetAside { name: text(item, NAME), reason: text(item, REASON) }).collect())
}
