//! The calls that account records need: conditional writes that recognise themselves, and reads of many items.

use aws_sdk_dynamodb::types::{AttributeValue, Delete, TransactWriteItem};
use uuid::Uuid;

use super::items::{GUARD, Stored, read_all};
use crate::aws::edit::{Edit, Met, Sent, Tries, absent, put};
use crate::aws::table::{Item, PK, Table, string, text_of};
use crate::error::StoreError;

/// Who wrote an item last. By it a writer whose answer was lost, and who is then refused by its own condition, recognises its own write.
const WRITE: &str = "write_id";

/// Replaces, whatever is there.
pub(super) async fn put_any(table: &Table, context: &str, items: Vec<Item>) -> Result<(), StoreError> {
    let puts = items.into_iter().map(|item| put(table, item, Edit::default()));
    write(table, context, puts.collect::<Result<_, _>>()?, "").await.map(drop)
}

/// Puts items whose keys are free, all or none; gives whether they were.
pub(super) async fn put_new(table: &Table, context: &str, items: Vec<Item>) -> Result<bool, StoreError> {
    let mark = Uuid::new_v4().to_string();
    let puts = items.into_iter().map(|item| put(table, marked(item, &mark), absent()));
    write(table, context, puts.collect::<Result<_, _>>()?, &mark).await
}

/// Replaces an item while its guard is `expected`; gives whether it was.
pub(super) async fn replace(table: &Table, context: &str, item: Item, expected: &str) -> Result<bool, StoreError> {
    let mark = Uuid::new_v4().to_string();
    let mut edit = Edit::default();
    let (guard, expected) = (edit.name(GUARD), edit.value(string(expected)));
    edit.condition(format!("{guard} = {expected}"));
    write(table, context, vec![put(table, marked(item, &mark), edit)?], &mark).await
}

/// Sets one attribute of an item that is there, and does nothing where there is none. With `limit`, only where the attribute is below it,
/// or not set.
pub(super) async fn set(
    table: &Table,
    context: &str,
    key: Item,
    (attribute, value): (&str, AttributeValue),
    limit: Option<AttributeValue>,
) -> Result<(), StoreError> {
    let mut edit = Edit::default();
    edit.set(attribute, value);
    let (there, name) = (edit.name(PK), edit.name(attribute));
    let below = limit.map(|limit| edit.value(limit));
    let below = below.map_or(String::new(), |limit| format!(" AND (attribute_not_exists({name}) OR {name} < {limit})"));
    edit.condition(format!("attribute_exists({there}){below}"));
    write(table, context, vec![edit.write(table, key)?], "").await.map(drop)
}

/// Deletes items, all or none; gives whether they were there. Always as a transaction, even of one: where its answer is lost and the SDK
/// sends it again, DynamoDB knows its token and tells the first answer again.
pub(super) async fn delete(table: &Table, context: &str, keys: Vec<Item>) -> Result<bool, StoreError> {
    let mut writes = Vec::new();
    for key in keys {
        let delete = Delete::builder().table_name(&table.name).set_key(Some(key)).condition_expression("attribute_exists(#pk)");
        let delete = delete.expression_attribute_names("#pk", PK).build().map_err(|error| StoreError::backend(context, error))?;
        writes.push(TransactWriteItem::builder().delete(delete).build());
    }
    write(table, context, writes, "").await
}

fn marked(mut item: Item, mark: &str) -> Item {
    item.insert(WRITE.to_owned(), string(mark));
    item
}

/// Writes all or nothing; gives whether every condition held, or had held for this very write.
async fn write(table: &Table, context: &str, items: Vec<TransactWriteItem>, mark: &str) -> Result<bool, StoreError> {
    let token = Uuid::new_v4().to_string();
    let mut tries = Tries::begin();
    loop {
        match table.write(context, items.clone(), &token).await? {
            Sent::Done => return Ok(true),
            Sent::Refused(met) => {
                let ours = |met: &Met| matches!(met, Met::Broken(Some(item)) if text_of(item, WRITE) == Some(mark));
                return Ok(!mark.is_empty() && met.iter().any(ours));
            }
            Sent::Unsure(error) => {
                if !tries.again().await {
                    return Err(error);
                }
            }
        }
    }
}

/// The records of many keys, in no order, strongly consistent. Those that are gone or can't be read are left out.
pub(super) async fn get_all<T: Stored>(table: &Table, context: &str, keys: Vec<Item>) -> Result<Vec<T>, StoreError> {
    Ok(read_all(&table.get_many(context, keys).await?))
}
