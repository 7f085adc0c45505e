//! Conditional writes, one or several at once, and what came of them.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::failure::{code, failure, status};
use super::table::{COUNTED, Item, Table};
use crate::error::StoreError;

/// On a condition that fails, the item as it is comes back: a strongly consistent read for free.
const TOLD: ReturnValuesOnConditionCheckFailure = ReturnValuesOnConditionCheckFailure::AllOld;

/// What a transaction of somebody else takes.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(800);
/// Longer than a crowd of transactions at one item needs to thin out, shorter than a client waits. A call under way may add its own 5 s.
const PATIENCE: Duration = Duration::from_secs(8);

/// What came of a write.
#[derive(Debug)]
pub(super) enum Sent {
    Done,
    /// Nothing was written. For each item, in order.
    Refused(Vec<Met>),
    /// Perhaps it was written, perhaps not, and it may be tried again: no answer, throttling, another transaction at the same item.
    Unsure(StoreError),
}

/// What an item's condition met.
#[derive(Debug)]
pub(super) enum Met {
    Held,
    /// The item as it is; `None`: there is none.
    Broken(Option<Item>),
}

/// The tries of one logical write, with jittered waits between, so that those who met once don't meet again.
pub(super) struct Tries {
    delays: ExponentialBackoff,
    until: Instant,
}

impl Tries {
    pub(super) fn begin() -> Self {
        let delays = ExponentialBuilder::default().with_min_delay(FIRST_WAIT).with_max_delay(LONGEST_WAIT).without_max_times();
        Self { delays: delays.with_jitter().build(), until: Instant::now() + PATIENCE }
    }

    /// Waits; `false`: it was tried long enough.
    pub(super) async fn again(&mut self) -> bool {
        let delay = self.delays.next().filter(|delay| Instant::now() + *delay < self.until);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        delay.is_some()
    }
}

/// An update expression in the making. Every name has a placeholder: some of ours are DynamoDB's reserved words.
#[derive(Clone, Debug, Default)]
pub(super) struct Edit {
    set: Vec<String>,
    remove: Vec<String>,
    add: Vec<String>,
    condition: Option<String>,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

impl Edit {
    pub(super) fn name(&mut self, name: &str) -> String {
        let placeholder = format!("#{name}");
        self.names.insert(placeholder.clone(), name.to_owned());
        placeholder
    }

    pub(super) fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    pub(super) fn set(&mut self, name: &str, value: AttributeValue) {
        let (name, value) = (self.name(name), self.value(value));
        self.set.push(format!("{name} = {value}"));
    }

    pub(super) fn remove(&mut self, name: &str) {
        let name = self.name(name);
        self.remove.push(name);
    }

    pub(super) fn add(&mut self, name: &str, value: AttributeValue) {
        let (name, value) = (self.name(name), self.value(value));
        self.add.push(format!("{name} {value}"));
    }

    pub(super) fn condition(&mut self, condition: impl Into<String>) {
        self.condition = Some(condition.into());
    }

    pub(super) fn write(self, table: &Table, key: Item) -> Result<TransactWriteItem, StoreError> {
        let clauses = [("SET", self.set), ("REMOVE", self.remove), ("ADD", self.add)];
        let clauses = clauses.into_iter().filter(|(_, parts)| !parts.is_empty());
        let expression = clauses.map(|(word, parts)| format!("{word} {}", parts.join(", "))).collect::<Vec<_>>().join(" ");
        let update = Update::builder()
            .table_name(&table.name)
            .set_key(Some(key))
            .update_expression(expression)
            .set_condition_expression(self.condition)
            .set_expression_attribute_names(Some(self.names))
            .set_expression_attribute_values(Some(self.values).filter(|values| !values.is_empty()))
            .return_values_on_condition_check_failure(TOLD);
        let update = update.build().map_err(|error| StoreError::backend("building a write", error))?;
        Ok(TransactWriteItem::builder().update(update).build())
    }
}

/// The write that puts a whole item: with a condition, whose placeholders are in `edit`.
pub(super) fn put(table: &Table, item: Item, condition: Edit) -> Result<TransactWriteItem, StoreError> {
    let put = Put::builder()
        .table_name(&table.name)
        .set_item(Some(item))
        .set_condition_expression(condition.condition)
        .set_expression_attribute_names(Some(condition.names).filter(|names| !names.is_empty()))
        .set_expression_attribute_values(Some(condition.values).filter(|values| !values.is_empty()))
        .return_values_on_condition_check_failure(TOLD);
    let put = put.build().map_err(|error| StoreError::backend("building a write", error))?;
    Ok(TransactWriteItem::builder().put(put).build())
}

/// The condition that there is no such item yet.
pub(super) fn absent() -> Edit {
    let mut edit = Edit::default();
    let name = edit.name(super::table::PK);
    edit.condition(format!("attribute_not_exists({name})"));
    edit
}

impl Table {
    /// Writes all or nothing. A single item goes as a plain write: that costs half of a transaction. `token` makes a transaction that was
    /// carried out and whose answer was lost a success when it is sent again.
    pub(super) async fn write(&self, context: &str, mut items: Vec<TransactWriteItem>, token: &str) -> Result<Sent, StoreError> {
        if items.len() > 1 {
            return self.transact(context, items, token).await;
        }
        match items.pop() {
            Some(TransactWriteItem { update: Some(update), .. }) => self.update(context, update).await,
            Some(TransactWriteItem { put: Some(put), .. }) => self.put(context, put).await,
            // A deletion: as a plain one, its repetition would find nothing.
            Some(other) => self.transact(context, vec![other], token).await,
            None => Err(StoreError::backend(context, "there is nothing to write")),
        }
    }

    async fn transact(&self, context: &str, items: Vec<TransactWriteItem>, token: &str) -> Result<Sent, StoreError> {
        let request = self.client.transact_write_items().set_transact_items(Some(items)).client_request_token(token);
        match request.return_consumed_capacity(COUNTED).send().await {
            Ok(_) => Ok(Sent::Done),
            Err(SdkError::ServiceError(error)) if error.err().is_transaction_canceled_exception() => {
                let TransactWriteItemsError::TransactionCanceledException(cancelled) = error.into_err() else {
                    return Err(StoreError::backend(context, "the transaction was cancelled"));
                };
                let reasons = cancelled.cancellation_reasons.unwrap_or_default();
                let is = |wanted: &str| reasons.iter().any(|reason| reason.code.as_deref() == Some(wanted));
                if is("ConditionalCheckFailed") {
                    let met = reasons.into_iter().map(|reason| match reason.code.as_deref() {
                        Some("ConditionalCheckFailed") => Met::Broken(reason.item),
                        _ => Met::Held,
                    });
                    return Ok(Sent::Refused(met.collect()));
                }
                let codes = reasons.iter().filter_map(|reason| reason.code.as_deref()).collect::<Vec<_>>().join(", ");
                let told = StoreError::backend(context, format!("the transaction was cancelled: {codes}"));
                if is("ValidationError") || is("ItemCollectionSizeLimitExceeded") { Err(told) } else { Ok(Sent::Unsure(told)) }
            }
            Err(error) => unsure(context, &error),
        }
    }

    async fn update(&self, context: &str, update: Update) -> Result<Sent, StoreError> {
        let request = self
            .client
            .update_item()
            .table_name(update.table_name)
            .set_key(Some(update.key))
            .update_expression(update.update_expression)
            .set_condition_expression(update.condition_expression)
            .set_expression_attribute_names(update.expression_attribute_names)
            .set_expression_attribute_values(update.expression_attribute_values)
            .return_values_on_condition_check_failure(TOLD)
            .return_consumed_capacity(COUNTED);
        match request.send().await {
            Ok(_) => Ok(Sent::Done),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => {
                let UpdateItemError::ConditionalCheckFailedException(failed) = error.into_err() else {
                    return Ok(Sent::Refused(vec![Met::Broken(None)]));
                };
                Ok(Sent::Refused(vec![Met::Broken(failed.item)]))
            }
            Err(error) => unsure(context, &error),
        }
    }

    async fn put(&self, context: &str, put: Put) -> Result<Sent, StoreError> {
        let request = self
            .client
            .put_item()
            .table_name(put.table_name)
            .set_item(Some(put.item))
            .set_condition_expression(put.condition_expression)
            .set_expression_attribute_names(put.expression_attribute_names)
            .set_expression_attribute_values(put.expression_attribute_values)
            .return_values_on_condition_check_failure(TOLD)
            .return_consumed_capacity(COUNTED);
        match request.send().await {
            Ok(_) => Ok(Sent::Done),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => {
                let PutItemError::ConditionalCheckFailedException(failed) = error.into_err() else {
                    return Ok(Sent::Refused(vec![Met::Broken(None)]));
                };
                Ok(Sent::Refused(vec![Met::Broken(failed.item)]))
            }
            Err(error) => unsure(context, &error),
        }
    }
}

/// Trying again helps where nobody answered, where the service was busy, and where a transaction of somebody else has the item.
fn unsure<E>(context: &str, error: &SdkError<E>) -> Result<Sent, StoreError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let transient = match error {
        SdkError::ConstructionFailure(_) => false,
        SdkError::ServiceError(_) => {
            status(error).is_some_and(|status| status >= 500)
                || matches!(
                    code(error),
                    Some(
                        "ProvisionedThroughputExceededException"
                            | "RequestLimitExceeded"
                            | "ThrottlingException"
                            | "TransactionConflictException"
                            | "TransactionInProgressException"
                            | "ReplicatedWriteConflictException"
                    )
                )
        }
        _ => true,
    };
    let told = failure(context, error);
    if transient { Ok(Sent::Unsure(told)) } else { Err(told) }
}
