//! A job as the AWS backend stores it, read beside it and without its code. `store/src/aws/{meta,logs,pack}.rs` tell of the form.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;

use crate::aws::Aws;
use crate::records::Stored;
use crate::wait::{PATIENCE, wait_until};

type Item = HashMap<String, AttributeValue>;

/// What every packed value is written with.
const WORDS: &[u8] = include_bytes!("../../store/src/aws/words.txt");
const PLAIN: u8 = 0;
const PACKED: u8 = 1;
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

impl Aws {
    /// The record of a job, with what stands beside it in its item.
    pub async fn record(&self, id: &str) -> Result<Value> {
        let item = self.meta(id).await?;
        let mut record: Value = serde_json::from_slice(&unpack(binary(&item, "r").context("a job without a record")?)?)?;
        record["version"] = number(&item, "v").context("a job without a version")?.into();
        Ok(record)
    }

    /// A job's events, oldest first.
    pub async fn events(&self, id: &str) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        // The items of older ones come before the job's own, by their key.
        for item in self.partition(&format!("J#{id}")).await? {
            let Some(packed) = binary(&item, "e") else { continue };
            for line in unpack(packed)?.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                events.push(serde_json::from_slice(line)?);
            }
        }
        Ok(events)
    }

    pub async fn set_aside(&self) -> Result<Vec<String>> {
        let items = self.partition("ASIDE").await?;
        Ok(items.iter().filter_map(|item| text(item, "SK").map(str::to_owned)).collect())
    }

    pub async fn spoil(&self, id: &str, record: &str) -> Result<()> {
        let plain = [&[PLAIN], record.as_bytes()].concat();
        let update = self.dynamodb_client().update_item().table_name(&self.table);
        let update = update.key("PK", AttributeValue::S(format!("J#{id}"))).key("SK", AttributeValue::S("META".to_owned()));
        let update = update.update_expression("SET r = :r").condition_expression("attribute_exists(r)");
        update.expression_attribute_values(":r", AttributeValue::B(Blob::new(plain))).send().await?;
        Ok(())
    }

    /// Everything of a job that has ended, as soon as its log, if it has one, is compacted. Of the chunks of its log those that are read: what a late
    /// holder may still put behind an attempt's end is not.
    pub async fn stored(&self, id: &str) -> Result<Stored> {
        let compacted = async || self.meta(id).await.ok().filter(|item| item.contains_key("f") || text(item, "t").is_none());
        let meta = wait_until("an ended job's log is compacted", PATIENCE, compacted).await?;
        let mut items = self.partition(&format!("J#{id}")).await?;
        for tail in text(&meta, "t").unwrap_or_default().split_whitespace() {
            let (fence, last) = tail.split_once('.').context("no cursor")?;
            let last: u64 = last.parse()?;
            let chunks = self.partition(&format!("L#{id}#{fence}")).await?;
            items.extend(chunks.into_iter().filter(|chunk| number(chunk, "n").is_some_and(|number| number <= last)));
        }
        let row = |item: &Item| {
            let key = |name| text(item, name).unwrap_or_default();
            let sorted: BTreeMap<_, _> = item.iter().collect();
            (format!("{}/{}", key("PK"), key("SK")), format!("{sorted:?}"))
        };
        let mut blobs = BTreeMap::new();
        for key in self.object_keys(&format!("jobs/{id}/")).await? {
            let content = self.object(&key).await?;
            blobs.insert(key, content);
        }
        Ok(Stored { rows: items.iter().map(row).collect(), blobs })
    }

    /// Writes every object of the bucket and every item of the table into a folder, unpacked, for a test that searches them. A file of an
    /// object has its key as its path.
    pub async fn dump(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for key in self.object_keys("").await? {
            let path = folder.join("objects").join(&key);
            std::fs::create_dir_all(path.parent().context("no folder")?)?;
            let content = self.object(&key).await?;
            let content = if content.starts_with(ZSTD_MAGIC) { zstd::stream::decode_all(&content[..])? } else { content };
            std::fs::write(path, content)?;
        }
        let mut items =
            self.dynamodb_client().scan().table_name(&self.table).consistent_read(true).into_paginator().items().send();
        let mut number = 0;
        while let Some(item) = items.next().await {
            let mut content = Vec::new();
            for value in item?.values() {
                match value {
                    AttributeValue::S(text) => content.extend_from_slice(text.as_bytes()),
                    // Marks and hashes are bytes of another kind.
                    AttributeValue::B(bytes) => {
                        content.extend(unpack(bytes.as_ref()).unwrap_or_else(|_| bytes.as_ref().to_vec()))
                    }
                    _ => {}
                }
                content.push(b'\n');
            }
            std::fs::write(folder.join(format!("item-{number}")), content)?;
            number += 1;
        }
        Ok(())
    }

    async fn meta(&self, id: &str) -> Result<Item> {
        let items = self.partition(&format!("J#{id}")).await?;
        items.into_iter().find(|item| text(item, "SK") == Some("META")).context("there is no such job")
    }

    async fn partition(&self, key: &str) -> Result<Vec<Item>> {
        let query = self.dynamodb_client().query().table_name(&self.table).consistent_read(true);
        let query =
            query.key_condition_expression("PK = :p").expression_attribute_values(":p", AttributeValue::S(key.to_owned()));
        Ok(query.into_paginator().items().send().collect::<Result<_, _>>().await?)
    }

    async fn object_keys(&self, prefix: &str) -> Result<Vec<String>> {
        let mut pages = self.s3_client().list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            keys.extend(page?.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        }
        Ok(keys)
    }

    async fn object(&self, key: &str) -> Result<Vec<u8>> {
        let object = self.s3_client().get_object().bucket(&self.bucket).key(key).send().await?;
        Ok(object.body.collect().await?.to_vec())
    }
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    match packed.split_first() {
        Some((&PLAIN, content)) => Ok(content.to_vec()),
        Some((&PACKED, content)) => {
            let mut whole = Vec::new();
            zstd::stream::read::Decoder::with_dictionary(content, WORDS)?.read_to_end(&mut whole)?;
            Ok(whole)
        }
        _ => bail!("it is not packed"),
    }
}

fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

fn number(item: &Item, name: &str) -> Option<u64> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

fn binary<'a>(item: &'a Item, name: &str) -> Option<&'a [u8]> {
    Some(item.get(name)?.as_b().ok()?.as_ref())
}
