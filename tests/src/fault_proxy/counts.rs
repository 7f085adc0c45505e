//! What was asked and what it cost, by operation.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde_json::Value;

use super::Asked;

const READS: [&str; 5] = ["GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems"];

/// By operation: `PutItem`, or the method where a service has no `X-Amz-Target`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    pub operations: BTreeMap<String, Count>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Requests that came.
    pub asked: u64,
    /// Of these: met a fault.
    pub faults: u64,
    /// Of these: answered by the upstream, whether the client was told or not.
    pub answered: u64,
    /// DynamoDB's units, where answers carry `ConsumedCapacity`: ask for it with `ReturnConsumedCapacity`.
    pub capacity: f64,
}

impl Counts {
    pub fn of(&self, operation: &str) -> Count {
        self.operations.get(operation).copied().unwrap_or_default()
    }

    /// All requests that came.
    pub fn asked(&self) -> u64 {
        self.operations.values().map(|count| count.asked).sum()
    }

    /// All requests that met a fault.
    pub fn faults(&self) -> u64 {
        self.operations.values().map(|count| count.faults).sum()
    }

    pub fn read_units(&self) -> f64 {
        self.units(true)
    }

    pub fn write_units(&self) -> f64 {
        self.units(false)
    }

    fn units(&self, reads: bool) -> f64 {
        let wanted = self.operations.iter().filter(|(operation, _)| READS.contains(&operation.as_str()) == reads);
        wanted.map(|(_, count)| count.capacity).sum()
    }

    pub(super) fn count_asked(&mut self, asked: &Asked, fault: bool) {
        let count = self.operations.entry(asked.operation.clone()).or_default();
        count.asked += 1;
        count.faults += u64::from(fault);
    }

    pub(super) fn count_answered(&mut self, asked: &Asked, body: &Bytes) {
        let count = self.operations.entry(asked.operation.clone()).or_default();
        count.answered += 1;
        if asked.has_target {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            count.capacity += consumed(&body["ConsumedCapacity"]);
        }
    }
}

/// One object, or one for each table.
fn consumed(capacity: &Value) -> f64 {
    match capacity {
        Value::Array(tables) => tables.iter().map(consumed).sum(),
        one => one["CapacityUnits"].as_f64().unwrap_or(0.0),
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (operation, count) in &self.operations {
            write!(f, "{operation} {}", count.asked)?;
            if count.capacity > 0.0 {
                write!(f, " ({} units)", count.capacity)?;
            }
            f.write_str("; ")?;
        }
        write!(f, "requests {}, read units {}, write units {}", self.asked(), self.read_units(), self.write_units())
    }
}
