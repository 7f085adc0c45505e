//! The table: its keys, its attributes, and the calls that every part of the backend makes.
//!
//! One table with keys `PK` and `SK`, one sparse index `by_queue` with keys `QPK` and `QSK` that holds keys only, and `ttl` (epoch seconds)
//! as the attribute by which DynamoDB deletes. TTL is housekeeping, never expiry: it may come days late, so every read checks the time itself.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, ReturnConsumedCapacity};
use ckrv_core::id::{JobId, UserId};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::edit::Tries;
use super::failure::failure;
use crate::error::StoreError;

pub(super) const PK: &str = "PK";
pub(super) const SK: &str = "SK";
pub(super) const QPK: &str = "QPK";
pub(super) const QSK: &str = "QSK";
pub(super) const TTL: &str = "ttl";
/// A record as JSON text.
pub(super) const RECORD: &str = "record";
pub(super) const META: &str = "META";
pub(super) const QUEUE_INDEX: &str = "by_queue";

/// Counters of a user's month, in the item `U#uid` / `Q#yyyy-mm`.
pub(super) const USED: &str = "used";
pub(super) const OVERAGE_JOBS: &str = "overage_jobs";
pub(super) const OVERAGE_MICRO_USD: &str = "overage_micro_usd";
pub(super) const AGENT_MICRO_USD: &str = "agent_micro_usd";

/// Every answer says what it cost: for free, and so that a test can hold us to it.
pub(super) const COUNTED: ReturnConsumedCapacity = ReturnConsumedCapacity::Total;

pub(super) type Item = HashMap<String, AttributeValue>;

/// The table as every part of the backend uses it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub client: Client,
    pub name: String,
}

impl Table {
    /// One item, strongly consistent.
    pub(super) async fn get(&self, context: &str, key: Item) -> Result<Option<Item>, StoreError> {
        let request = self.client.get_item().table_name(&self.name).set_key(Some(key)).consistent_read(true);
        let request = request.return_consumed_capacity(COUNTED);
        Ok(request.send().await.map_err(failed(context))?.item)
    }

    /// The items of these keys that there are, strongly consistent, in no order. No key may be given twice.
    pub(super) async fn get_many(&self, context: &str, keys: Vec<Item>) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::new();
        // As many as one call takes.
        for some in keys.chunks(100) {
            let (mut wanted, mut tries) = (some.to_vec(), Tries::begin());
            while !wanted.is_empty() {
                let keys = KeysAndAttributes::builder().set_keys(Some(wanted)).consistent_read(true).build();
                let keys = keys.map_err(|error| StoreError::backend(context, error))?;
                let request = self.client.batch_get_item().request_items(&self.name, keys).return_consumed_capacity(COUNTED);
                let answer = request.send().await.map_err(failed(context))?;
                items.extend(answer.responses.unwrap_or_default().into_values().flatten());
                // What one answer has no room for, or what is throttled.
                wanted = answer.unprocessed_keys.unwrap_or_default().into_values().flat_map(|keys| keys.keys).collect();
                if !wanted.is_empty() && !tries.again().await {
                    return Err(StoreError::backend(context, "DynamoDB is too busy"));
                }
            }
        }
        Ok(items)
    }

    /// All items of one partition whose sort key begins with `prefix`, in order, strongly consistent.
    pub(super) async fn all(&self, context: &str, partition: &str, prefix: &str) -> Result<Vec<Item>, StoreError> {
        let query = self.client.query().table_name(&self.name).consistent_read(true).return_consumed_capacity(COUNTED);
        let query = query.expression_attribute_names("#p", PK).expression_attribute_values(":p", string(partition));
        let query = if prefix.is_empty() {
            query.key_condition_expression("#p = :p")
        } else {
            query
                .key_condition_expression("#p = :p AND begins_with(#s, :s)")
                .expression_attribute_names("#s", SK)
                .expression_attribute_values(":s", string(prefix))
        };
        let mut pages = query.into_paginator().items().send();
        let mut items = Vec::new();
        while let Some(item) = pages.next().await {
            items.push(item.map_err(failed(context))?);
        }
        Ok(items)
    }
}

pub(super) fn user_key(user: UserId) -> String {
    format!("U#{user}")
}

pub(super) fn quota_key(month: &str) -> String {
    format!("Q#{month}")
}

pub(super) fn ledger_partition(month: &str) -> String {
    format!("LEDGER#{month}")
}

/// `uid#jid`: in order of owner, then job.
pub(super) fn ledger_key(owner: UserId, job: JobId) -> String {
    format!("{owner}#{job}")
}

pub(super) fn job_key(id: JobId) -> String {
    format!("J#{id}")
}

/// The primary key of an item.
pub(super) fn key(partition: impl Into<String>, sort: impl Into<String>) -> Item {
    Item::from([(PK.to_owned(), string(partition)), (SK.to_owned(), string(sort))])
}

pub(super) fn string(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(super) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(super) fn bytes(value: Vec<u8>) -> AttributeValue {
    AttributeValue::B(Blob::new(value))
}

pub(super) fn text_of<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

pub(super) fn number_of<T: std::str::FromStr>(item: &Item, name: &str) -> Option<T> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

pub(super) fn bytes_of<'a>(item: &'a Item, name: &str) -> Option<&'a [u8]> {
    Some(item.get(name)?.as_b().ok()?.as_ref())
}

/// The value of the attribute `ttl`: never before `at`.
pub(super) fn ttl(at: Timestamp) -> AttributeValue {
    number(at.as_second().saturating_add(1))
}

/// The error of a call whose answer says nothing that the caller could act on.
pub(super) fn failed<E: std::error::Error + 'static>(context: &str) -> impl Fn(SdkError<E>) -> StoreError {
    move |error| failure(context, &error)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::backend("writing a record as JSON", error))
}

/// SHA-256 as hexadecimal text.
pub(super) fn sha256_hex(content: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(content))
}
